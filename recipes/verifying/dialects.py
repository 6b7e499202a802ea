"""RoPE as newer and as older readers take it from one config.json.

transformers 5 reads `rope_parameters`; transformers 4, and programs like it, `rope_theta` and `rope_scaling`. Where the
keys of one are missing, that one computes its default RoPE without an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lightning_modules.rope.certificate import (
    LENGTH_DEPENDENT,
    RotaryTable,
    expected_tables,
    relative_difference,
    same_table,
)
from recipes.verifying.certificate import OK, SKIPPED, VIOLATION, WARNING, Finding
from recipes.verifying.folder import in_short

OLDER_KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq")

LENGTH_AT_TOP = ("longrope",)
"""Values of rope_type whose original length transformers 4 looks for beside rope_scaling, not in it."""

_FACTOR_ALONE = {"linear": ("factor",), "dynamic": ("factor",)}
ALLOWED_OF_OLD = {
    "phi3": {"longrope": ("short_factor", "long_factor")},  # the factor is the quotient of the lengths there
    "olmo": _FACTOR_ALONE,
    "olmo2": _FACTOR_ALONE,
}
"""Model type -> rope_type -> the keys beside `type` that transformers 4 takes; with any other it refuses the model.

Other rope types it refuses for these models in any form, which is better than a silent default.
"""


def what_older_readers_compute(config: dict[str, Any]) -> Iterator[Finding]:
    """Compares the two dialects of a language model's config by their tables.

    What older readers make of absent keys is what transformers 5 makes of a file of their time: its own conversion
    stands for them, so that none of them is needed here.
    """
    if not config.get("rope_parameters"):
        yield Finding(OK, "config.json has their keys alone, which newer readers take too")
        return
    try:
        newer, older = as_config(newer_dialect(config)), as_config(without(config, "rope_parameters"))
    except ValueError as error:
        yield Finding(SKIPPED, str(error))
        return
    absent = "" if config.get("rope_theta") is not None else " (rope_theta is absent, and this their default)"
    said = f"{described(older.rope_parameters)}{absent}"
    theirs, ours = expected_tables(older), expected_tables(newer)
    if unsayable := [table.name for kind, table in ours.items() if kind not in theirs]:
        yield Finding(WARNING, f"{' and '.join(unsayable)} have a RoPE of their own, which the older keys cannot say")
    elif apart := [words for kind, table in ours.items() for words in _apart(theirs[kind], table)]:
        keys = older_keys(newer.rope_parameters, model_type=newer.model_type)
        yield Finding(
            VIOLATION,
            f"another RoPE, without an error: {said}; {'; '.join(apart)}",
            f"if rope_parameters are right, write into config.json: {json.dumps(keys)[1:-1]}",
        )
    else:
        yield Finding(OK, f"the same RoPE: {said}")


def newer_dialect(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the keys of older readers."""
    return without(config, *OLDER_KEYS)


def older_keys(parameters: dict[str, Any], *, model_type: str) -> dict[str, Any]:
    """The keys that say to older readers what `rope_parameters` say to newer ones.

    Args:
        parameters: The `rope_parameters` of a config, nested by layer kind where they are.
        model_type: Of the same config; Phi-3's older form has fewer keys than others'.
    """
    if "rope_theta" in parameters:
        return _flat(parameters, model_type)
    full, sliding = parameters.get("full_attention"), parameters.get("sliding_attention") or {}
    if not full:
        return {}  # layer kinds that older readers have no keys for
    local = {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}  # Gemma 3's way
    return {**_flat(full, model_type), **local}


def as_config(config: dict[str, Any]) -> PreTrainedConfig:
    """A configuration of transformers from a dictionary; a length such as 512.0 is taken for the integer.

    Raises:
        ValueError: If this transformers does not know the model, or does not take its values.
    """
    length, model_type = config.get("max_position_embeddings"), str(config.get("model_type"))
    if isinstance(length, float) and length.is_integer():
        config = {**config, "max_position_embeddings": int(length)}
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers does not know model_type={model_type}")
    try:
        return CONFIG_MAPPING[model_type].from_dict(json.loads(json.dumps(config)))  # it changes what it is given
    except Exception as error:  # its validation has an exception class of its own, which derives from nothing else
        raise ValueError(f"transformers does not take this config.json: {in_short(error)}") from error


def described(parameters: dict[str, Any]) -> str:
    """`yarn, theta 10000, factor 8, original length 4096`, or the same for each layer type."""
    nested = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    if nested:
        return "; ".join(f"{name}: {described(value)}" for name, value in nested.items())
    theta, factor = parameters.get("rope_theta"), parameters.get("factor")
    parts = [str(parameters.get("rope_type", parameters.get("type", "default")))]
    parts.append(f"theta {theta:g}" if isinstance(theta, int | float) else "no theta")
    parts += [f"factor {factor:g}"] if isinstance(factor, int | float) else []
    original = parameters.get("original_max_position_embeddings")
    parts += [f"original length {original}"] if original else []
    return ", ".join(parts)


def without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _apart(theirs: RotaryTable, ours: RotaryTable) -> Iterator[str]:
    """In what the table of older readers differs from that of newer ones."""
    if not same_table(theirs, ours):
        difference = relative_difference(theirs.inv_freq, ours.inv_freq)
        yield f"inv_freq of {ours.name} is off by up to {difference:.2g} times its value"
        if theirs.attention_factor != ours.attention_factor:
            yield f"cos and sin are scaled by {theirs.attention_factor:g} and not by {ours.attention_factor:g}"
    elif ours.rope_parameters["rope_type"] in LENGTH_DEPENDENT:
        for key, value in ours.rope_parameters.items():
            if theirs.rope_parameters.get(key) != value:
                yield f"{key} of {ours.name} is another, which counts beyond the original length"


def _flat(parameters: dict[str, Any], model_type: str) -> dict[str, Any]:
    scaling = without(parameters, "rope_theta", "partial_rotary_factor")
    rope_type = scaling.get("rope_type", "default")
    keys: dict[str, Any] = {"rope_theta": parameters.get("rope_theta")}
    keys["rope_scaling"] = None if rope_type == "default" else scaling
    if "partial_rotary_factor" in parameters:
        keys["partial_rotary_factor"] = parameters["partial_rotary_factor"]
    if rope_type in LENGTH_AT_TOP:
        keys["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    allowed = ALLOWED_OF_OLD.get(model_type, {}).get(rope_type, ())
    if allowed and "attention_factor" not in scaling:
        keys["rope_scaling"] = {"type": rope_type, **{key: scaling[key] for key in allowed}}
    return keys
