"""Predicted memory against the bytes of tensors that live during real optimizer steps.

What is measured: parameters, and the most bytes of all other tensors that exist at once in the second step, gradients
and optimizer state among them. Their storages are followed from the operation that makes them until they are freed
(`benchmarks.activation_memory.LiveTensors`); what a kernel uses inside itself is not seen.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.activation_memory import LiveTensors, Shape, host_blocks, make_batch
from lightning_modules.attention.registry import PER_DOCUMENT_ATTENTION, register_attention_functions
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.adamw_bf16 import adamw_bf16
from lightning_modules.optim.muon import muon
from lightning_modules.peft.long_lora import LongLora
from lightning_modules.peft.lora import Lora
from recipes.planning.dimensions import Dimensions
from recipes.planning.job import Adapter, Job, MemoryOption
from recipes.planning.memory import GRADIENTS, fullest, held_bytes, moments

MODEL = Dimensions(
    num_layers=3,
    hidden_size=128,
    intermediate_size=448,
    num_heads=8,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=512,
)
FULL = MemoryOption(recompute="full", loss_chunk_size=128)
KEPT = MemoryOption(recompute="keep_attention", loss_chunk_size=128)
NESTED = MemoryOption(recompute="every_n_layers", layers_per_checkpoint=3, loss_chunk_size=128)
TILED = MemoryOption(recompute="full", mlp_tile_size=128, loss_chunk_size=128)
AWAY = MemoryOption(recompute="full", offload_to_host=True, keep_on_device=1, loss_chunk_size=128)
ALL = MemoryOption(loss_chunk_size=128)
LORA = Adapter(rank=8, targets=tuple(MODEL.linears))
OPTIMIZERS: dict[str, Any] = {"adamw": adamw, "adamw_bf16": adamw_bf16, "muon": muon}


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_visited() -> Iterator[None]:
    """Garbage is collected between steps, which takes long where a test process holds millions of objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def job(*, row_tokens: int = 256, memory: MemoryOption = ALL, **others: Any) -> Job:
    return Job(model=MODEL, row_tokens=row_tokens, memory=memory, on_gpu=False, **others)


def built(job: Job) -> CausalLMWithLoss:
    """The model that a job describes."""
    register_attention_functions()
    torch.manual_seed(0)
    model = job.model
    causal_lm: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            tie_word_embeddings=model.tied_embeddings,
        )
    )
    causal_lm.to(torch.bfloat16 if job.bf16_weights else torch.float32)
    causal_lm.set_attn_implementation(PER_DOCUMENT_ATTENTION)
    if (adapter := job.adapter) is not None:
        settings: dict[str, Any] = {"r": adapter.rank, "alpha": 16.0, "target_modules": list(adapter.targets)}
        (LongLora(**settings) if adapter.trains_embeddings else Lora(**settings)).apply(causal_lm)
    option = asdict(job.memory)
    chunk = option.pop("loss_chunk_size")
    ActivationMemory(**option).apply(causal_lm)
    return CausalLMWithLoss(causal_lm.train(), loss_chunk_size=chunk)


@functools.cache
def measured(job: Job) -> tuple[int, int]:
    """Most bytes of tensors in the second of two steps, and those that a forward pass leaves for its backward."""
    model, size = built(job), job.model
    shape = Shape(size.num_layers, size.hidden_size, size.intermediate_size, size.num_heads, 2, size.vocab_size)
    batch = make_batch(job.row_tokens, shape)
    if job.shares_rows:
        batch["document_ids"] = (torch.arange(job.row_tokens) * 4 // job.row_tokens)[None]  # four of one length
    optimizer = OPTIMIZERS[job.optimizer](model, lr=1e-4)
    held, blocks = 0, host_blocks(model)
    with LiveTensors(lambda: blocks.num_bytes) as live:
        for _ in range(2):
            gc.collect()
            live.peak_bytes = 0
            held = one_step(model, batch, optimizer, job, live)
    return live.peak_bytes + sum(p.numel() * p.element_size() for p in model.parameters()), held


def one_step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, job: Job, live: LiveTensors) -> int:
    """As `CausalLMModule.training_step`; returns what the first forward leaves."""
    before, held = live.live_bytes - live.elsewhere(), 0
    with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16"):
        for k in range(job.micro_batches):
            loss = model(batch).loss_sum
            held = live.live_bytes - live.elsewhere() - before if k == 0 else held
            loss.backward()
            del loss
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad()
    return held


