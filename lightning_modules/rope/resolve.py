"""From a recipe's method and a model's config to complete `rope_parameters`; no weights are needed."""

from __future__ import annotations

import copy

from transformers import PreTrainedConfig

from lightning_modules.rope.config import base_rope, by_layer_kind, current_rope_parameters, text_config, write_rope
from lightning_modules.rope.methods import ExtendedRope, RopeMethod


def resolve_rope(config: PreTrainedConfig, method: RopeMethod, context_length: int) -> ExtendedRope:
    """What a model of this config would have, as transformers writes it.

    Args:
        config: The base model's; it is left as it is.
        method: What the recipe changes.
        context_length: Tokens that the recipe wants read.

    Returns:
        The method's result, with `rope_parameters` nested by layer kind where the config's are.

    Raises:
        ValueError: If the method cannot take this model to `context_length`.
    """
    extended = method.extend(base_rope(config), context_length=context_length)
    complete = current_rope_parameters(config)
    (kind, *_) = [key for key in by_layer_kind(config, complete) if key in (None, "full_attention")]
    if kind is None:
        complete = extended.rope_parameters
    else:
        if extended.rope_parameters.get("truncate", True) is False:
            raise ValueError(
                "transformers does not read rope.truncate=false in models of several layer kinds such as"
                f" {text_config(config).model_type}; set rope.truncate=true"
            )
        complete[kind] = extended.rope_parameters
    resolved = extended._replace(rope_parameters=copy.deepcopy(complete))
    write_rope(
        copy.deepcopy(config), resolved.rope_parameters, max_position_embeddings=resolved.max_position_embeddings
    )
    return resolved
