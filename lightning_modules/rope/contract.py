"""Whether live rotary modules hold what the config says, judged by closed forms that transformers had no part in."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lightning_modules.rope.closed_form import (
    CLOSED_FORMS,
    closed_form_attention_factor,
    closed_form_inv_freq,
    table_tolerance,
)
from lightning_modules.rope.config import (
    by_layer_kind,
    head_dim_of,
    long_range_parameters,
    second_theta,
    text_config,
)

# d rotary dimensions of a head


class LiveTable(NamedTuple):
    """One frequency table of one rotary module; modules for several layer kinds hold one for each."""

    name: str  # dotted, as in model.model.rotary_emb.full_attention_inv_freq
    module: torch.nn.Module
    prefix: str  # of its attributes: "" or "full_attention_"
    rope_parameters: dict[str, Any]


def rotary_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The language model's rotary modules by name; those of a vision tower hold a config of another class.

    Raises:
        ValueError: If there is none, or if one has a config of its own, which the model's would not describe.
    """
    config = text_config(model.config)
    modules = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("RotaryEmbedding") and type(getattr(module, "config", None)) is type(config)
    }
    if not modules:
        raise ValueError(f"{type(model).__name__} has no rotary module built from its config; choose another model")
    for name, module in modules.items():
        if module.config is not config:
            raise ValueError(f"{name} is built from a config of its own, not the model's; choose another model")
    return modules


def assert_rope(model: torch.nn.Module, rope_parameters: dict[str, Any], max_position_embeddings: int) -> None:
    """Reads every live rotary module and the config back, and compares with what they should hold.

    Args:
        model: A transformers model, wrapped or not, whose config is `model.config`.
        rope_parameters: Complete, nested by layer kind where the config's are.
        max_position_embeddings: Of the config.

    Raises:
        RuntimeError: Naming the first module, or the config key, that holds something else.
    """
    config = text_config(model.config)
    _assert_config(config, rope_parameters, max_position_embeddings)
    for name, module in rotary_modules(model).items():
        for kind, parameters in by_layer_kind(config, rope_parameters).items():
            prefix = "" if kind is None else f"{kind}_"
            if hasattr(module, f"{prefix}inv_freq"):
                _assert_table(LiveTable(f"{name}.{prefix}inv_freq", module, prefix, parameters), config)
            elif kind in (None, "full_attention"):
                raise RuntimeError(f"{name} has no {prefix}inv_freq to check; choose another model")


def _assert_config(config: Any, rope_parameters: dict[str, Any], max_position_embeddings: int) -> None:
    if dict(config.rope_parameters) != rope_parameters:
        raise RuntimeError(f"config.rope_parameters is {config.rope_parameters}, not {rope_parameters}")
    length = config.max_position_embeddings
    if type(length) is not int or length != max_position_embeddings:
        raise RuntimeError(f"config.max_position_embeddings is {length!r}, not {max_position_embeddings}")
    long_range = long_range_parameters(config, rope_parameters)
    theta, other = long_range["rope_theta"], second_theta(config)
    if other is not None and other != theta:
        raise RuntimeError(f"config.rope_theta is {other}, a second theta beside rope_theta={theta} in rope_parameters")
    before = long_range.get("original_max_position_embeddings")
    other = getattr(config, "original_max_position_embeddings", before)
    if before is not None and other != before:
        raise RuntimeError(f"config.original_max_position_embeddings is {other}, not {before} as in rope_parameters")


def _assert_table(table: LiveTable, config: Any) -> None:
    name, module, prefix, parameters = table
    inv_freq = getattr(module, f"{prefix}inv_freq")
    if inv_freq.dtype != torch.float32:
        raise RuntimeError(f"{name} is {inv_freq.dtype}, not torch.float32; patch RoPE after conversion")
    at_rest, scaling = _expected(config, table)
    if inv_freq.device.type == "meta" or inv_freq.shape != at_rest.shape:
        raise RuntimeError(
            f"{name} has {len(inv_freq)} frequencies on {inv_freq.device}, not {len(at_rest)} of a real device;"
            " patch RoPE once the model is real"
        )
    live_scaling = getattr(module, f"{prefix}attention_scaling")
    if not math.isclose(live_scaling, scaling, rel_tol=1e-9):
        raise RuntimeError(f"{name.removesuffix('inv_freq')}attention_scaling is {live_scaling}, not {scaling}")
    rope_type = parameters["rope_type"]
    if rope_type not in ("dynamic", "longrope"):
        _assert_close(inv_freq, at_rest, table)
        return
    # These two rewrite inv_freq in the forward from what they cached, by the longest position that they meet.
    _assert_close(getattr(module, f"{prefix}original_inv_freq"), at_rest, table, name=f"{prefix}original_inv_freq")
    if rope_type == "dynamic":
        _assert_dynamic(table, config)
        return
    beyond, _ = _expected(config, table, seq_len=parameters["original_max_position_embeddings"] + 1)
    cached = getattr(module, f"{prefix}long_inv_freq", None)
    if cached is not None:
        _assert_close(cached, beyond, table, name=f"{prefix}long_inv_freq")
    is_short = _relative_difference(inv_freq, at_rest) <= table_tolerance(parameters)
    _assert_close(inv_freq, at_rest if is_short else beyond, table)


def _assert_dynamic(table: LiveTable, config: Any) -> None:
    _, module, prefix, _ = table
    if module.original_max_seq_len != config.max_position_embeddings:
        raise RuntimeError(
            f"{table.name.removesuffix('inv_freq')}original_max_seq_len is {module.original_max_seq_len}, not"
            f" {config.max_position_embeddings}; patch RoPE after whatever changed the config"
        )
    longest: Any = getattr(module, f"{prefix}max_seq_len_cached", module.max_seq_len_cached)
    expected, _ = _expected(config, table, seq_len=int(longest))
    _assert_close(getattr(module, f"{prefix}inv_freq"), expected, table)


def _expected(config: PreTrainedConfig, table: LiveTable, seq_len: int | None = None) -> tuple[torch.Tensor, float]:
    """inv_freq [d / 2] fp32 and attention scaling; transformers' own where there is no closed form here."""
    parameters, length = table.rope_parameters, config.max_position_embeddings  # type: ignore[attr-defined]
    if parameters["rope_type"] not in CLOSED_FORMS:
        kind = table.prefix.removesuffix("_") or None
        return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), layer_type=kind)
    inv_freq = closed_form_inv_freq(parameters, head_dim_of(config), seq_len=seq_len, max_position_embeddings=length)
    return inv_freq, closed_form_attention_factor(parameters, max_position_embeddings=length)


def _assert_close(found: torch.Tensor, expected: torch.Tensor, table: LiveTable, *, name: str | None = None) -> None:
    difference = _relative_difference(found, expected)
    if not difference <= table_tolerance(table.rope_parameters):
        place = table.name if name is None else f"{table.name.rpartition('.')[0]}.{name}"
        raise RuntimeError(
            f"{place} does not hold {table.rope_parameters}: largest relative difference {difference:.1e};"
            " patch RoPE after whatever rewrote it"
        )


def _relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest |found / expected - 1|, where a frequency of 0, a dimension that is not rotated, has to be 0."""
    found, expected = found.detach().cpu().double(), expected.cpu().double()
    quotient = torch.where(found == expected, 0.0, ((found - expected) / expected).abs())
    return float(quotient.max()) if not quotient.isnan().any() else math.inf
