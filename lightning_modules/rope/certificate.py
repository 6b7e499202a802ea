"""What a live model's rotary modules hold, beside what its configuration says they should.

`contract.py` stops a training run at the first fault; here all of them are listed in words, for the gate before the
first step and for `recipes.verify`, and tables can be compared that belong to no model.
"""

from __future__ import annotations

import copy
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
from lightning_modules.rope.config import by_layer_kind, head_dim_of, second_theta, text_config
from lightning_modules.rope.contract import rotary_modules

# d rotary dimensions of a head

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Values of rope_type whose modules rewrite their tables in the forward, by the longest position they meet."""


class RotaryTable(NamedTuple):
    """One frequency table: of a live module, or as a configuration would have it.

    Attributes:
        name: Where it is, such as `model.rotary_emb`.
        rope_parameters: What the configuration says about it.
        inv_freq: [d / 2], as it is, whatever its dtype.
        attention_factor: What cos and sin are multiplied by.
    """

    name: str
    rope_parameters: dict[str, Any]
    inv_freq: torch.Tensor
    attention_factor: float


def live_tables(model: torch.nn.Module) -> dict[str | None, list[RotaryTable]]:
    """Layer kind (None where all layers share one) -> the tables of the language model's rotary modules.

    Where the rope_type follows the length, the table that the module returns to at short lengths.

    Raises:
        ValueError: If there is no rotary module, or one is not built from the model's config.
    """
    config = text_config(model.config)
    tables: dict[str | None, list[RotaryTable]] = {}
    for name, module in rotary_modules(model).items():
        for kind, parameters in by_layer_kind(config, rope_parameters_of(config)).items():
            prefix, place = ("", name) if kind is None else (f"{kind}_", f"{name}.{kind}")
            follows_length = parameters.get("rope_type") in LENGTH_DEPENDENT
            inv_freq = getattr(module, f"{prefix}{'original_' if follows_length else ''}inv_freq", None)
            if inv_freq is not None:
                attention_factor = float(getattr(module, f"{prefix}attention_scaling", 1.0))
                tables.setdefault(kind, []).append(RotaryTable(place, parameters, inv_freq, attention_factor))
    return tables


def expected_tables(config: PreTrainedConfig) -> dict[str | None, RotaryTable]:
    """Layer kind -> the closed form of what a configuration says; transformers' own where there is none here."""
    config, tables = text_config(config), {}
    length = int(config.max_position_embeddings)  # type: ignore[attr-defined]
    for kind, parameters in by_layer_kind(config, rope_parameters_of(config)).items():
        name = "all layers" if kind is None else f"{kind} layers"
        if parameters["rope_type"] in CLOSED_FORMS:
            inv_freq = closed_form_inv_freq(parameters, head_dim_of(config))
            attention_factor = closed_form_attention_factor(parameters, max_position_embeddings=length)
        else:
            initialise = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
            inv_freq, attention_factor = initialise(copy.deepcopy(config), torch.device("cpu"), layer_type=kind)
        tables[kind] = RotaryTable(name, parameters, inv_freq, float(attention_factor))
    return tables


def rope_parameters_of(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest |ours / theirs - 1|; infinite where the sizes differ or something is not a number."""
    if ours.shape != theirs.shape or "meta" in (ours.device.type, theirs.device.type):
        return float("inf")
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    difference = ((ours - theirs) / theirs).abs().nan_to_num(nan=float("inf"))
    return float(torch.where(ours == theirs, 0.0, difference).max())  # dimensions that are not rotated have 0


def same_table(ours: RotaryTable, theirs: RotaryTable) -> bool:
    """Whether two tables are equal but for the rounding of fp32."""
    tolerance = table_tolerance(theirs.rope_parameters)
    same_factor = abs(ours.attention_factor / theirs.attention_factor - 1) <= tolerance
    return same_factor and relative_difference(ours.inv_freq, theirs.inv_freq) <= tolerance


def rope_faults(model: torch.nn.Module) -> list[str]:
    """Everything in which a live model and its configuration disagree about RoPE, a sentence each."""
    config: Any = text_config(model.config)
    length, faults = config.max_position_embeddings, []
    if type(length) is not int or length < 1:
        faults.append(f"max_position_embeddings is {length!r} and not a positive integer; correct it in config.json")
        if not isinstance(length, int | float) or length < 1:
            return faults
    try:
        live, expected = live_tables(model), expected_tables(config)
    except ValueError as error:
        return [*faults, str(error)]
    faults += _second_theta_faults(config, expected)
    for kind, tables in live.items():
        for table in tables:
            faults += _table_faults(table, expected[kind])
    return faults


def _second_theta_faults(config: Any, expected: dict[str | None, RotaryTable]) -> list[str]:
    """A `rope_theta` beside `rope_parameters`, where setting it changes nothing but what is saved."""
    second, thetas = second_theta(config), {table.rope_parameters["rope_theta"] for table in expected.values()}
    if second is None or second in thetas:
        return []
    computed = " and ".join(f"{theta:g}" for theta in sorted(thetas))
    return [
        f"the config has a second theta, rope_theta={second:g}, beside the {computed} of rope_parameters, which the "
        "model computes with; set rope_parameters and remove config.rope_theta"
    ]


def _table_faults(table: RotaryTable, expected: RotaryTable) -> list[str]:
    """In what one live table differs from the closed form of the configuration."""
    name, parameters = table.name, expected.rope_parameters
    if table.inv_freq.dtype != torch.float32:
        dtype = str(table.inv_freq.dtype).removeprefix("torch.")
        return [f"{name}.inv_freq is {dtype} and not float32, which is radians off at long range; patch RoPE last"]
    if same_table(table, expected):
        return []
    if (difference := relative_difference(table.inv_freq, expected.inv_freq)) > table_tolerance(parameters):
        return [
            f"{name}.inv_freq is not that of config.rope_parameters={parameters} (largest relative difference "
            f"{difference:.1e}); change RoPE with rope=…, not in the config of a model that is built"
        ]
    return [
        f"{name} multiplies cos and sin by {table.attention_factor:g}, not by {expected.attention_factor:g} as "
        f"config.rope_parameters={parameters} say; patch RoPE after whatever changed it"
    ]
