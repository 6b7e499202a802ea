"""What `ablation=<name>` names: one recipe, words for all cells, and axes whose product is the grid.

    conf/ablation/<name>.yaml
    recipe    the preset that every cell runs
    words     key=value words of every cell
    axes      axis -> {key, values}: one key takes each value
              axis -> [{name, words, value}]: each setting is some words; value, if given, is its place on the axis
    cells     instead of axes: [{name, words}]
    pictures  [{name, kind: lines, x, series, metric} or {name, kind: heat_map, x, y, metric}]
    marks     [{name, <axis>: …, length: …}]: places to point out in the pictures

A picture's dimensions are `length`, the axes, and `cell`, which is all axes together; what a picture does not name is
spread over panels. On the command line, `ablation.axes.<axis>.values=[…]` changes the file's keys, and every other word
goes to all cells, in the place of the file's word for the same key. Cost: nothing is composed or imported here.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recipes.ablating.faults import (
    CELL,
    KEYS,
    KINDS,
    LENGTH,
    METRICS,
    clashes,
    folder_name,
    key_of,
    node_faults,
    picture_faults,
    word_faults,
)
from recipes.compose import ConfigError, ablation_file, ablations, one_sentence

DEFAULT_PICTURES = [
    {"name": "perplexity", "kind": "lines", "x": LENGTH, "series": CELL, "metric": "perplexity"},
    {"name": "needle", "kind": "lines", "x": LENGTH, "series": CELL, "metric": "needle"},
]

Place = float | str
"""Where something stands along a dimension: a number, or a name where the dimension has no order."""


class Setting(NamedTuple):
    """One choice of an axis."""

    name: str  # stands in names of cells and in tables
    place: Place
    words: tuple[str, ...]


class Cell(NamedTuple):
    """One run of the grid."""

    name: str  # its folder
    title: str  # what stands in tables and pictures
    places: dict[str, Place]  # axis -> where the cell stands
    words: tuple[str, ...]  # all words that the cell is composed from


class Picture(NamedTuple):
    name: str  # the file's stem
    kind: str
    x: str
    other: str  # series of lines, y of a heat-map
    metric: str


class Mark(NamedTuple):
    name: str
    places: dict[str, Place]  # dimension -> where


@dataclass(frozen=True)
class Ablation:
    """A grid, ready to be composed cell by cell."""

    name: str
    axes: dict[str, tuple[Setting, ...]]
    cells: tuple[Cell, ...]
    pictures: tuple[Picture, ...]
    marks: tuple[Mark, ...]
    words: tuple[str, ...]  # what the command line said beside the name


def read_ablation(words: Sequence[str]) -> Ablation:
    """The grid that the words of a command line name.

    Raises:
        ConfigError: No such ablation, or a file or word that does not fit; one sentence for each fault.
    """
    name = _name_of(words)
    own = [word for word in words if key_of(word).startswith("ablation.")]
    given = [word for word in words if word not in own and key_of(word) != "ablation"]
    node = _node(name, own)
    _refuse(name, [*node_faults(node)])
    axes = _axes(node)
    _refuse(name, [*word_faults(given), *clashes(axes, node, given), *picture_faults(node, axes)])
    pictures = DEFAULT_PICTURES if node.get("pictures") is None else node["pictures"]
    return Ablation(
        name=name,
        axes=axes,
        cells=tuple(_cells(node, axes, given)),
        pictures=tuple(
            Picture(p["name"], p["kind"], p["x"], p[KINDS[p["kind"]][1]], p.get("metric", METRICS[0])) for p in pictures
        ),
        marks=tuple(
            Mark(mark["name"], {key: _place(value) for key, value in mark.items() if key != "name"})
            for mark in node.get("marks") or ()
        ),
        words=(*own, *given),
    )


def spelled(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {spelled(item)}" for key, item in value.items()) + "}"
    return str(value)


def short(value: Any) -> str:
    """A value as it stands in names: 85550.0 and 1e6 as people write them."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else spelled(value)


def _name_of(words: Sequence[str]) -> str:
    known = ablations()
    unreadable = [word for word in words if "=" not in word]
    faults = [f"'{word}' is not of the form key=value; see python -m recipes.ablate --help" for word in unreadable]
    names = [word.split("=", 1)[1] for word in words if "=" in word and key_of(word) == "ablation"]
    if not names:
        faults.append(f"no ablation given; add ablation=<name>, one of: {', '.join(known)}")
    if len(names) > 1:
        faults.append("ablation is given twice; keep one")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
            faults.append(f"ablation={name} does not exist; {hint}")
    if faults:
        raise ConfigError("\n".join(faults))
    return names[0]


def _refuse(name: str, faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError("\n".join(f"ablation={name}: {fault}" for fault in faults))


def _node(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The file, changed by `ablation.…=…` words."""
    try:
        node = OmegaConf.load(ablation_file(name))
        if not isinstance(node, DictConfig):
            raise ConfigError(f"ablation={name}: the file must hold the keys {', '.join(KEYS)}")
        changes = OmegaConf.from_dotlist([word.lstrip("+").removeprefix("ablation.") for word in words])
        merged = OmegaConf.to_container(OmegaConf.merge(node, changes))
    except (OmegaConfBaseException, YAMLError, TypeError) as error:
        raise ConfigError(f"ablation={name}: {one_sentence(error)}") from error
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _axes(node: Mapping[str, Any]) -> dict[str, tuple[Setting, ...]]:
    if node.get("cells") is not None:
        return {CELL: tuple(_setting(setting) for setting in node["cells"])}
    found = {}
    for axis, choices in node["axes"].items():
        if isinstance(choices, dict):
            key, values = choices["key"], choices["values"]
            settings = [Setting(short(value), _place(value), (f"{key}={spelled(value)}",)) for value in values]
        else:
            settings = [_setting(setting) for setting in choices]
        found[str(axis)] = tuple(settings)
    return found


def _setting(setting: Mapping[str, Any]) -> Setting:
    name = short(setting["name"])
    return Setting(name, _place(setting.get("value", name)), tuple(setting.get("words") or ()))


def _place(value: Any) -> Place:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else spelled(value)


def _cells(node: Mapping[str, Any], axes: Mapping[str, Sequence[Setting]], given: Sequence[str]) -> Iterator[Cell]:
    fixed = [f"recipe={node['recipe']}", *(node.get("words") or [])]
    for settings in itertools.product(*axes.values()):
        own = [word for setting in settings for word in setting.words]
        taken = {key_of(word) for word in [*own, *given]}
        words = [*(word for word in fixed if key_of(word) not in taken), *own, *given]
        if axes.keys() == {CELL}:
            title, name = settings[0].name, folder_name(settings[0].name)
        else:
            names = [(axis, setting.name) for axis, setting in zip(axes, settings, strict=True)]
            title = ", ".join(f"{axis}={choice}" for axis, choice in names)
            name = "_".join(folder_name(f"{axis}-{choice}") for axis, choice in names)
        places = {axis: setting.place for axis, setting in zip(axes, settings, strict=True)}
        yield Cell(name, title, places, tuple(words))
