"""What each setting of `memory.activations` holds, computes again, and costs.

    python -m benchmarks.activation_memory

A small Llama on random tokens, one document a row; on a CUDA device in bf16, else in fp32 on one thread of the CPU.
held     bytes of tensors that the forward pass of loss and model made and left for the backward
peak     the most bytes of such tensors at any time of both passes
         Both at two lengths: `a token` is the slope between them, `fixed` what is left at no token; `a layer` is the
         slope again, by the number of layers. On a CPU storages are followed from the operation that makes them until
         they are freed; what a kernel uses inside itself is not seen. On CUDA they are torch's allocated bytes.
host     bytes of the pool of pinned memory a token, which on a CPU is left out of held and peak
layer, attention, MLP
         forwards of each token through them: 1 in the forward pass, the others again in the backward
time     of both passes at four times the larger length of half the layers, to that of the first row, or of the first
         with LoRA
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules.batch import Batch
from lightning_modules.attention.registry import PER_DOCUMENT_ATTENTION, register_attention_functions
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.memory.host_offload import HostBlocks
from lightning_modules.memory.kept_attention import is_fused
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss

OPTIONS = {
    "default": ActivationMemory(),
    "gradient_checkpointing": ActivationMemory(recompute="full"),
    "every_n_layers": ActivationMemory(recompute="every_n_layers", layers_per_checkpoint=4),
    "keep_attention": ActivationMemory(recompute="keep_attention"),
    "offload": ActivationMemory(recompute="full", offload_to_host=True, keep_on_device=2),
    "tiled_mlp": ActivationMemory(recompute="full", mlp_tile_size=128),
    "long_sft": ActivationMemory(recompute="keep_attention", offload_to_host=True, keep_on_device=2, mlp_tile_size=128),
}
"""The options of conf/memory, with tiles that are small beside the lengths here."""


@dataclass(frozen=True)
class Shape:
    """The model: a Llama 8B's proportions."""

    num_layers: int = 8
    hidden_size: int = 128
    intermediate_size: int = 448
    num_heads: int = 8
    num_kv_heads: int = 2
    vocab_size: int = 256
    lora: bool = False


class Passes(NamedTuple):
    """Bytes and forwards of one forward and backward pass."""

    held_bytes: float
    peak_bytes: float
    host_bytes: float
    layer_forwards: float
    attention_forwards: float
    mlp_forwards: float


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of storages that operations inside make, until they are freed, and fused attention calls.

    Args:
        elsewhere: Bytes among them that do not count.
    """

    def __init__(self, elsewhere: Callable[[], int]) -> None:
        super().__init__()
        self.elsewhere = elsewhere
        self.live_bytes = 0
        self.peak_bytes = 0
        self.attention_tokens = 0
        self._followed: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._followed:
                self._followed.add(storage._cdata)
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes - self.elsewhere())
        if is_fused(func):
            self.attention_tokens += args[0].shape[0] * args[0].shape[2]  # [B, H, T, D]
        return output

    def _freed(self, storage: int, num_bytes: int) -> None:
        self._followed.discard(storage)
        self.live_bytes -= num_bytes


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_model(option: ActivationMemory, shape: Shape) -> CausalLMWithLoss:
    """A model on random weights, in training."""
    register_attention_functions()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
    )
    causal_lm: Any = LlamaForCausalLM(config)
    causal_lm.set_attn_implementation(PER_DOCUMENT_ATTENTION)
    if shape.lora:
        from peft import LoraConfig, inject_adapter_in_model

        causal_lm.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=8, target_modules="all-linear", exclude_modules=["lm_head"]), causal_lm)
    causal_lm.to(device(), torch.bfloat16 if device().type == "cuda" else torch.float32)
    option.apply(causal_lm)
    return CausalLMWithLoss(causal_lm.train(), loss_chunk_size=128)


def make_batch(num_tokens: int, shape: Shape) -> Batch:
    """One row, one document."""
    ids = torch.randint(shape.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0)).to(device())
    positions = torch.arange(num_tokens, device=device())[None]
    return Batch(input_ids=ids, labels=ids, position_ids=positions, document_ids=torch.zeros_like(ids))


def host_blocks(model: CausalLMWithLoss) -> HostBlocks:
    """The pool of the model's layers; an empty one where they have none."""
    function = getattr(model.causal_lm.get_decoder().layers[0], "_gradient_checkpointing_func", None)  # type: ignore[index]
    store = getattr(function, "store", None)
    return getattr(getattr(store, "store", store), "blocks", HostBlocks())


