"""FSDP2: parameters sharded in fp32, computed in the working precision.

Parameters stay fp32 and a `MixedPrecisionPolicy` casts them per layer; a module-wide cast would take the RoPE tables
along. Runs on GPUs, and over gloo on a laptop.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss


def shard(model: CausalLMWithLoss, *, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Shard a model in place: each decoder layer on its own, and the rest with the loss in one group.

    Args:
        model: Backbone and loss; the head's shard is gathered inside the model's own forward.
        mesh: The data-parallel mesh.
        compute_dtype: Parameters are cast to it for computing; gradients are reduced in fp32.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
    layer_policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    layers: list[nn.Module] = list(model.causal_lm.get_decoder().layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=layer_policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
