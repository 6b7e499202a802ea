"""What a RoPE choice means, for a reader with the paper open: wavelengths, bounds, and how published choices stand.

Every number is computed from `rope_parameters`; no model is loaded. torch is imported for rope types with a table of
their own (yarn, llama3, longrope, dynamic) alone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_modules.rope import theory
from lightning_modules.rope.methods.base import BaseRope, ExtendedRope

WIDTH = 98  # two more are taken by the comment sign
NUM_ROWS = 9
LONGEST_SEARCH = 16384
"""Tokens up to which a smallest sufficient base that is not tabled is searched for: half a second."""


SCALINGS = {
    "linear": "slows every pair alike, so that no angle is new but neighbours lie closer together",
    "yarn": "slows pairs that turned beta_slow times or less, leaves those of beta_fast and more, and blends between",
    "llama3": "slows pairs that turned low_freq_factor times or less, leaves those of high_freq_factor and more",
    "longrope": "slows every pair by a factor of its own, found by a search",
    "dynamic": "enlarges its base with the longest position of the batch (the table above is at full length)",
}
"""rope_type -> what it does, in words."""


class Published(NamedTuple):
    """A published choice of base."""

    name: str
    original_length: int
    context_length: int
    original_theta: float
    rope_theta: float


PUBLISHED = (
    Published("Index-1.9B-32K", 4096, 32768, 1e4, 3.2e5),
    Published("Llama 2 Long *", 4096, 32768, 1e4, 5e5),
    Published("UtK Qwen2-7B", 32768, 131072, 1e6, 5e6),
)
"""All with d = 128. Sources: Index's report; arXiv:2309.16039, recalled and not checked; arXiv:2409.04774, 4.2."""


def rope_meaning(
    name: str, base: BaseRope, extended: ExtendedRope, *, context_length: int, sources: Sequence[str] = ()
) -> str:
    """Plain text, at most `WIDTH` columns.

    Args:
        name: The option of rope=….
        base: The base model's RoPE.
        extended: What the choice makes of it.
        context_length: Tokens that the recipe wants read.
        sources: Where the base model's RoPE is known from.
    """
    before = effective_inv_freq(
        base.rope_parameters, base.head_dim, length=base.readable_length, maximum=base.max_position_embeddings
    )
    after = effective_inv_freq(
        extended.rope_parameters, base.head_dim, length=context_length, maximum=extended.max_position_embeddings
    )
    changes_base = extended.rope_parameters.get("rope_type", "default") == "default"
    bounds = _bounds_of_base(base, extended, context_length) if changes_base else _without_bounds(extended)
    lines = [
        f"What this RoPE means: rope={name}, {base.max_position_embeddings:,} -> {context_length:,} tokens",
        "",
        *_parameters(base, extended, sources),
        "",
        *_wavelengths(base, before, after, context_length),
        "",
        f"What theory says of it at {context_length:,} tokens",
        *bounds,
        *_sums(base, before, after, context_length),
        *(_smallest_sufficient(base, extended, context_length) if changes_base else ()),
        "",
        *_published(),
    ]
    return "\n".join(line.rstrip() for line in lines)


def effective_inv_freq(parameters: dict[str, Any], head_dim: int, *, length: int, maximum: int) -> np.ndarray:
    """The frequencies with which an input of `length` tokens is rotated: [d / 2].

    Args:
        parameters: `rope_parameters`.
        head_dim: Size of a head.
        length: Tokens of the input; dynamic and longrope follow it.
        maximum: max_position_embeddings of the config.

    Raises:
        ValueError: If the rope_type is not known.
    """
    rope_type = parameters.get("rope_type", "default")
    if rope_type in ("default", "linear"):
        d = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
        return theory.inv_freq(parameters["rope_theta"], d) / (parameters["factor"] if rope_type == "linear" else 1.0)
    from lightning_modules.rope.closed_form import closed_form_inv_freq

    table = closed_form_inv_freq(parameters, head_dim, seq_len=length, max_position_embeddings=maximum)
    return table.double().numpy()


def _parameters(base: BaseRope, extended: ExtendedRope, sources: Sequence[str]) -> Iterable[str]:
    rotated = "all of it rotated" if base.rotary_dim == base.head_dim else f"{base.rotary_dim} of it rotated"
    yield from _wrapped(_said(base.rope_parameters), "base model")
    yield from _wrapped(_said(extended.rope_parameters), "this choice")
    num_pairs = base.rotary_dim // 2
    yield from _wrapped(f"{base.head_dim}, {rotated}: {num_pairs} pairs; pair i turns by theta_i a token", "head_dim")
    if sources:
        yield from _wrapped(", ".join(sources), "known from")
    if extended.rope_parameters.get("rope_type") in ("yarn", "longrope"):
        from lightning_modules.rope.closed_form import closed_form_attention_factor

        maximum = extended.max_position_embeddings
        factor = closed_form_attention_factor(extended.rope_parameters, max_position_embeddings=maximum)
        yield from _wrapped(f"cos and sin are multiplied by {factor:.4g}", "attention")


