"""Where each number of a composed recipe comes from, for `python -m recipes.show`.

A preset's comments vouch for what the preset says. Where the variant, the scale or the command line says otherwise, the
number that runs is not the paper's, so its provenance is not repeated; what changed it is named instead.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.compose import OVERLAYS, Composed, compose
from recipes.provenance.reading import Stated, preset_file, stated_numbers, variant_file
from recipes.provenance.wording import as_written, counted, reason

WIDTH = 120
WIDEST_VALUE = 24
NOT_THERE = "(not there)"
"""Of a key that another option of its group does not have."""


class Number(NamedTuple):
    """A value that runs, with what its file says of it.

    Attributes:
        stated: The preset's or the variant's own value and its provenance.
        value: What the configuration holds.
        changed_by: The word that made it another one, such as `scale=toy`; empty if it is as stated.
        variant: The variant that states it, such as `utk/cip_2`; empty if the preset does.
    """

    stated: Stated
    value: Any
    changed_by: str
    variant: str


def numbers(composed: Composed) -> list[Number]:
    """Every value that the preset or the variant vouches for, in the preset's order, a variant's beside its like."""
    variant = composed.choices.get("variant", "none")
    found = {stated.key: (stated, "") for stated in stated_numbers(preset_file(composed.config.recipe_name))}
    if variant != "none":
        found |= {stated.key: (stated, variant) for stated in stated_numbers(variant_file(variant)) if stated.kind}
    history = _History(composed)
    places: dict[tuple[str, bool], int] = {}
    for key in found:
        places.setdefault(_group(composed, key), len(places))
    return [
        Number(stated, value, "" if value == stated.value else history.changed_by(key, like=stated.value), source)
        for key, (stated, source) in sorted(found.items(), key=lambda item: places[_group(composed, item[0])])
        if stated.kind
        for value in [_value(composed, key, like=stated.value)]
    ]


def _group(composed: Composed, key: str) -> tuple[str, bool]:
    """The first part of a key, and whether it is the choice of an option."""
    return key.split(".")[0], key in composed.choices


def summary(found: Sequence[Number]) -> str:
    """How many numbers are of which kind, and how many are not the preset's."""
    kinds = counted(number.stated.kind for number in found if not number.changed_by)
    changes = Counter(number.changed_by for number in found if number.changed_by)
    changed = ", ".join(f"{count} changed by {word}" for word, count in changes.items())
    return "; ".join(filter(None, [kinds, changed]))


def provenance_lines(found: Sequence[Number]) -> list[str]:
    """A line for each number: key, value, kind, and place or reason; what is too long goes on below.

    What one comment says of several numbers is written at the first.
    """
    keys = max(len(number.stated.key) for number in found)
    values = min(WIDEST_VALUE, max(len(as_written(number.value)) for number in found))
    lines, above = [], ""
    for number in found:
        value = as_written(number.value)
        start = f"{number.stated.key:<{keys}}  {value:<{values}}"
        if len(value) > values:
            lines.append(start)
            start = " " * (keys + values + 2)
        kind, said = _said(number)
        lines += textwrap.wrap(
            f"{kind}{'as above' if said == above and kind else said}",
            WIDTH - len("#   "),
            initial_indent=f"{start}  ",
            subsequent_indent=" " * (keys + values + 4 + len("second-hand  ")),
            break_long_words=False,
            break_on_hyphens=False,
        )
        above = said
    return lines


def _said(number: Number) -> tuple[str, str]:
    """The kind, as wide as the longest of them, and the place or reason; no kind where the provenance is void."""
    stated = number.stated
    if number.changed_by:
        where = f"variant={number.variant}" if number.variant else "the preset"
        return "", f"changed by {number.changed_by}; {where} has {as_written(stated.value)}"
    by_variant = f" (variant={number.variant})" if number.variant else ""
    return f"{stated.kind:<11}  ", f"{reason(stated, with_quote=True)}{by_variant}"


def _value(composed: Composed, key: str, *, like: Any = None) -> Any:
    """What the configuration holds; of a mapping the keys of `like`, as others of it may come from elsewhere.

    Of a mixture all keys: a source more changes the share of every other.
    """
    if isinstance(like, dict) and key.split(".")[-1] != "mixture":
        return {inner: _value(composed, f"{key}.{inner}") for inner in like}
    if key in composed.choices:
        return composed.choices[key]
    try:
        value = OmegaConf.select(composed.config, key, default=NOT_THERE)
    except OmegaConfBaseException:  # a reference to a key without a value
        return NOT_THERE
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class _History:
    """Which word made a value what it is.

    Args:
        composed: The configuration as it runs.
    """

    def __init__(self, composed: Composed) -> None:
        self.composed = composed
        self._layers: list[tuple[str, Composed]] = []

    def changed_by(self, key: str, *, like: Any) -> str:
        own = [word for word in self.composed.words if word.split("=", 1)[0].lstrip("+") not in OVERLAYS]
        for word in reversed(own):
            name = word.split("=", 1)[0].lstrip("+")
            is_part = key not in self.composed.choices and name.startswith(f"{key}.")
            if f"{key}.".startswith(f"{name}.") or is_part:
                return word
        layers = self._overlays()
        for (_, before), (word, after) in reversed([*pairwise(layers)]):
            if _value(before, key, like=like) != _value(after, key, like=like):
                return word
        return " ".join(own) or "a reference"

    def _overlays(self) -> list[tuple[str, Composed]]:
        """The preset, and what it is under each further overlay that was chosen."""
        if not self._layers:
            words: list[str] = []
            for overlay in OVERLAYS:
                words.append(f"{overlay}={self.composed.choices[overlay]}")
                self._layers.append((words[-1], compose(words)))
        return self._layers