JOBS = {
    "all held": job(),
    "all held, short rows": job(row_tokens=64),
    "all held, long rows": job(row_tokens=768),
    "all held, in fp32": job(precision="fp32"),
    "all held, several documents a row": job(shares_rows=True),
    "all held, two micro-batches": job(micro_batches=2),
    "recomputed": job(memory=FULL, row_tokens=768),
    "recomputed, in fp32": job(memory=FULL, precision="fp32", row_tokens=512),
    "recomputed, two micro-batches": job(memory=FULL, micro_batches=2),
    "attention kept": job(memory=KEPT, row_tokens=512),
    "one input for three layers": job(memory=NESTED, row_tokens=512),
    "on the host": job(memory=AWAY, row_tokens=768),
    "on the host, LoRA on bf16": job(memory=AWAY, row_tokens=768, adapter=LORA, bf16_weights=True),
    "tiled": job(memory=TILED, row_tokens=768),
    "tiled, nothing recomputed": job(memory=MemoryOption(mlp_tile_size=128, loss_chunk_size=128), row_tokens=512),
    "LoRA": job(adapter=LORA),
    "LoRA on bf16": job(adapter=LORA, bf16_weights=True),
    "LoRA on bf16, recomputed": job(adapter=LORA, bf16_weights=True, memory=FULL, row_tokens=512),
    "LoRA on bf16, tiled": job(adapter=LORA, bf16_weights=True, memory=TILED, row_tokens=768),
    "LoRA on two matrices": job(adapter=Adapter(rank=4, targets=("q_proj", "v_proj")), bf16_weights=True),
    "LongLoRA": job(
        adapter=Adapter(
            rank=8, targets=("q_proj", "k_proj", "v_proj", "o_proj"), trains_embeddings=True, trains_norms=True
        )
    ),
    "bf16 moments": job(row_tokens=64, optimizer="adamw_bf16"),
    "Muon": job(row_tokens=64, optimizer="muon"),
}


@pytest.mark.parametrize("name", JOBS)
def test_peak_of_a_step_is_within_a_tenth(name: str) -> None:
    peak, _ = measured(JOBS[name])
    assert fullest(JOBS[name]).total == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("name", [name for name in JOBS if JOBS[name].precision == "fp32" or JOBS[name].bf16_weights])
def test_what_a_forward_pass_leaves_is_equal_to_the_byte_but_for_its_batch(name: str) -> None:
    """Where autocast keeps no copies of weights; gradients of the loss are ready, the head's among them."""
    predicted = JOBS[name]
    head = 0 if predicted.adapter else 4 * MODEL.embedding
    _, held = measured(predicted)
    assert held == pytest.approx(held_bytes(predicted) + head, abs=64 * predicted.tokens, rel=0.005)


@pytest.fixture
def one_rank() -> Iterator[Any]:
    """A mesh of this process alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("reduce_gradients", ["once_a_step", "every_micro_batch"])
def test_fsdp_s_gradients_between_micro_batches_and_its_stream_in_16_bits(one_rank: Any, reduce_gradients: str) -> None:
    """What the plan says of gradients and of the width of activations, of which one rank shows all but the shards."""
    from lightning_modules.strategies.gradient_sync import synchronise_gradients
    from lightning_modules.strategies.sharding import ShardedStrategy, shard

    always = reduce_gradients == "every_micro_batch"
    sharded = job(strategy="fsdp", ranks=8, micro_batches=2, memory=FULL, reduces_always=always)
    strategy = ShardedStrategy(data_parallel_size=1, reduce_gradients=reduce_gradients)
    model, widths = built(sharded), []
    model.causal_lm.get_decoder().layers[1].register_forward_pre_hook(  # type: ignore[index,union-attr]
        lambda _, inputs: widths.append(inputs[0].element_size())
    )
    shard(model, mesh=one_rank, compute_dtype=torch.bfloat16)
    batch = make_batch(64, Shape(vocab_size=MODEL.vocab_size))
    whole = []
    for last in (False, True):
        with synchronise_gradients(strategy, model, last=last):
            model(batch).loss_sum.backward()
        whole.append(sum(map(unsharded_gradients, model.modules())))
    held = moments(sharded)[0].bytes_by_cause[GRADIENTS]
    assert whole == [0, 0] if always else [held, 0]
    assert held == 4 * MODEL.num_parameters / (8 if always else 1)
    assert set(widths) == {sharded.widths.residual} == {2}


def unsharded_gradients(module: nn.Module) -> int:
    """Bytes of gradients that a module of FSDP2 holds of its own parameters and has not reduced yet."""
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    group = None if state is None else state._fsdp_param_group
    kept = [] if group is None else [parameter.unsharded_accumulated_grad for parameter in group.fsdp_params]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor is not None)