def measure(option: ActivationMemory, shape: Shape, num_tokens: int) -> Passes:
    """Bytes and forwards of the second of two steps: what a first one allocates once is there."""
    model = make_model(option, shape)
    batch = make_batch(num_tokens, shape)
    model(batch).loss_sum.backward()
    seen = {"layer": 0, "mlp": 0}
    for layer in model.causal_lm.get_decoder().layers:  # type: ignore[union-attr]
        # Inside the layer: the layer's own hooks are outside of what is recomputed.
        layer.input_layernorm.register_forward_hook(_counter(seen, "layer"))
        layer.mlp.gate_proj.register_forward_hook(_counter(seen, "mlp"))
    gc.collect()
    on_cuda = device().type == "cuda"
    base = 0
    if on_cuda:  # not run: there was no GPU to run it on
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    blocks = host_blocks(model)
    before = blocks.num_bytes
    with LiveTensors(lambda: blocks.num_bytes - before) as live:
        loss = model(batch).loss_sum
        held = torch.cuda.memory_allocated() - base if on_cuda else live.live_bytes - live.elsewhere()
        loss.backward()
    passed = num_tokens * shape.num_layers
    return Passes(
        held_bytes=held,
        peak_bytes=torch.cuda.max_memory_allocated() - base if on_cuda else live.peak_bytes,
        host_bytes=blocks.num_bytes,
        layer_forwards=seen["layer"] / passed,
        attention_forwards=live.attention_tokens / passed,
        mlp_forwards=seen["mlp"] / passed,
    )


def _counter(seen: dict[str, int], name: str) -> Callable[..., None]:
    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen[name] += output.shape[:-1].numel()

    return count


class Lines(NamedTuple):
    """Bytes as straight lines in the number of tokens."""

    held_a_token: float
    held_fixed: float
    peak_a_token: float
    host_a_token: float


def lines(option: ActivationMemory, shape: Shape, lengths: tuple[int, int]) -> tuple[Lines, Passes]:
    """Slopes between two lengths, and the passes at the longer one."""
    short, long = (measure(option, shape, length) for length in lengths)
    held, peak, host = (
        (getattr(long, name) - getattr(short, name)) / (lengths[1] - lengths[0])
        for name in ("held_bytes", "peak_bytes", "host_bytes")
    )
    return Lines(held, short.held_bytes - held * lengths[0], peak, host), long


def held_a_layer(option: ActivationMemory, shape: Shape, lengths: tuple[int, int]) -> float:
    """Bytes a token and layer that are held: what twice as many layers hold more, by layer."""
    twice = replace(shape, num_layers=2 * shape.num_layers)
    more = lines(option, twice, lengths)[0].held_a_token - lines(option, shape, lengths)[0].held_a_token
    return more / shape.num_layers


def seconds(options: Iterable[ActivationMemory], shape: Shape, num_tokens: int, *, rounds: int = 3) -> list[float]:
    """The best forward and backward pass of each option, which take turns: what disturbs one disturbs all."""
    models, batch = [make_model(option, shape) for option in options], make_batch(num_tokens, shape)
    best = [float("inf")] * len(models)
    for _ in range(rounds):
        for k, model in enumerate(models):
            begun = time.perf_counter()
            model(batch).loss_sum.backward()
            if device().type == "cuda":
                torch.cuda.synchronize()
            best[k] = min(best[k], time.perf_counter() - begun)
    return best


HEADER = ("held a token", "fixed", "a layer", "peak a token", "host a token", "layer", "attention", "MLP", "time")


def row(option: ActivationMemory, shape: Shape, lengths: tuple[int, int]) -> list[str]:
    """All columns but the time."""
    found, passes = lines(option, shape, lengths)
    a_layer = held_a_layer(option, replace(shape, num_layers=shape.num_layers // 2), lengths)
    numbers = (found.held_a_token, found.held_fixed, a_layer, found.peak_a_token, found.host_a_token)
    forwards = (passes.layer_forwards, passes.attention_forwards, passes.mlp_forwards)
    return [*(f"{number:,.0f}" for number in numbers), *(f"{number:.2f}" for number in forwards)]


def main() -> None:
    torch.set_num_threads(1)
    shape, lengths = Shape(), (256, 768)
    if device().type == "cuda":
        shape, lengths = Shape(16, 1024, 3584, 16, 4), (4096, 16384)
    print(f"{device().type}, {shape}, {lengths[0]} and {lengths[1]} tokens")
    print(f"{'':<29}" + "".join(f"{name:>14}" for name in HEADER), flush=True)
    for lora in (False, True):
        model = replace(shape, lora=lora)
        took = seconds(OPTIONS.values(), replace(model, num_layers=model.num_layers // 2), 4 * lengths[1])
        for (name, option), second in zip(OPTIONS.items(), took, strict=True):
            cells = [*row(option, model, lengths), f"{second / took[0]:.2f}x"]
            print(f"{name + ', LoRA' * lora:<29}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
