"""FSDP2: parameters sharded in fp32, computed in the working precision.

Parameters stay fp32 and a `MixedPrecisionPolicy` casts them per layer; a module-wide cast would take the RoPE tables
along. Runs on GPUs, and over gloo on a laptop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices, with checkpoints that are folders and can be resumed by any number of devices."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # The optimizer state of one file is numbered by parameter group; Lightning would read the numbers as the
        # model's order of parameters, and give moments to others wherever the shapes allow it.
        if Path(checkpoint_path).is_file():
            raise ValueError(
                f"checkpoint {checkpoint_path} was written by an unsharded run; resume it with strategy=single or"
                " strategy=ddp, or set resume=never"
            )
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)


def shard(model: CausalLMWithLoss, *, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Shard a model in place: each decoder layer on its own, and the rest with the loss in one group.

    Args:
        model: Backbone and loss; the head's shard is gathered inside the model's own forward.
        mesh: The data-parallel mesh.
        compute_dtype: Parameters are cast to it for computing; gradients are reduced in fp32.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
    layer_policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    layers: list[nn.Module] = list(model.causal_lm.get_decoder().layers)  # type: ignore[arg-type]
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=layer_policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
