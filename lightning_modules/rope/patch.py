"""Writes `rope_parameters` into a live model.

Changing `model.config` alone changes nothing: the tables are buffers, computed when the module is built, in no state
dict, cast by `model.to(bfloat16)` (1.8 rad off at position 1024) and left as garbage by `to_empty()`. So every rotary
module is built anew from the changed config, which mends all of these at once, and what it cached by length too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_modules.rope.closed_form import CLOSED_FORMS, closed_form_attention_factor, closed_form_inv_freq
from lightning_modules.rope.config import current_rope_parameters, original_length, text_config, write_rope
from lightning_modules.rope.contract import assert_rope, rotary_modules
from lightning_modules.rope.methods import ExtendedRope, RopeMethod
from lightning_modules.rope.resolve import resolve_rope

__all__ = [
    "CLOSED_FORMS",
    "apply_rope_method",
    "assert_rope",
    "closed_form_attention_factor",
    "closed_form_inv_freq",
    "config_before_patching",
    "current_rope_parameters",
    "extend_rope",
    "original_length",
    "patch_rope",
    "resolve_rope",
    "rope_for",
]


def patch_rope(model: torch.nn.Module, rope_parameters: dict[str, Any], *, max_position_embeddings: int) -> None:
    """Gives the model and its config these `rope_parameters`, in place; a second call changes nothing more.

    Rotary modules come back in fp32 on the device they were on, or on the CPU where they were on meta: call it again
    after `to_empty()`. A refused call changes nothing.

    Args:
        model: A transformers model, wrapped (PEFT, FSDP2) or not, whose config is `model.config`.
        rope_parameters: Complete, with rope_type and rope_theta; nested by layer kind where the config's are.
        max_position_embeddings: For the config: tokens that the model then reads, or for rope_type dynamic those that
            it read before.

    Raises:
        ValueError: If the parameters are incomplete or not for this model, or the model has no rotary module.
    """
    config = text_config(model.config)
    modules = rotary_modules(model)
    write_rope(config, rope_parameters, max_position_embeddings=max_position_embeddings)
    for name, old in modules.items():
        device = next(old.buffers()).device
        parent_name, _, child_name = name.rpartition(".")
        with torch.device("cpu"):  # where a loaded model's tables are computed too; a GPU rounds otherwise
            new = type(old)(config)  # pyright: ignore[reportCallIssue]
        new = new if device.type == "meta" else new.to(device)
        setattr(model.get_submodule(parent_name), child_name, new.train(old.training))


def rope_for(model: torch.nn.Module, method: RopeMethod, context_length: int) -> ExtendedRope:
    """What the method makes of the RoPE that the model was loaded with, whatever was applied to it since.

    Raises:
        ValueError: If the method cannot take this model to `context_length`.
    """
    return resolve_rope(config_before_patching(model), method, context_length)


def extend_rope(model: torch.nn.Module, method: RopeMethod, context_length: int) -> ExtendedRope:
    """Extends the model's RoPE in place, with no training, and asserts what the live modules then hold.

    The method always starts from the RoPE that the model was loaded with, so that calling this twice does not double
    the change, and calling it with another method or length replaces the first.

    Returns:
        What is now in force.

    Raises:
        ValueError: If the method cannot take this model to `context_length`.
        RuntimeError: If a rotary module does not hold what was written.
    """
    before = copy.deepcopy(config_before_patching(model))
    rope = rope_for(model, method, context_length)
    patch_rope(model, rope.rope_parameters, max_position_embeddings=rope.max_position_embeddings)
    _owner(model).config_before_patching = before
    assert_rope(model, rope.rope_parameters, rope.max_position_embeddings)
    return rope


def apply_rope_method(model: torch.nn.Module, method: RopeMethod, context_length: int) -> dict[str, Any]:
    """`extend_rope`, where only the `rope_parameters` now in force are of interest."""
    return extend_rope(model, method, context_length).rope_parameters


def config_before_patching(model: Any) -> PreTrainedConfig:
    """The config that the model was loaded with, as `extend_rope` keeps it."""
    before = getattr(_owner(model), "config_before_patching", None)
    return model.config if before is None else before


def _owner(model: torch.nn.Module) -> Any:
    """The transformers model itself, which keeps the record: a wrapper such as PEFT's may come between two calls."""
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
