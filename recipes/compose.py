"""From the words on the command line to one configuration.

    conf/config.yaml  <  group options  <  preset (recipe=…)  <  scale=…  <  the command line

Naming a group option on the command line (`rope=linear`) replaces what the preset wrote in that group, so that an
ablation is one override and never a mixture of two options' keys.
"""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

BUNDLED = {"demo_model": "lightning_modules.models", "classics": "datamodules.corpora"}
BUNDLED_FOLDERS = {"demo_model": "demo"}


def compose(words: list[str]) -> DictConfig:
    """The configuration of `key=value` words, struct-locked and unresolved.

    Raises:
        ValueError: No recipe, an unknown one, or a key or value that does not exist; one sentence each.
    """
    groups = set(groups_on_disk())
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise ValueError(f"'{word}' is not of the form key=value; see python -m recipes.list and recipes.show")
    named = {word.split("=", 1)[0].lstrip("+~"): word.split("=", 1)[1] for word in words}
    _check_choices(named, groups)
    full = _hydra(words)
    choices = OmegaConf.to_container(full.hydra.runtime.choices)
    assert isinstance(choices, dict)
    config = OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"])
    preset = OmegaConf.to_container(_hydra([f"recipe={named['recipe']}"]).hydra.runtime.choices)
    for group in groups & set(named) - {"recipe", "scale", "debug"}:
        if choices[group] != preset[group]:  # type: ignore[index]  # to_container of a mapping
            config[group] = plain(choices, [word for word in words if word.startswith(f"{group}.")])[group]
    config.recipe_name = named["recipe"]
    return config


def plain(choices: dict[Any, Any], words: list[str]) -> DictConfig:
    """The configuration of the same group options without the preset and the scale: what may be written where."""
    selected = [f"{group}={choices[group]}" for group in groups_on_disk() if group not in {"recipe", "scale", "debug"}]
    return _hydra(["~recipe", "scale=paper", *selected, *words])


def choices_of(words: list[str]) -> dict[str, str]:
    """Which option each group has, for these words."""
    choices = OmegaConf.to_container(_hydra(words).hydra.runtime.choices)
    assert isinstance(choices, dict)
    return {str(group): str(option) for group, option in choices.items()}


def presets() -> list[str]:
    """Names of all presets on disk, such as `index_1p9b_32k/pretrain`."""
    folder = conf_folder() / "recipe"
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def groups_on_disk() -> list[str]:
    return sorted(path.name for path in conf_folder().iterdir() if path.is_dir() and path.name != "__pycache__")


def conf_folder() -> Path:
    return _package_folder("conf")


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _bundled(name: str) -> str:
    first, _, rest = name.partition("/")
    if first not in BUNDLED:
        raise ValueError(f"there is nothing bundled under '{name}'; known are {sorted(BUNDLED)}")
    return str(_package_folder(BUNDLED[first]) / BUNDLED_FOLDERS.get(first, first) / rest)


def _check_choices(named: dict[str, str], groups: set[str]) -> None:
    """Names the nearest options before Hydra lists all of them."""
    if "recipe" not in named:
        raise ValueError(f"no recipe given; add recipe=<name>, one of: {', '.join(presets())}")
    for group, option in named.items():
        if group not in groups:
            continue
        known = presets() if group == "recipe" else [path.stem for path in (conf_folder() / group).glob("*.yaml")]
        if option not in known:
            near = difflib.get_close_matches(option, known, n=3, cutoff=0.3) or sorted(known)
            raise ValueError(f"{group}={option} does not exist; nearest: {', '.join(near)}")


def _hydra(words: list[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    OmegaConf.register_new_resolver("bundled", _bundled, replace=True)
    OmegaConf.register_new_resolver("product", lambda a, b: round(float(a) * float(b)), replace=True)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("conf", version_base="1.3"):
            return hydra_compose("config", overrides=words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_sentence(error, words)) from error


def _one_sentence(error: Exception, words: list[str]) -> str:
    message = " ".join(line.strip() for line in str(error).splitlines()[:2]).replace("\n", " ")
    for word in words:
        key = word.split("=", 1)[0]
        if (key and f"'{key}'" in message) or f"Key '{key.split('.')[-1]}' is not in struct" in message:
            return f"unknown key '{key}' on the command line; {_nearest(key)}"
    return message


def _nearest(key: str) -> str:
    known = list(_keys(_hydra(["~recipe"])))
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else "see python -m recipes.show recipe=…"


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of every key."""
    found = []
    for key in config:
        if key == "hydra":
            continue
        name = f"{prefix}{key}"
        found.append(name)
        if OmegaConf.is_dict(child := config._get_node(key)):
            found += _keys(child, f"{name}.")  # type: ignore[arg-type]
    return found
