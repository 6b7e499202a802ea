"""Writes `rope_parameters` into a live model, and reads them back from its rotary modules.

Changing `model.config` alone changes nothing: the tables are buffers, computed when the module is built, in no state
dict, cast by `model.to(bfloat16)` (1.8 rad off at position 1024) and left as garbage by `to_empty()`. So every rotary
module is built anew from the changed config, which mends all of these at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lightning_modules.rope.methods import RopeMethod

# d rotary dimensions of a head

CLOSED_FORMS = ("default", "linear")
"""Values of rope_type whose tables `closed_form_inv_freq` computes."""


class RopeBeforePatching(NamedTuple):
    """What a model's RoPE was when it was loaded, kept on the model so that a method is never applied to its result."""

    rope_parameters: dict[str, Any]
    original_length: int


def original_length(config: PreTrainedConfig) -> int:
    """Tokens that the model of this config reads as it is.

    Raises:
        ValueError: If max_position_embeddings is missing or not a whole number.
    """
    length = getattr(_text_config(config), "max_position_embeddings", None)
    # Some exporters write 32768.0, which is a whole number all the same.
    if not isinstance(length, int | float) or length % 1 != 0 or length < 1:
        raise ValueError(f"max_position_embeddings={length} is not a positive integer; correct it in config.json")
    return int(length)


def patch_rope(model: torch.nn.Module, rope_parameters: dict[str, Any], *, max_position_embeddings: int) -> None:
    """Gives the model and its config these `rope_parameters`, in place; a second call changes nothing more.

    Rotary modules come back in fp32 on the device they were on, or on the CPU where they were on meta: call it again
    after `to_empty()`.

    Args:
        model: A transformers model, wrapped or not, whose config is `model.config`.
        rope_parameters: Complete, with rope_type and rope_theta.
        max_position_embeddings: Tokens that the model then reads.

    Raises:
        ValueError: If the parameters are incomplete, or the model has no rotary module or one kind a layer type.
    """
    for key in ("rope_type", "rope_theta"):
        if rope_parameters.get(key) is None:
            raise ValueError(f"rope_parameters={rope_parameters} lacks {key}; give all keys, none is inferred")
    config = _text_config(model.config)
    current_rope_parameters(config)  # raises for the nested form
    rotary_modules = _rotary_modules(model)
    config.max_position_embeddings = int(max_position_embeddings)
    config.rope_parameters = dict(rope_parameters)
    config.standardize_rope_params()
    config.validate_rope()
    for name, old in rotary_modules.items():
        device = next(old.buffers()).device
        parent_name, _, child_name = name.rpartition(".")
        with torch.device("cpu" if device.type == "meta" else device):
            new = type(old)(config)  # pyright: ignore[reportCallIssue]
        setattr(model.get_submodule(parent_name), child_name, new.train(old.training))


def apply_rope_method(model: torch.nn.Module, method: RopeMethod, context_length: int) -> dict[str, Any]:
    """Extends the model's RoPE in place, with no training, and asserts what the live modules then hold.

    The method always starts from the RoPE that the model was loaded with, so that calling this twice does not double
    the change, and calling it with another method replaces the first.

    Returns:
        The `rope_parameters` now in force.

    Raises:
        ValueError: If the method cannot take this model to `context_length`.
        RuntimeError: If a rotary module does not hold what was written.
    """
    # The record stays on the transformers model itself: a wrapper such as PEFT's may come between two calls.
    owner: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    before = getattr(owner, "rope_before_patching", None)
    if before is None:
        config = _text_config(model.config)
        before = RopeBeforePatching(current_rope_parameters(config), original_length(config))
    rope_parameters = method.rope_parameters(
        before.rope_parameters, original_length=before.original_length, context_length=context_length
    )
    max_position_embeddings = method.covered_length(before.original_length, context_length)
    patch_rope(model, rope_parameters, max_position_embeddings=max_position_embeddings)
    owner.rope_before_patching = before
    assert_rope(model, rope_parameters, max_position_embeddings)
    return rope_parameters


