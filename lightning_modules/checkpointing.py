"""Checkpoints that are whole or absent, and finding the newest one.

Lightning stages a checkpoint in the system's temporary folder and moves it; across devices that is a copy, and a killed
copy leaves a truncated file under the final name. Here the temporary file lies beside its target.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_modules.peft.record import refuse_other

METADATA = "meta.pt"
"""Lightning writes it last into the folder of a distributed checkpoint, so a folder with it is complete."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, flushes it to the disk, and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_of(target)
        try:
            with partial.open("wb") as handle:
                torch.save(checkpoint, handle)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(target)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if (cause := disk_error(error)) is None:
                raise
            raise not_written(target, str(cause)) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if Path(path).is_dir():
            raise ValueError(
                f"checkpoint {path} is sharded; resume it with strategy=fsdp, on any number of devices,"
                " or set resume=never"
            )
        # On the CPU first: a GPU would hold the loaded optimizer state beside the live one.
        return super().load_checkpoint(path, map_location=map_location or _on_cpu, weights_only=weights_only)


def partial_of(target: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return target.with_name(f".{target.name}.partial")


def disk_error(error: BaseException) -> OSError | None:
    """What the disk said, which torch's zip writer buries under a RuntimeError of its own; None if it said nothing."""
    cause = error if isinstance(error, OSError) else error.__context__
    return cause if isinstance(cause, OSError) else None


def not_written(target: Path, reason: str) -> ValueError:
    return ValueError(f"checkpoint {target} could not be written ({reason}); the previous one is intact")


def _on_cpu(storage: Any, location: str) -> Any:
    return storage


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in a run's `checkpoints/` folder, if there is one."""
    return max(checkpoints(folder), key=step_of, default=None)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, in the order of their steps."""
    return sorted((path for path in folder.glob("step-*.ckpt") if is_complete(path)), key=step_of)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end; torch's files are zip archives, whose directory comes last."""
    file = checkpoint / METADATA if checkpoint.is_dir() else checkpoint
    return file.is_file() and zipfile.is_zipfile(file)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name, `step-0000120.ckpt`."""
    return int(checkpoint.stem.split("-")[1])


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights of a training checkpoint, one file or sharded, into a transformers model.

    Args:
        checkpoint: A file, or the folder of a distributed checkpoint.
        model: The transformers model that the run trained; its parameters are overwritten. For a run with an adapter,
            its base model with such an adapter in it, whose parameters alone are.

    Raises:
        ValueError: It holds an adapter of another base model or shape, or the model has none for it.
    """
    _refuse_other_adapter(checkpoint, model)
    prefix = "model.causal_lm."
    if checkpoint.is_dir():
        from torch.distributed.checkpoint.state_dict_loader import load

        state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*intent is to load in a single process")  # it is
            load({"state_dict": state}, checkpoint_id=str(checkpoint), no_dist=True)
    else:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    model.load_state_dict(own)


def _refuse_other_adapter(checkpoint: Path, model: torch.nn.Module) -> None:
    file = checkpoint / METADATA if checkpoint.is_dir() else checkpoint
    said = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    refuse_other(said.get("adapter"), model, what=f"checkpoint {checkpoint}")
