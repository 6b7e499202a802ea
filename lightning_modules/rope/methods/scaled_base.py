"""Base models whose RoPE is scaled already: refused, replaced, or kept.

Llama-3.1 comes with rope_type=llama3, LLaMA-2-7B-32K with linear. Scaling such a model once more without saying what
becomes of the first scaling is a guess, so it is refused unless the recipe says.

    refuse   the default: an error that names the choices
    replace  the base's scaling is dropped; the method starts from the length before it (8192 for Llama-3.1)
    keep     the base's scaling stays as it is and rope_theta alone changes, as Untie the Knots did with Llama-3.1; only
             methods that change rope_theta can do so, the others would put one scaling in place of the other
"""

from __future__ import annotations

from lightning_modules.rope.methods.base import BaseRope

SCALINGS = ("refuse", "replace")
SCALINGS_OF_THETA = ("refuse", "replace", "keep")

SCALING_KEYS = (
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
)
"""Keys of `rope_parameters` that say how RoPE is scaled; the rest, such as rope_theta, says what is scaled."""


def check_on_scaled_base(on_scaled_base: str, *, allowed: tuple[str, ...] = SCALINGS) -> None:
    """Refuses words that are none.

    Raises:
        ValueError: If the word is not allowed for the method.
    """
    if on_scaled_base not in allowed:
        why = " (keep is for methods that change rope_theta alone)" if on_scaled_base == "keep" else ""
        raise ValueError(
            f"rope.on_scaled_base={on_scaled_base} is not allowed here{why}; set it to {' or '.join(allowed)}"
        )


def starting_point(base: BaseRope, on_scaled_base: str, *, changes_theta: bool = False) -> BaseRope:
    """The RoPE that a method changes: the base's own, or the base's without its scaling.

    Raises:
        ValueError: If the base is scaled and the recipe does not say what becomes of that.
    """
    if base.rope_type == "default":
        return base
    if on_scaled_base == "replace":
        bare = {key: value for key, value in base.rope_parameters.items() if key not in SCALING_KEYS}
        return BaseRope({**bare, "rope_type": "default"}, base.unscaled_length, base.head_dim)
    if on_scaled_base == "keep":
        return _pinned(base)
    scale = base.rope_parameters.get("factor") or base.readable_length / base.unscaled_length
    keep = ", rope.on_scaled_base=keep to keep it and change rope_theta" if changes_theta else ""
    raise ValueError(
        f"the base model's rope_parameters already have rope_type={base.rope_type}, {scale:g} times its"
        f" {base.unscaled_length} tokens; set rope.on_scaled_base=replace to drop that{keep}, or rope=unchanged"
    )


def _pinned(base: BaseRope) -> BaseRope:
    """The factor said in full where transformers would infer it from max_position_embeddings, which may grow."""
    parameters = dict(base.rope_parameters)
    if base.rope_type in ("longrope", "yarn") and parameters.get("factor") is None:
        parameters["factor"] = base.max_position_embeddings / base.unscaled_length
    return base._replace(rope_parameters=parameters)