def _wavelengths(base: BaseRope, before: np.ndarray, after: np.ndarray, context_length: int) -> Iterable[str]:
    """The table, and how many pairs never turn once."""
    trained = base.unscaled_length
    old, new = theory.wavelengths(before), theory.wavelengths(after)
    yield "  Wavelength: tokens in which a pair turns once. Turns: a length divided by it."
    turns_before, turns_after = f"turns in {trained:,}", f"turns in {context_length:,}"
    yield f"  {'':>4}  {'wavelength':>14}{'wavelength':>14}{turns_before:>21}{turns_after:>21}"
    yield f"  {'pair':>4}  {'before':>14}{'after':>14}{'before':>21}{'after':>21}"
    critical = len(old) - theory.num_incomplete_pairs(before, trained)
    for i in _rows(len(old), critical):
        turns = f"{_number(trained / old[i]):>21}{_number(context_length / new[i]):>21}"
        mark = "  *" if i == critical else ""
        yield f"  {i:>4}  {_number(old[i]):>14}{_number(new[i]):>14}{turns}{mark}"
    if critical < len(old):
        yield "  * the fastest pair that pre-training never saw complete a turn"
    yield (
        f"  Pairs that never complete a turn, of {len(old)}: {theory.num_incomplete_pairs(before, trained)} in"
        f" {trained:,} tokens before, {theory.num_incomplete_pairs(after, context_length)} in {context_length:,} after"
    )


def _rows(num_pairs: int, critical: int) -> list[int]:
    """Pairs at equal distances, the first and the last, and the critical one."""
    num_rows = min(NUM_ROWS, num_pairs)
    even = {round(row * (num_pairs - 1) / max(num_rows - 1, 1)) for row in range(num_rows)}
    return sorted(even | ({critical} if critical < num_pairs else set()))


def _bounds_of_base(base: BaseRope, extended: ExtendedRope, context_length: int) -> Iterable[str]:
    """arXiv:2310.05209 and the NTK-aware base."""
    old, new = base.rope_parameters["rope_theta"], extended.rope_parameters["rope_theta"]
    d, trained = base.rotary_dim, base.unscaled_length
    d_extra = theory.critical_dimension(old, d, trained)
    limit = theory.extrapolation_limit(new, d, d_extra)
    reaching = theory.smallest_base_reaching(context_length, d, d_extra)
    critical_base = theory.critical_base(old, trained, context_length)
    beyond = "reads on to T_extra" if new > critical_base else "reads no further than tuned"
    b1, b2, b3 = theory.small_bases(context_length)
    where = f"at most b{sum(new <= bound for bound in (b1, b2, b3))}: a small one" if new <= b1 else "above all three"
    yield "  Critical dimension (arXiv:2310.05209), of a model tuned at this length"
    yield _bound("d_extra", f"{d_extra} of {d}", f"dimensions that completed a turn in {trained:,} tokens before")
    verdict = f"{_verdict(limit >= context_length)}, {context_length:,} tokens wanted"
    yield _bound("T_extra", _number(limit), f"{verdict}; pair * turns once in it" if d_extra < d else verdict)
    yield _bound("base reaching it", _number(reaching), _ratio(new, reaching))
    yield _bound("critical base b0", _number(critical_base), f"{_ratio(new, critical_base)}: {beyond}")
    yield _bound("small bases b1", _number(b1), f"b2 {_number(b2)}, b3 {_number(b3)}; this base is {where}")
    factor = context_length / trained
    if factor > 1 and d > 2:
        ntk = theory.ntk_aware_base(old, factor, d)
        yield "  NTK-aware base (arXiv:2309.00071, section 3.1), for reading further untrained"
        yield _bound(f"for x{factor:g}", _number(ntk), _ratio(new, ntk))


def _without_bounds(extended: ExtendedRope) -> Iterable[str]:
    rope_type = extended.rope_parameters["rope_type"]
    yield from _wrapped(
        "T_extra, b0, the small bases and the NTK-aware base are about a changed rope_theta and do not apply:"
        f" rope_type={rope_type} {SCALINGS.get(rope_type, 'scales the frequencies otherwise')}."
    )


