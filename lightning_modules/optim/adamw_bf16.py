"""AdamW whose two moments are held in bf16 and rounded by chance.

Parameters and arithmetic are fp32; only what waits between steps is bf16, 4 bytes a parameter and not 8. Rounding to
the nearest would stop the second moment: at beta2 = 0.999 a step changes it by a thousandth, and numbers of bf16 are
four times as far apart. Rounded up or down by chance, in proportion, it is right on average. Which way is drawn from
the step and the place of the parameter, so that a resumed run rounds as an uninterrupted one, and every rank alike.
Cost: one random number a moment and step. Alternative: 8 bits (`adamw_8bit.py`), for which bitsandbytes is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_modules.optim.adamw import decay_groups

MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw_bf16(
    model: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_norms: bool = False,
) -> AdamWBf16:
    """AdamW with bf16 moments over the trainable parameters, which are fp32; arguments are those of `adamw`."""
    beta1, beta2 = betas
    groups = decay_groups(model, weight_decay=weight_decay, decay_norms=decay_norms)
    return AdamWBf16(groups, lr=lr, betas=(beta1, beta2), eps=eps)


class AdamWBf16(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2) with moments in bf16.

    Args:
        params: Parameters or groups of them, fp32, sharded or not.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch has cast them to the parameter's dtype
            for name in MOMENTS:
                state[name] = state[name].to(torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, place)
                place += 1
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        weight, gradient = _local(parameter), _local(parameter.grad)
        held = [_local(state[name]) for name in MOMENTS]
        first = held[0].float().lerp_(gradient, 1 - beta1)
        second = held[1].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        generator = torch.Generator(weight.device).manual_seed(hash((step, place)))
        for moment, exact in zip(held, (first, second), strict=True):
            moment.copy_(rounded_by_chance(exact, generator))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        root = second.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        weight.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**step))


def rounded_by_chance(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A bf16 neighbour of each number of an fp32 tensor, the nearer the likelier: right on average."""
    bits = exact.view(torch.int32)
    chance = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    # bf16 is the upper half of fp32: the lower half carries over as often as it is large.
    return chance.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
