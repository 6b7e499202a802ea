"""What can be wrong with the file of an ablation, or with the words beside it; one sentence each."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.ablating.grid import Setting

LENGTH, CELL = "length", "cell"
METRICS = ("perplexity", "needle", "answers")
KINDS = {"lines": ("x", "series"), "heat_map": ("x", "y")}
KEYS = ("recipe", "words", "axes", "cells", "pictures", "marks")
NOT_HERE = {
    "run_folder": "every cell has a folder of its own below output_dir",
    "checkpoint": "every cell measures the run that it trained",
    "recipe_name": "the recipe writes it",
}
"""Words that mean something to other verbs."""


def key_of(word: str) -> str:
    """What stands before the `=`."""
    return word.split("=", 1)[0].lstrip("+")


def folder_name(name: str) -> str:
    """A name that needs no quotes in a path or a word."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def node_faults(node: Mapping[str, Any]) -> Iterator[str]:
    """The form of the file."""
    for key in node:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(KEYS)}"
            yield f"{key} is not a key of an ablation; {hint}"
    if not isinstance(node.get("recipe"), str):
        yield "recipe must name the preset that every cell runs"
    yield from _words_faults(node.get("words") or [], "words")
    axes, cells = node.get("axes"), node.get("cells")
    if (axes is None) == (cells is None):
        yield "there must be either axes, whose product is the grid, or a list of cells"
    if cells is not None:
        yield from _settings_faults(cells, "cells")
    for axis, choices in axes.items() if isinstance(axes, dict) else ():
        if axis in (LENGTH, CELL) or not re.fullmatch(r"\w+", str(axis)):
            yield f"axes.{axis} must have a name of letters, digits and _, and not {LENGTH} or {CELL}"
        if not isinstance(choices, dict):
            yield from _settings_faults(choices, f"axes.{axis}")
        elif set(choices) != {"key", "values"} or not isinstance(choices["values"], list) or not choices["values"]:
            yield f"axes.{axis} must have key, and values as a list such as [1, 2]; or be a list of {{name, words}}"
    if axes is not None and (not isinstance(axes, dict) or not axes):
        yield "axes must be a mapping of names to settings"


def _settings_faults(settings: Any, where: str) -> Iterator[str]:
    if not isinstance(settings, list) or not settings:
        yield f"{where} must be a list of {{name, words}}"
        return
    for k, setting in enumerate(settings):
        if not isinstance(setting, dict) or "name" not in setting or not set(setting) <= {"name", "words", "value"}:
            yield f"{where}[{k}]={setting} must have name and words, and may have value"
        else:
            yield from _words_faults(setting.get("words") or [], f"{where}[{k}].words")


def _words_faults(words: Any, where: str) -> Iterator[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words):
        yield f"{where}={words} must be a list of key=value words"
        return
    keys = [key_of(word) for word in words]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"{where} has {key} twice; keep one"
    yield from word_faults(words)


def word_faults(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        key, value = key_of(word), word.split("=", 1)[1]
        if key in NOT_HERE:
            yield f"{key} cannot be set here, as {NOT_HERE[key]}; remove {word}"
        if key == "resume" and value not in ("auto", "never"):
            yield f"resume={value} means nothing to a grid; auto goes on where it stopped, never starts anew"


def clashes(axes: Mapping[str, Sequence[Setting]], node: Mapping[str, Any], given: Sequence[str]) -> Iterator[str]:
    """Keys that two sides want to set, and cells of one name."""
    varied = {axis: {key_of(word) for setting in settings for word in setting.words} for axis, settings in axes.items()}
    for one, other in itertools.combinations(varied, 2):
        for key in sorted(varied[one] & varied[other]):
            yield f"axes {one} and {other} both set {key}; let one of them"
    for key in sorted({key_of(word) for word in given}):
        for axis in (axis for axis, keys in varied.items() if key in keys):
            one_key = isinstance((node.get("axes") or {}).get(axis), dict)
            place = f"set ablation.axes.{axis}.values=[…]" if one_key else "change the ablation's file"
            yield f"{key} differs between cells; leave {key}=… out, or {place}"
    for axis, settings in axes.items():
        folders = [folder_name(setting.name if axis == CELL else f"{axis}-{setting.name}") for setting in settings]
        for name in sorted({name for name in folders if folders.count(name) > 1}):
            yield f"axis {axis} has {name} twice; keep one, or give the settings other names"
        if "" in folders:
            yield f"axis {axis} has a setting whose name has no letter or digit; give it one"


def picture_faults(node: Mapping[str, Any], axes: Mapping[str, Any]) -> Iterator[str]:
    dimensions = (LENGTH, CELL, *(axis for axis in axes if axis != CELL))
    pictures = node.get("pictures")
    if pictures is not None and not isinstance(pictures, list):
        yield f"pictures={pictures} must be a list"
        return
    for k, picture in enumerate(pictures or ()):
        where = f"pictures[{k}]"
        if not isinstance(picture, dict) or picture.get("kind") not in KINDS:
            yield f"{where}={picture} must have kind: {' or '.join(KINDS)}"
            continue
        sides = KINDS[picture["kind"]]
        allowed = {"name", "kind", "metric", *sides}
        if not allowed - {"metric"} <= set(picture) <= allowed or not folder_name(str(picture["name"])):
            yield f"{where} must have name, kind, {' and '.join(sides)}, and may have metric"
            continue
        for side in sides:
            if picture[side] not in dimensions:
                yield f"{where}.{side}={picture[side]} is not there; there are {', '.join(dimensions)}"
        shown = {picture[side] for side in sides}
        if len(shown) == 1 or (CELL in shown and not shown <= {LENGTH, CELL}):
            yield f"{where}: {' and '.join(sides)} must be two dimensions; cell is all axes together"
        if picture.get("metric", METRICS[0]) not in METRICS:
            yield f"{where}.metric={picture['metric']} is not measured; allowed are {', '.join(METRICS)}"
    for k, mark in enumerate(node.get("marks") or ()):
        if not isinstance(mark, dict) or "name" not in mark or not set(mark) - {"name"} <= set(dimensions):
            yield f"marks[{k}]={mark} must have name, and places along {', '.join(dimensions)}"
