"""The outputs of fused attention kept from a layer's forward, so that its recomputation runs everything but attention.

A recomputed layer normally runs its attention three times: forward, recomputation, and the backward kernel, which wants
nothing of the second but the output and the log-sum-exp of the rows. Keeping these two costs H + 2 * num_heads numbers
of 16 bits a token and layer (260 KiB a token of an 8B model beside the 256 KiB of the layers' inputs) and saves one
attention forward, which at 131072 tokens is about a fifth of a LoRA step's time.

torch's selective checkpointing does the same with a policy. It counts every operation of the layer, so that a weight
whose cast autocast remembers in the forward, and no more in the backward, is an error; here only attention is counted.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# Of the kernels below only the first runs on a CPU; the others are named by their schemas and have not been run here.
KERNELS = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "flash_attn_3::_flash_attn_forward",
)
"""Attention kernels whose outputs are all that their backward needs besides query, key and value."""


class KeptAttention:
    """The attention outputs of one call of a layer.

    Enter `keeping` around the layer's forward and `replaying` around its recomputation, once each.
    """

    def __init__(self) -> None:
        self._outputs: deque[tuple[Any, Any]] = deque()
        self.keeping = _Keeping(self._outputs)
        self.replaying = _Replaying(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)


class _Keeping(TorchDispatchMode):
    def __init__(self, outputs: deque[tuple[Any, Any]]) -> None:
        super().__init__()
        self.outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if is_kept(func, args, kwargs or {}):
            # Detached: autograd writes the history of the forward into the tensors themselves.
            self.outputs.append((func, tree_map_only(torch.Tensor, torch.Tensor.detach, output)))
        return output

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if not self.outputs and exception[0] is None:
            warn_that_nothing_was_kept()


class _Replaying(TorchDispatchMode):
    def __init__(self, outputs: deque[tuple[Any, Any]]) -> None:
        super().__init__()
        self.outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_kept(func, args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        if not self.outputs or self.outputs[0][0] is not func:
            raise RuntimeError(
                f"the recomputation of a layer asks for {func}, which its forward did not run or has handed over;"
                " a backward pass can run once"
            )
        return self.outputs.popleft()[1]


def is_kept(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the outputs of this call of an operation are kept.

    Attention with dropout is not: leaving it out would leave the random state behind, and whatever drops after it in
    the layer would draw another mask in the recomputation.
    """
    if not is_fused(func):
        return False
    place = _place_of_dropout(func)
    dropout = 0.0 if place is None else args[place] if place < len(args) else kwargs.get("dropout_p", 0.0)
    return dropout == 0.0


@cache
def is_fused(func: Any) -> bool:
    """Whether an operation is one of `KERNELS`; by name, for some come with packages that are imported late."""
    return isinstance(func, torch._ops.OpOverload) and func.name() in KERNELS


@cache
def _place_of_dropout(func: Any) -> int | None:
    names = [argument.name for argument in func._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else None


@cache
def warn_that_nothing_was_kept() -> None:  # once a process
    logging.getLogger(__name__).warning(
        "memory.activations.recompute=keep_attention keeps nothing: no fused attention without dropout ran in a layer,"
        " so all of it is recomputed"
    )
