"""RoPE as a transformers config says it: read whole, and written whole.

Most configs have one `rope_parameters` for all layers. Those whose layers are of several kinds, as Gemma 3's, nest one
for each kind: {"sliding_attention": {…}, "full_attention": {…}}. Methods change the full attention's alone, since a
sliding window reads no further than it did.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig

from lightning_modules.rope.methods.base import BaseRope

FULL_ATTENTION = "full_attention"


def text_config(config: Any) -> PreTrainedConfig:
    """The language model's part of a config."""
    return config.get_text_config(decoder=True)


def original_length(config: PreTrainedConfig) -> int:
    """Tokens that the model of this config reads as it is.

    Raises:
        ValueError: If max_position_embeddings is missing or not a whole number.
    """
    length = getattr(text_config(config), "max_position_embeddings", None)
    # Some exporters write 32768.0, which is a whole number all the same.
    if not isinstance(length, int | float) or length % 1 != 0 or length < 1:
        raise ValueError(f"max_position_embeddings={length} is not a positive integer; correct it in config.json")
    return int(length)


def current_rope_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """A copy of the config's `rope_parameters`, nested by layer kind where the config's are.

    Raises:
        ValueError: If they are missing or incomplete.
    """
    parameters = copy.deepcopy(getattr(text_config(config), "rope_parameters", None) or {})
    _check_complete(config, parameters)
    return parameters


def by_layer_kind(config: PreTrainedConfig, rope_parameters: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    """The parameters of each layer kind; under None where all layers share them. Kinds without RoPE are left out."""
    text = text_config(config)
    kinds = getattr(text, "_rope_type_labels", None) or getattr(text, "layer_types", None) or ()
    nested: dict[str | None, dict[str, Any]] = {key: rope_parameters[key] for key in rope_parameters if key in kinds}
    return {key: value for key, value in nested.items() if value is not None} if nested else {None: rope_parameters}


def long_range_parameters(config: PreTrainedConfig, rope_parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, not copied, of the layers that attend to the whole context.

    Raises:
        ValueError: If no layer does.
    """
    kinds = by_layer_kind(config, rope_parameters)
    found = kinds.get(None, kinds.get(FULL_ATTENTION))
    if found is None:
        raise ValueError(f"rope_parameters={rope_parameters} have no {FULL_ATTENTION}; choose another model")
    return found


def head_dim_of(config: PreTrainedConfig) -> int:
    """Size of a head, rotated or not."""
    text: Any = text_config(config)
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def base_rope(config: PreTrainedConfig) -> BaseRope:
    """RoPE of the layers that attend to the whole context.

    Raises:
        ValueError: If the config does not say it.
    """
    parameters = long_range_parameters(config, current_rope_parameters(config))
    return BaseRope(parameters, original_length(config), head_dim_of(config))


def write_rope(config: PreTrainedConfig, rope_parameters: dict[str, Any], *, max_position_embeddings: int) -> None:
    """Gives a config these parameters wherever it keeps some, or leaves it alone if it cannot take them.

    Args:
        config: Changed in place; live rotary modules built from it are not.
        rope_parameters: Complete, nested by layer kind where the config's are.
        max_position_embeddings: For the config; becomes an int.

    Raises:
        ValueError: If the parameters are incomplete, or the model cannot compute with them.
    """
    _check_complete(config, rope_parameters)
    text = text_config(config)
    trial = copy.deepcopy(text)
    _write(trial, rope_parameters, max_position_embeddings)
    try:
        trial.validate_rope()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{text.model_type} does not take rope_parameters={rope_parameters} ({error}); choose another rope"
        ) from error
    _write(text, rope_parameters, max_position_embeddings)


def second_theta(config: PreTrainedConfig) -> float | None:
    """A `config.rope_theta` beside `rope_parameters`; setting it changes no table, and other readers may believe it."""
    return getattr(text_config(config), "rope_theta", None)


def _write(text: Any, rope_parameters: dict[str, Any], max_position_embeddings: int) -> None:
    long_range = long_range_parameters(text, rope_parameters)
    length_before = long_range.get("original_max_position_embeddings")
    if length_before is not None and hasattr(text, "original_max_position_embeddings"):
        text.original_max_position_embeddings = length_before  # of Phi-3, where it wins over that in rope_parameters
    text.max_position_embeddings = int(max_position_embeddings)
    text.rope_parameters = copy.deepcopy(rope_parameters)
    if second_theta(text) is not None:
        text.rope_theta = long_range["rope_theta"]
    text.standardize_rope_params()


def _check_complete(config: PreTrainedConfig, rope_parameters: dict[str, Any]) -> None:
    for kind, parameters in by_layer_kind(config, rope_parameters).items():
        for key in ("rope_type", "rope_theta"):
            if parameters.get(key) is None:
                place = f" of {kind}" if kind else ""
                raise ValueError(f"rope_parameters={parameters}{place} lack {key}; give all keys, none is inferred")
