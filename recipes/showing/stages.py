"""Which stage of its paper a preset is, from what each one says that it continues (`about.continues`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Stage(NamedTuple):
    number: int  # from 1
    of: int  # stages of the longest chain from the same first one


def stages(continues: Mapping[str, str | None]) -> dict[str, Stage]:
    """The place of every preset in its chain.

        {pretrain: None, few_shot: pretrain, booksum: few_shot, qa: few_shot}  ->  1/3, 2/3, 3/3, 3/3

    A preset that goes on from one that is not there, or in a circle, counts from where the chain is lost.

    Args:
        continues: Preset -> the one whose exported model it starts from.
    """
    chains = {preset: _chain(preset, continues) for preset in continues}
    longest: dict[str, int] = {}
    for first, *rest in chains.values():
        longest[first] = max(longest.get(first, 0), 1 + len(rest))
    return {preset: Stage(len(chain), longest[chain[0]]) for preset, chain in chains.items()}


def in_order(presets: Mapping[str, Stage]) -> list[str]:
    """Presets by folder, and within one by stage."""
    return sorted(presets, key=lambda preset: (preset.rpartition("/")[0], presets[preset].number, preset))


def _chain(preset: str, continues: Mapping[str, str | None]) -> list[str]:
    """From the first stage to this one."""
    chain = [preset]
    while (before := continues.get(chain[0])) in continues and before is not None and before not in chain:
        chain.insert(0, before)
    return chain
