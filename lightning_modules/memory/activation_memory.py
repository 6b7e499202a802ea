"""What is held of a model's layers between forward and backward, and what is computed again instead.

For T tokens of a model with L layers of hidden size H, in 16 bits, held a layer and the price:

    recompute        held                            computed again
    none             all of it: 22.5 T H (8B)        nothing
    full             its input: T H                  each layer once
    keep_attention   input and attention: 2 T H      each layer once but attention
    every_n_layers   T H / n, and n - 1 inputs       each layer once, and n - 1 of n once more

`offload_to_host` moves the inputs to pinned host memory (host_offload.py), `mlp_tile_size` bounds what one layer's MLP
needs while it is in backward (tiled_mlp.py). `python -m benchmarks.activation_memory` measures all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_modules.memory.host_offload import HostOffload
from lightning_modules.memory.layer_calls import InputStore, OnDevice
from lightning_modules.memory.layer_segments import LayerSegments
from lightning_modules.memory.recomputed_layer import Recomputation, RecomputedLayer
from lightning_modules.memory.tiled_mlp import TiledMlp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECOMPUTE = ("none", "full", "keep_attention", "every_n_layers")


@dataclass(frozen=True, kw_only=True)
class ActivationMemory:
    """How activations are held between forward and backward; loss and gradients are the same for every setting.

    Tiles add the MLP's gradients up in another order, and dropout inside an MLP, an adapter's, draws another mask with
    them; everything else is equal to the bit.

    Args:
        recompute: What the backward computes again: none, full, keep_attention (all of a layer but fused attention),
            or every_n_layers (from the input of one layer in n).
        layers_per_checkpoint: The n of every_n_layers.
        offload_to_host: Layers' inputs wait in pinned host memory.
        keep_on_device: Of these, the inputs of so many last layers stay.
        mlp_tile_size: Tokens whose MLP activations exist at a time; None has them all.

    Raises:
        ValueError: If a setting is not one of the above or does not go with the others.
    """

    recompute: str = "none"
    layers_per_checkpoint: int | None = None
    offload_to_host: bool = False
    keep_on_device: int = 0
    mlp_tile_size: int | None = None

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            raise ValueError(
                f"memory.activations.recompute={self.recompute} is not known; allowed are {', '.join(RECOMPUTE)}"
            )
        if (self.recompute == "every_n_layers") != (self.layers_per_checkpoint is not None):
            raise ValueError(
                f"memory.activations.layers_per_checkpoint={_said(self.layers_per_checkpoint)} with"
                f" recompute={self.recompute}; recompute=every_n_layers takes a number such as 4, and nothing else does"
            )
        if self.layers_per_checkpoint is not None and self.layers_per_checkpoint < 2:
            raise ValueError(
                f"memory.activations.layers_per_checkpoint={self.layers_per_checkpoint} must be at least 2;"
                " for one checkpoint a layer set recompute=full"
            )
        if self.offload_to_host and self.recompute == "none":
            raise ValueError(
                "memory.activations.offload_to_host=true moves the inputs of recomputed layers, but recompute=none;"
                " set recompute=full"
            )
        if self.keep_on_device < 0 or (self.keep_on_device and not self.offload_to_host):
            raise ValueError(
                f"memory.activations.keep_on_device={self.keep_on_device} must be a number of layers,"
                " and 0 without offload_to_host=true"
            )
        if self.mlp_tile_size is not None and self.mlp_tile_size < 1:
            raise ValueError(
                f"memory.activations.mlp_tile_size={self.mlp_tile_size} must be a number of tokens, as 4096, or null"
            )

    def apply(self, causal_lm: PreTrainedModel) -> None:
        """Change how the model's decoder layers run in training; to be called once, after adapters are in.

        Raises:
            ValueError: If the layers are none that transformers can recompute, or have no MLP to cut into tiles.
        """
        layers: list[Any] = list(causal_lm.get_decoder().layers)  # type: ignore[arg-type]
        store = self._store(layers)
        for number, layer in enumerate(layers):
            recomputation = Recomputation()
            if self.mlp_tile_size is not None:
                mlp = _mlp_of(layer)
                mlp.forward = TiledMlp(mlp, tile_size=self.mlp_tile_size, recomputation=recomputation)
            if self.recompute != "none":
                if not hasattr(layer, "gradient_checkpointing"):
                    raise ValueError(
                        f"memory.activations.recompute={self.recompute} needs layers that transformers can recompute,"
                        f" which {type(layer).__name__} is not; set memory=default"
                    )
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = RecomputedLayer(
                    layer=number,
                    store=store,
                    keep_attention=self.recompute == "keep_attention",
                    recomputation=recomputation,
                )

    def _store(self, layers: list[Any]) -> InputStore:
        store: InputStore = OnDevice()
        if self.offload_to_host:
            store = HostOffload(num_layers=len(layers), keep_on_device=self.keep_on_device)
        if self.layers_per_checkpoint is not None:
            store = LayerSegments(layers_per_checkpoint=self.layers_per_checkpoint, store=store, first_layer=layers[0])
        return store


def _mlp_of(layer: nn.Module) -> Any:
    mlp = getattr(layer, "mlp", None)
    if not hasattr(mlp, "down_proj"):
        raise ValueError(
            f"memory.activations.mlp_tile_size needs layers with an MLP of gate, up and down projection, which"
            f" {type(layer).__name__} has not; set mlp_tile_size=null"
        )
    return mlp


def _said(value: Any) -> Any:
    return "null" if value is None else value
