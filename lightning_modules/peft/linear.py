"""A linear layer with a LoRA adapter beside it, that keeps its input once and no copy of it or of a frozen weight.

peft's own layer casts its input to the adapter's dtype, which is fp32; what is kept for the backward pass are then the
casts, one for each of q, k and v (fp32 where autocast is off), and autocast keeps a second copy of every frozen weight.
Here activations keep their dtype and the small adapter is cast to it: kept are the input itself, which layers that read
the same tensor share, and [N, r]. The product with B is added into the output in place and rounded once.
Cost: that of LoRA. Alternative: peft's layer, which this one is exactly equal to but for rounding.

Reference:
    Hu et al. 2021, arXiv:2106.09685, section 4.1: h = W x + (alpha / r) B A x.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable

# N tokens, I inputs, O outputs, r rank


class LoraLinear(Linear):
    """peft's layer with another forward; merging, saving and loading are peft's.

    Made of a layer that peft put in place, by `lean(layer)`.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or kwargs or len(self.active_adapters) != 1:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base, dropout = self.get_base_layer(), self.lora_dropout[name]
        x = x.to(working_dtype(x))  # before dropout, which keeps a mask of the dtype that it gets
        dropped = dropout(x) if isinstance(dropout, nn.Dropout) and self.training else None
        return lora_linear(
            x,
            base.weight,  # type: ignore[arg-type]
            base.bias,  # type: ignore[arg-type]
            self.lora_A[name].weight,  # type: ignore[arg-type]
            self.lora_B[name].weight,  # type: ignore[arg-type]
            scaling=self.scaling[name],
            dropped=dropped,
        )


def lean(layer: nn.Module) -> None:
    """Give a layer of peft's this forward, in place; layers of other kinds (quantised ones) stay as they are."""
    if type(layer) is Linear and not layer.lora_variant:
        layer.__class__ = LoraLinear


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    *,
    scaling: float,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x @ W.T + bias + scaling * (x @ A.T) @ B.T`, computed in autocast's dtype, or in that of `x` where it is off.

    Args:
        x: [..., I].
        weight: [O, I], frozen: it gets no gradient.
        bias: [O], frozen, or None.
        lora_a: [r, I].
        lora_b: [O, r].
        scaling: alpha / r, or alpha / sqrt(r).
        dropped: [..., I], what A reads where that is not x itself.

    Returns:
        [..., O].
    """
    return _LoraLinear.apply(x, dropped, weight, bias, lora_a, lora_b, scaling)  # type: ignore[return-value]


def working_dtype(x: torch.Tensor) -> torch.dtype:
    """What a product with `x` is computed in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        dtype = working_dtype(x)
        rows = x.flatten(0, -2).to(dtype)  # [N, I], x itself where the dtype is right already
        read = rows if dropped is None else dropped.flatten(0, -2).to(dtype)  # [N, I]
        output = F.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))  # [N, O]
        low = read @ lora_a.to(dtype).t()  # [N, r]
        output.addmm_(low, lora_b.to(dtype).t(), alpha=scaling)
        # The frozen weight itself, not its cast: a second copy of the whole model would stand until the backward.
        ctx.save_for_backward(read, low, weight, lora_a, lora_b)
        ctx.scaling, ctx.x_dtype, ctx.x_shape, ctx.has_dropout = scaling, x.dtype, x.shape, dropped is not None
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, low, weight, lora_a, lora_b = ctx.saved_tensors
        dtype = read.dtype
        with torch.autocast(grad_outputs[0].device.type, enabled=False):
            grad = grad_outputs[0].flatten(0, -2).to(dtype)  # [N, O]
            grad_low = (grad @ lora_b.to(dtype)) * ctx.scaling  # [N, r]
            grad_a = (grad_low.t() @ read).to(lora_a.dtype) if ctx.needs_input_grad[4] else None
            grad_b = (grad.t() @ low).mul_(ctx.scaling).to(lora_b.dtype) if ctx.needs_input_grad[5] else None
            grad_x = grad @ weight.to(dtype) if ctx.needs_input_grad[0] else None  # [N, I]
            grad_dropped = None
            if ctx.has_dropout and ctx.needs_input_grad[1]:
                grad_dropped = (grad_low @ lora_a.to(dtype)).to(ctx.x_dtype).view(ctx.x_shape)
            elif grad_x is not None:
                grad_x.addmm_(grad_low, lora_a.to(dtype))
            if grad_x is not None:
                grad_x = grad_x.to(ctx.x_dtype).view(ctx.x_shape)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None
