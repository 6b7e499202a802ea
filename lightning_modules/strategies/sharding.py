"""FSDP2: parameters sharded in fp32, computed in the working precision.

Parameters stay fp32 and a `MixedPrecisionPolicy` casts them per layer; a module-wide cast would take the RoPE tables
along. Runs on GPUs, and over gloo on a laptop.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lightning_modules.checkpointing import METADATA, disk_error, not_written, partial_of
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss

EVERY_MICRO_BATCH = "every_micro_batch"
REDUCTIONS = (EVERY_MICRO_BATCH, "once_a_step")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices, with checkpoints that are folders and can be resumed by any number of devices.

    Args:
        data_parallel_size: Devices that share a model.
        reduce_gradients: `every_micro_batch`: a device holds its share of the gradients; `once_a_step`: all of them in
            fp32 until the step's last micro-batch, with fewer collectives.
        process_group_backend: `gloo` without GPUs.

    Raises:
        ValueError: `reduce_gradients` is not known.
    """

    def __init__(
        self,
        *,
        data_parallel_size: int,
        reduce_gradients: str = EVERY_MICRO_BATCH,
        process_group_backend: str | None = None,
    ) -> None:
        if reduce_gradients not in REDUCTIONS:
            raise ValueError(
                f"strategy.reduce_gradients={reduce_gradients} is not known; allowed are {', '.join(REDUCTIONS)}"
            )
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
        )
        self.reduce_gradients = reduce_gradients

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the folder beside its final place and rename it, so that it is whole or absent.

        Raises:
            ValueError: A disk could not take it, on whichever rank; all ranks raise it together.
        """
        target = Path(self.broadcast(filepath))
        partial = partial_of(target)
        try:
            self._on_first_rank(lambda: _make_empty(partial), target)
            self._together(lambda: super(ShardedStrategy, self).save_checkpoint(checkpoint, partial), target)
            self._on_first_rank(lambda: _put_in_place(partial, target), target)
        except BaseException:
            if self.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _on_first_rank(self, act: Callable[[], None], target: Path) -> None:
        self._together(act if self.is_global_zero else lambda: None, target)

    def _together(self, act: Callable[[], None], target: Path) -> None:
        """Act, and where a disk fails one rank, raise on all: none waits for another in a collective for ever."""
        failure: BaseException | None = None
        reason = None
        try:
            act()
        except (CheckpointException, OSError, RuntimeError) as error:
            if (reason := _reason(error)) is None:
                raise
            failure = error
        reasons: list[str | None] = [None] * self.world_size
        dist.all_gather_object(reasons, reason)
        if said := list(filter(None, reasons)):
            raise not_written(target, said[0]) from failure

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # The optimizer state of one file is numbered by parameter group; Lightning would read the numbers as the
        # model's order of parameters, and give moments to others wherever the shapes allow it.
        if Path(checkpoint_path).is_file():
            raise ValueError(
                f"checkpoint {checkpoint_path} was written by an unsharded run; resume it with strategy=single or"
                " strategy=ddp, or set resume=never"
            )
        # Lightning asks the module about the rest of a checkpoint after the weights are read; a foreign adapter has
        # to be refused before.
        assert self.lightning_module is not None
        said = torch.load(Path(checkpoint_path) / METADATA, map_location="cpu", weights_only=weights_only)
        self.lightning_module.on_load_checkpoint(said)
        return super().load_checkpoint(checkpoint_path, weights_only=weights_only)


def shard(model: CausalLMWithLoss, *, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Shard a model in place: each decoder layer on its own, and the rest with the loss in one group.

    Args:
        model: Backbone and loss; the head's shard is gathered inside the model's own forward.
        mesh: The data-parallel mesh.
        compute_dtype: Parameters are cast to it for computing; gradients are reduced in fp32. Frozen parameters that
            are held in it already are gathered as they are.

    Raises:
        ValueError: Weights are held in 4 bits, which cannot be sharded.
    """
    if getattr(model.causal_lm, "is_loaded_in_4bit", False):
        raise ValueError("peft=qlora holds weights in 4 bits, which strategy=fsdp cannot shard; set strategy=ddp")
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, output_dtype=torch.float32)
    layer_policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    layers: list[nn.Module] = list(model.causal_lm.get_decoder().layers)  # type: ignore[arg-type]
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=layer_policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir(parents=True)


def _put_in_place(partial: Path, target: Path) -> None:
    if target.is_dir():  # of an earlier run of this step
        shutil.rmtree(target)
    partial.replace(target)


def _reason(error: BaseException) -> str | None:
    """What the disk said, on whichever rank."""
    if not isinstance(error, CheckpointException):
        cause = disk_error(error)
        return None if cause is None else str(cause)
    # Exceptions that travelled between ranks have lost what they came from, such as the disk's error below torch's own.
    failures = [failure for failure, _ in error.failures.values()]
    cause = next((cause for failure in failures if (cause := disk_error(failure))), failures[0])
    return (str(cause).splitlines() or [type(cause).__name__])[0]
