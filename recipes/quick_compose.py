"""A configuration of whole options in a few milliseconds, such as that of a preset, for looking at all of them.

Hydra takes 80 ms for one, most of it for rules that no preset needs: here the same files are merged as plain
dictionaries, in Hydra's order, and each is read once for all of them. What is written in another way than ours are (a
package, a default that is neither a neighbour nor an override) is left to Hydra, so the values are always its own.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from recipes.compose import OVERLAYS, compose, conf_folder

MISSING = "???"


class PresetValues(NamedTuple):
    config: DictConfig
    choices: dict[str, str]  # group -> option


class Unusual(Exception):
    """A file that says something only Hydra understands."""


class _File(NamedTuple):
    body: dict[str, Any]
    defaults: list[Any]
    is_global: bool


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """OmegaConf's idea of what is a number, at the speed of C."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise Unusual  # a key that is there twice, which OmegaConf refuses
        return mapping


def preset_values(preset: str) -> PresetValues:
    """The unresolved configuration of `recipe=<preset>` alone, and its options."""
    try:
        config, choices = option_values(conf_folder(), {"recipe": preset})
    except (Unusual, OSError, yaml.YAMLError):
        config, choices, _ = compose([f"recipe={preset}"])
    config.recipe_name = preset
    return PresetValues(config, choices)


def preset_parts(preset: str, parts: Collection[str]) -> PresetValues:
    """As `preset_values`, but of the configuration only these groups and the keys that are in none.

    A fifth of the time, as most of it is making OmegaConf's nodes. References into other groups lead nowhere.
    """
    try:
        merged, choices = _merged(conf_folder(), {"recipe": preset})
    except (Unusual, OSError, yaml.YAMLError):
        return preset_values(preset)
    kept = {key: value for key, value in merged.items() if key in parts or key not in choices}
    return PresetValues(OmegaConf.create(kept | {"recipe_name": preset}), choices)


def body_of(path: Path, group: str) -> dict[str, Any]:
    """What an overlay's file writes into the node of a group."""
    return copy.deepcopy(_read(path).body.get(group, {}))


def option_values(folder: Path, named: Mapping[str, str]) -> PresetValues:
    """The unresolved configuration of these options and, of groups not named, those of config.yaml and the overlays.

    Args:
        folder: conf/, or a copy of it.
        named: Group -> option; there is no preset where `recipe` is not named.

    Raises:
        Unusual: Only Hydra understands one of the files.
        OSError: There is no such option.
        yaml.YAMLError: A file is not YAML.
    """
    return pickle.loads(_option_values_once(folder, tuple(sorted(named.items()))))


@lru_cache(maxsize=64)
def _option_values_once(folder: Path, named: tuple[tuple[str, str], ...]) -> bytes:
    """Pickled, as reading that takes a fifth of the time of a copy."""
    merged, choices = _merged(folder, dict(named))
    return pickle.dumps(PresetValues(OmegaConf.create(merged), choices))


def _merged(folder: Path, named: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration as plain dictionaries, and its options."""
    choices = _choices(folder, named)
    merged = copy.deepcopy(_read(folder / "config.yaml").body)
    for group, option in choices.items():
        if "/" in group:  # part of its parent's file
            continue
        body = _with_neighbours(folder / group, option)
        _merge(merged, body if group in OVERLAYS else {group: body})
    return merged, choices


def _choices(folder: Path, named: Mapping[str, str]) -> dict[str, str]:
    """Group -> option: what config.yaml says, the overrides of preset, scale and debug, and the named options."""
    first, *entries = _read(folder / "config.yaml").defaults
    if first != "_self_" or not all(isinstance(entry, dict) and len(entry) == 1 for entry in entries):
        raise Unusual
    choices: dict[str, str] = {group: option for entry in entries for group, option in entry.items()}
    if "recipe" not in named:
        del choices["recipe"]
    if named.keys() - choices.keys():
        raise Unusual
    overlays = {overlay: named.get(overlay, choices[overlay]) for overlay in OVERLAYS if overlay in choices}
    for overlay, chosen in overlays.items():
        for entry in _read(folder / overlay / f"{chosen}.yaml").defaults:
            ((name, option),) = entry.items() if isinstance(entry, dict) else [("", "")]
            group = name.removeprefix("override /")
            if group == name or group not in choices or group in OVERLAYS:
                raise Unusual
            choices[group] = option
    choices |= named
    parts = [(group, _parts(_read(folder / group / f"{choices[group]}.yaml"))) for group in choices]
    return choices | {f"{group}/{name}": option for group, names in parts for name, option in names.items()}


def _with_neighbours(folder: Path, option: str) -> dict[str, Any]:
    """One option of a group, over those of the same group that it builds on."""
    file = _read(folder / f"{option}.yaml")
    if folder.name in OVERLAYS:
        if not file.is_global:
            raise Unusual
        return file.body
    parts = _parts(file)
    if file.is_global or any("/" in name for name in (*parts, *(e for e in file.defaults if isinstance(e, str)))):
        raise Unusual
    merged: dict[str, Any] = {name: _with_neighbours(folder / name, inner) for name, inner in parts.items()}
    own = [*file.defaults] if "_self_" in file.defaults else [*file.defaults, "_self_"]
    for name in (entry for entry in own if isinstance(entry, str)):
        _merge(merged, file.body if name == "_self_" else _with_neighbours(folder, name))
    return merged


def _parts(file: _File) -> dict[str, str]:
    """Options that a file takes from groups inside its own group, such as `prepare/engine`."""
    entries = [entry for entry in file.defaults if isinstance(entry, dict) and not file.is_global]
    return {name: option for entry in entries for name, option in entry.items()}


@lru_cache(maxsize=512)
def _read(path: Path) -> _File:
    text = path.read_text(encoding="utf-8")
    package = next((line for line in text.splitlines() if line.replace(" ", "").startswith("#@package")), "")
    is_global = package.split()[-1:] == ["_global_"]
    body = yaml.load(text, Loader=Loader) or {}
    if (package and not is_global) or not isinstance(body, dict):
        raise Unusual
    return _File({key: value for key, value in body.items() if key != "defaults"}, body.get("defaults", []), is_global)


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            _merge(present, value)
        elif isinstance(value, dict) and isinstance(present, str) and "${" in present:
            raise Unusual  # Hydra copies what the reference leads to, and merges into that
        elif value != MISSING or key not in into:
            into[key] = copy.deepcopy(value)