def _sums(base: BaseRope, before: np.ndarray, after: np.ndarray, context_length: int) -> Iterable[str]:
    """arXiv:2405.14591, judged at every distance."""
    yield "  Similar tokens attract (arXiv:2405.14591): sum_i cos(m theta_i) >= 0 at all m < length"
    for label, inv_freq, length in (
        ("this choice", after, context_length),
        ("base model", before, base.readable_length),
    ):
        sums = theory.rotation_sums(inv_freq, length)
        negative = np.flatnonzero(sums < 0)
        verdict = _verdict(not len(negative))
        if len(negative):
            verdict += f" at {len(negative):,} m, first {negative[0]:,}"
        yield _bound(label, f"m < {length:,}", f"{verdict}; lowest {_number(sums.min())} of {len(inv_freq)}")


def _smallest_sufficient(base: BaseRope, extended: ExtendedRope, context_length: int) -> Iterable[str]:
    d, new = base.rotary_dim, extended.rope_parameters["rope_theta"]
    bracket = theory.tabled_sufficient_base(context_length, d)
    if context_length <= LONGEST_SEARCH and (bracket is None or bracket[0] != bracket[1]):
        found = theory.smallest_sufficient_base(context_length, d)
        bracket = found, found
    if bracket is None:
        yield _bound("smallest base", "not tabled", "rope.theory.smallest_sufficient_base finds it, in seconds")
    elif bracket[0] == bracket[1]:
        yield _bound("smallest base", _number(bracket[0]), f"{_ratio(new, bracket[0])}; larger ones may fail")
    else:
        yield _bound("smallest base", "", f"between {_number(bracket[0])} and {_number(bracket[1])}")


def _published() -> Iterable[str]:
    """The same bounds on what papers chose."""
    yield "Where published choices stand (head_dim 128), by the same bounds"
    yield f"  {'':<16}{'tokens':<19}{'RoPE':<16}{'T_extra':<20}{'sum of cos':<22}"
    for choice in PUBLISHED:
        d_extra = theory.critical_dimension(choice.original_theta, 128, choice.original_length)
        limit = theory.extrapolation_limit(choice.rope_theta, 128, d_extra)
        negative = theory.first_negative_distance(theory.inv_freq(choice.rope_theta, 128), choice.context_length)
        lengths = f"{choice.original_length:,} -> {choice.context_length:,}"
        reached = f"{_verdict(limit >= choice.context_length)} {_number(limit)}"
        yield (
            f"  {choice.name:<16}{lengths:<19}{f'base {_number(choice.rope_theta)}':<16}{reached:<20}"
            f"{_sum_verdict(negative)}"
        )
    yield f"  {'LLaMA-2-7B-32K':<16}{'4,096 -> 32,768':<19}{'linear, x8':<16}{'does not apply':<20}does not apply"
    yield "  * recalled, not checked against the paper"
    yield from _wrapped(
        "They disagree: each was trained at its length and released as reading it, yet no base among them satisfies"
        " every bound. Index's base passes the one and fails the other, and scored well (LongBench 35.24). UtK's was"
        f" motivated by the sum of cos, where {theory.SUFFICIENT_BASES[128][131072]:,} suffices at 131,072 tokens but"
        " 5,000,000 does not; its T_extra falls short too, but speaks of lengths beyond training, and UtK trains at"
        " 131,072 (RULER-128K 75.0). Take a bound as a hint before training; python -m recipes.evaluate measures."
    )


def _sum_verdict(negative: int | None) -> str:
    return _verdict(True) if negative is None else f"{_verdict(False)} from m = {negative:,}"


def _verdict(holds: bool) -> str:
    return "satisfied" if holds else "violated"


def _ratio(base: float, bound: float) -> str:
    """Where this base stands beside one that a theory names."""
    share = base / bound
    if abs(share - 1) < 5e-4:
        return "this base equals it"
    return f"this base is {_number(share)} times it" if share > 1 else f"this base is {share:.3g} of it"


def _bound(name: str, value: str, text: str) -> str:
    return f"    {name:<17} {value:>14}  {text}"


def _said(parameters: dict[str, Any]) -> str:
    """`rope_parameters` on one line; lists of many numbers by their ends."""
    said = []
    for key, value in parameters.items():
        if isinstance(value, list | tuple) and len(value) > 4:
            value = f"[{value[0]:g}, {value[1]:g}, … {value[-1]:g}]"
        said.append(f"{key}={value:.10g}" if isinstance(value, float) else f"{key}={value}")
    return ", ".join(sorted(said, key=lambda word: not word.startswith("rope_type")))


def _number(value: float) -> str:
    """Three digits, or all whole ones: 0.0127, 6.28, 435, 56,886."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _wrapped(text: str, label: str = "") -> list[str]:
    indent = f"  {label:<13}" if label else "  "
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )
