"""What a checkpoint or a folder with an adapter alone says of the model that it belongs to.

An adapter fits any base model of its shapes, and trained on one it is noise on another, without an error. So whatever
holds an adapter alone also holds a fingerprint of its base model's weights and the adapter's shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

SAMPLES = 4096
"""Values of each parameter that tell a base model from another."""

Record = dict[str, Any]
"""base: str, name: str, and of the adapter r, alpha, rslora, target_modules, trained_modules."""

SHAPE_KEYS = ("r", "alpha", "rslora", "target_modules", "trained_modules")


def base_fingerprint(model: torch.nn.Module) -> str:
    """Tells the weights of a model from others of its shapes, whatever the dtype that holds the same values.

    It reads evenly spaced values of each parameter and not all: 291 parameters of 8 billion numbers cost 1.2 million.
    """
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()[:: max(1, parameter.numel() // SAMPLES)]
        found.update(f"{name} {list(parameter.shape)} ".encode())
        found.update(values.float().cpu().numpy().tobytes())
    return found.hexdigest()


def record_of(model: Any) -> Record | None:
    """The record that an adapter left on the model that it was put into; None where there is none."""
    return getattr(model, "adapter_record", None)


def refuse_other(theirs: Record | None, model: Any, *, what: str) -> None:
    """Refuse what was made for another base model or for another adapter than the model has.

    Args:
        theirs: The record of a checkpoint or a folder; None where it has none.
        model: The transformers model, with an adapter or without.
        what: The checkpoint or the folder, for the message.

    Raises:
        ValueError: In one sentence that names the key to change.
    """
    ours = record_of(model)
    if theirs is None and ours is None:
        return
    if ours is None:
        raise ValueError(f"{what} holds an adapter alone; set peft to what it was trained with")
    if theirs is None:
        raise ValueError(f"{what} holds a whole model and no adapter; set peft=none")
    if theirs["base"] != ours["base"]:
        raise ValueError(
            f"{what} holds an adapter of another base model ({theirs['name']}) than this run's ({ours['name']}), or of"
            " other weights under that name; set model.source to its own"
        )
    if faults := shape_faults(theirs, ours):
        raise ValueError(f"{what} holds an adapter of another shape: {'; '.join(faults)}")


def shape_faults(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Where two adapters differ, each with the key to change."""
    faults = []
    for key in SHAPE_KEYS:
        if key in theirs and theirs[key] != ours[key]:
            setting = f"set peft.{key}={theirs[key]}" if key != "trained_modules" else "set peft to the one it was of"
            faults.append(f"{key}={theirs[key]} there and {ours[key]} here, {setting}")
    return faults
