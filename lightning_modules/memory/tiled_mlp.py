"""The MLP of a layer over a tile of tokens at a time, inside the layer's recomputation.

Gate, up and their product are 3.5 times as wide as the hidden states each (84 KiB a token of an 8B layer in bf16, and
as much again for their gradients); here they exist for one tile. The forward keeps the MLP's input alone, and the
backward runs each tile's forward and backward in turn: two forwards, as under plain recomputation.

    tiles checkpointed inside a checkpointed layer   forward | recomputed layer: forward | each tile: forward, backward
    here                                             forward | recomputed layer: none    | each tile: forward, backward

The middle one is not needed, because no gradient asks for the value of an MLP's output where it is only added to the
residual stream. torch's checkpoint says so itself: it stops the recomputation when the last tensor that the backward
wants is there, which then is the MLP's input. Where it goes on instead (a norm behind the MLP, as in Gemma 2), the
output is computed, and there are three forwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from lightning_modules.memory.compute_state import ComputeState, autocast_dtype, uncached_autocast
from lightning_modules.memory.recomputed_layer import Recomputation

# N tokens of the batch, H hidden size


class TiledMlp:
    """Takes the place of an MLP's `forward`; parameters, names and adapters inside stay what they are.

    Gradients are those of the plain MLP; the weights' are added up over tiles in fp32. With dropout inside (LoRA's), a
    tile draws the same mask in both of its forwards, but the masks are others than those of the MLP in one piece.

    Args:
        mlp: A module that works on each token alone, [..., H] -> [..., H].
        tile_size: Tokens of a tile; from 4096 on, products on a GPU lose little.
        recomputation: Says when the layer around it is being recomputed.
    """

    def __init__(self, mlp: nn.Module, *, tile_size: int, recomputation: Recomputation) -> None:
        self.mlp = _Plain(mlp)
        self.tile_size = tile_size
        self.recomputation = recomputation
        self.output_dtype = torch.float32  # of the latest forward, which is the one that is recomputed

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return self.compute(hidden_states)
        trained = [parameter for parameter in self.mlp.parameters() if parameter.requires_grad]
        blank = self.recomputation.running
        output = _Tiles.apply(self, blank, hidden_states, *trained)
        assert isinstance(output, torch.Tensor)
        if blank:  # the recomputation was not stopped: something behind the MLP wants its output
            output.detach().copy_(self.compute(hidden_states))
        return output

    @torch.no_grad()
    def compute(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The output, without a graph."""
        flat = hidden_states.flatten(0, -2)  # [N, H]
        dtype = autocast_dtype(flat.device)
        parameters = self.working_parameters(dtype)
        output: torch.Tensor | None = None
        with uncached_autocast(flat.device, dtype):
            for tile in self.tiles(len(flat)):
                result = self.run(parameters, flat[tile])
                if output is None:
                    output = result.new_empty(len(flat), result.shape[-1])
                output[tile] = result
        assert output is not None, "a batch has at least one token"
        self.output_dtype = output.dtype
        return output.unflatten(0, hidden_states.shape[:-1])

    def tiles(self, num_tokens: int) -> Iterator[slice]:
        return (slice(start, start + self.tile_size) for start in range(0, num_tokens, self.tile_size))

    def run(self, parameters: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.mlp, parameters, (tokens,))

    def working_parameters(self, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        """What stands for the parameters in all tiles of one pass, by name; those left out stand for themselves.

        Leaves of their own for what is trained, and the casts that autocast would make anew in every tile.
        """
        linears = {f"{name}." for name, module in self.mlp.named_modules() if type(module) is nn.Linear}
        found = {}
        for name, parameter in self.mlp.named_parameters():
            casts = dtype is not None and parameter.dtype == torch.float32 and f"{name.rpartition('.')[0]}." in linears
            if casts or parameter.requires_grad:
                working = parameter.detach().to(dtype) if casts else parameter.detach()
                found[name] = working.requires_grad_(parameter.requires_grad)
        return found


class _Plain(nn.Module):
    """The MLP under its forward of before."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.plain_forward = mlp.forward

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.plain_forward(tokens)


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tiled: TiledMlp, blank: bool, hidden_states: torch.Tensor, *trained: torch.Tensor
    ) -> torch.Tensor:
        ctx.tiled = tiled
        ctx.state = ComputeState.now(hidden_states.device)
        ctx.save_for_backward(hidden_states)
        if blank:
            return torch.empty_like(hidden_states, dtype=tiled.output_dtype)
        return tiled.compute(hidden_states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (hidden_states,) = ctx.saved_tensors
        tiled: TiledMlp = ctx.tiled
        flat, grad_flat = hidden_states.flatten(0, -2), grad_output.flatten(0, -2)  # [N, H]
        wants_input = ctx.needs_input_grad[2]
        grad_input = torch.empty_like(flat) if wants_input else None
        with torch.enable_grad(), ctx.state.restored():
            parameters = tiled.working_parameters(ctx.state.autocast_dtype)
            trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
            totals: list[torch.Tensor | None] = [None] * len(trained)
            for tile in tiled.tiles(len(flat)):
                tokens = flat[tile].detach().requires_grad_(wants_input)
                inputs = [tokens, *trained] if wants_input else trained
                found = [
                    *torch.autograd.grad(tiled.run(parameters, tokens), inputs, grad_flat[tile], allow_unused=True)
                ]
                if grad_input is not None:
                    grad_input[tile] = found.pop(0)
                totals = [_added(total, gradient) for total, gradient in zip(totals, found, strict=True)]
        shaped = None if grad_input is None else grad_input.view_as(hidden_states)
        own = [parameter for parameter in tiled.mlp.parameters() if parameter.requires_grad]
        grads = (None if g is None else g.to(parameter.dtype) for g, parameter in zip(totals, own, strict=True))
        return None, None, shaped, *grads


def _added(total: torch.Tensor | None, gradient: torch.Tensor | None) -> torch.Tensor | None:
    """The sum so far, in fp32 at least."""
    if gradient is None:  # an adapter that is not the active one
        return total
    if total is None:
        return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return total.add_(gradient)