def closed_form_inv_freq(rope_parameters: dict[str, Any], head_dim: int) -> torch.Tensor:
    """theta_i = rope_theta ** (-2i / d) / factor, written without transformers so that it can judge it.

    Args:
        rope_parameters: Of rope_type default or linear.
        head_dim: Size of a head; d is its share partial_rotary_factor.

    Returns:
        [d / 2] fp32.

    Raises:
        ValueError: If the rope_type has no closed form here.
    """
    rope_type = rope_parameters["rope_type"]
    if rope_type not in CLOSED_FORMS:
        raise ValueError(f"rope_type={rope_type} has no closed form here; allowed are {', '.join(CLOSED_FORMS)}")
    d = int(head_dim * rope_parameters.get("partial_rotary_factor", 1.0))
    # The exponent is rounded to fp32 as every implementation does, the power is not: rounding 2i / d alone moves
    # theta_i by up to 7e-7 (theta 3.6e9, d 120), most of the tolerance of `assert_rope`.
    exponents = (torch.arange(0, d, 2, dtype=torch.float32) / d).double()
    factor = rope_parameters["factor"] if rope_type == "linear" else 1.0
    return (float(rope_parameters["rope_theta"]) ** -exponents / factor).float()


def assert_rope(model: torch.nn.Module, rope_parameters: dict[str, Any], max_position_embeddings: int) -> None:
    """Reads every live rotary module and the config back, and compares with what they should hold.

    Raises:
        RuntimeError: Naming the first module, or the config key, that holds something else.
    """
    config = _text_config(model.config)
    if dict(config.rope_parameters) != rope_parameters:
        raise RuntimeError(f"config.rope_parameters is {config.rope_parameters}, not {rope_parameters}")
    length = config.max_position_embeddings
    if type(length) is not int or length != max_position_embeddings:
        raise RuntimeError(f"config.max_position_embeddings is {length!r}, not {max_position_embeddings}")
    expected, scaling = _expected_tables(config, rope_parameters)
    for name, module in _rotary_modules(model).items():
        inv_freq, attention_scaling = module.inv_freq, module.attention_scaling
        assert isinstance(inv_freq, torch.Tensor)
        if inv_freq.dtype != torch.float32:
            raise RuntimeError(f"{name}.inv_freq is {inv_freq.dtype}, not torch.float32; patch RoPE after conversion")
        if attention_scaling != scaling:
            raise RuntimeError(f"{name}.attention_scaling is {attention_scaling}, not {scaling}")
        # These two rewrite their tables in the forward, by the longest position they meet.
        if rope_parameters["rope_type"] in ("dynamic", "longrope"):
            continue
        if inv_freq.device.type == "meta" or inv_freq.shape != expected.shape:
            raise RuntimeError(f"{name}.inv_freq is {list(inv_freq.shape)} on {inv_freq.device}; patch RoPE once real")
        if not torch.allclose(inv_freq.cpu(), expected, rtol=1e-6, atol=0.0):
            raise RuntimeError(
                f"{name}.inv_freq does not hold {rope_parameters}: largest relative difference "
                f"{((inv_freq.cpu() - expected) / expected).abs().max():.1e}; patch RoPE after whatever rewrote it"
            )


def current_rope_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """A copy of the config's `rope_parameters`.

    Raises:
        ValueError: If they are missing, or differ by layer type as Gemma 3's do.
    """
    parameters = getattr(_text_config(config), "rope_parameters", None)
    if not parameters or "rope_theta" not in parameters:
        raise ValueError(f"rope_parameters={parameters} are not one RoPE for all layers; choose another model")
    return dict(parameters)


def _expected_tables(config: PreTrainedConfig, rope_parameters: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """inv_freq [d / 2] fp32 and attention scaling; transformers' own where there is no closed form here."""
    if rope_parameters["rope_type"] not in CLOSED_FORMS:
        return ROPE_INIT_FUNCTIONS[rope_parameters["rope_type"]](config, torch.device("cpu"))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return closed_form_inv_freq(rope_parameters, head_dim), 1.0


def _rotary_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The language model's rotary modules by name; those of a vision tower hold another config."""
    config = _text_config(model.config)
    modules = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("RotaryEmbedding") and getattr(module, "config", None) is config
    }
    if not modules:
        raise ValueError(f"{type(model).__name__} has no rotary module built from its config; choose another model")
    return modules


def _text_config(config: Any) -> PreTrainedConfig:
    return config.get_text_config(decoder=True)
