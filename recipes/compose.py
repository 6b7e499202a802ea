"""From the words on the command line to one configuration.

    conf/config.yaml  <  group options  <  preset (recipe=…)  <  variant=…  <  scale=…  <  debug=…  <  the command line

Naming a group option on the command line (`rope=linear`) replaces what the preset wrote in that group, so that an
ablation is one override and never a mixture of two options' keys. The rules are Hydra's; where conf/ keeps to what
`quick_compose` understands, it is read without Hydra, and only single keys are parsed by it. Cost: some 10 ms, most
of it for the keys, where Hydra takes 80 ms; twice that where an option is replaced.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from recipes import roles, scaling
from recipes.importing.gguf_folder import path_faults, value_of_gguf

BUNDLED = {"demo_model": "lightning_modules.models", "classics": "datamodules.corpora"}
BUNDLED_FOLDERS = {"demo_model": "demo"}
OVERLAYS = ("recipe", "variant", "scale", "debug")
"""Groups whose options write into all others; they have no node of their own."""
READ_ELSEWHERE = {
    "ablation": "python -m recipes.ablate",
    "hardware": "python -m recipes.plan",
    "pipeline": "python -m recipes.run",
}
"""Folders of conf/ whose files are no part of a configuration, and the verb that reads them."""


WHOLE = ("corpus.mixture", "corpus.sampling")
"""Mappings of names of the user's own: one on the command line takes the place of the preset's, in which it would be
mixed with names that it leaves out."""


class Composed(NamedTuple):
    config: DictConfig  # unresolved
    choices: dict[str, str]  # group -> option
    words: tuple[str, ...]  # what it was composed from


class ConfigError(ValueError):
    """Faults of a configuration, one a line."""


def compose(words: Sequence[str]) -> Composed:
    """The configuration of `key=value` words.

    Raises:
        ConfigError: No recipe, an unknown one, or a word that does not fit; one sentence for each fault.
    """
    if faults := [*_malformed(words)] or [*_unknown_options(words)]:
        raise ConfigError("\n".join(faults))
    try:
        composed = _composed(words)
    except _composition_errors() as error:
        raise ConfigError("\n".join(_blame(words, error))) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if faults := [*path_faults(composed.config)]:
        raise ConfigError("\n".join(faults))
    composed.config.recipe_name = composed.choices["recipe"]
    return composed


def _composed(words: Sequence[str]) -> Composed:
    """What Hydra makes of the words, and then the rules that it does not have."""
    # What is said of a corpus in the user's folders can be said only when its sources are known.
    in_folders = roles.folder_of(dict(word.split("=", 1) for word in words))
    later = [word for word in words if in_folders and _name(word).startswith("corpus.") and "folder" not in _name(word)]
    now = [word for word in words if word not in later]
    kept = scaling.kept_words(now, _hydra, conf_folder())
    composed = _hydra([*now, *kept])._replace(words=tuple(now))
    _replace_nodes(composed, kept)
    scaling.keep_corpus_rules(composed, _hydra)
    if in_folders:
        preset, rules = scaling.unscaled(now, _hydra).config, [f"corpus.{rule}" for rule in scaling.CORPUS_RULES]
        of_rules = [word for word in later if _name(word).startswith(tuple(rules))]
        roles.take_rules(composed.config, preset)
        _set_later(composed.config, of_rules)
        roles.take_sources(composed.config, preset, conf_folder())
        _set_later(composed.config, [word for word in later if word not in of_rules])
    scaling.settle_units(composed, _hydra, conf_folder())
    return composed._replace(words=tuple(words))


def _replace_nodes(composed: Composed, kept: Sequence[str] = ()) -> None:
    """Take nodes whose option the command line changed from their group alone, without what the preset wrote there.

    So too those of a variant, and a scale's model; `kept` are options that the scale leaves the preset.
    """
    words, groups = composed.words, groups_on_disk()
    _replace_of_variant(composed)
    replaced: list[str] = []
    if any(_name(word) in groups and _name(word) not in OVERLAYS for word in words):
        before = _hydra([*(word for word in words if _name(word) in OVERLAYS), *kept]).choices
        replaced = [group for group in groups if group not in OVERLAYS and composed.choices[group] != before[group]]
    of_scale = "model" not in replaced and scaling.changes_model(composed, _hydra)
    replaced += ["model"] if of_scale else []
    if replaced:
        fresh = plain(
            composed.choices, [word for word in words if _name(word).split(".")[0] in replaced and "." in _name(word)]
        )
        if of_scale:
            scaling.keep_dtype(composed.config.model, fresh.model)
        for group in replaced:
            composed.config[group] = fresh[group]


def _replace_of_variant(composed: Composed) -> None:
    """Take nodes whose option a variant changed from their group, under what is written over the preset.

    Another corpus plays the preset's roles, so what the preset says of these stays.
    """
    from recipes.quick_compose import body_of

    overlays = {_name(word): word for word in composed.words if _name(word) in OVERLAYS}
    if "variant" not in overlays:
        return
    own = _hydra([overlays["recipe"]]).choices
    changed = _hydra([overlays["recipe"], overlays["variant"]]).choices
    mechanisms = [group for group in groups_on_disk() if group not in (*OVERLAYS, "corpus")]
    replaced = [group for group in mechanisms if own[group] != changed[group] == composed.choices[group]]
    fresh = plain(composed.choices) if replaced else composed.config
    for group in replaced:
        said = OmegaConf.to_container(composed.config[group], resolve=False)
        later = ((name, overlays[name].partition("=")[2]) for name in OVERLAYS[1:] if name in overlays)
        bodies = [body_of(conf_folder() / name / f"{option}.yaml", group) for name, option in later]
        composed.config[group] = OmegaConf.merge(fresh[group], *bodies)
        for path in (_name(word).split(".")[1:] for word in composed.words if _name(word).startswith(f"{group}.")):
            OmegaConf.update(composed.config[group], ".".join(path), _at(said, path), merge=False, force_add=True)


def _at(node: Any, path: Sequence[str]) -> Any:
    """What plain data hold under a path of keys."""
    for key in path:
        node = node[key]
    return node


def plain(choices: dict[str, str], words: Sequence[str] = ()) -> DictConfig:
    """The configuration of the same options without preset and scale: which keys there are, and their defaults."""
    selected = [f"{group}={choices[group]}" for group in groups_on_disk() if group not in OVERLAYS]
    return _hydra([*selected, *words]).config


def presets() -> list[str]:
    """Names of all presets on disk, such as `index_1p9b_32k/pretrain`."""
    return options("recipe")


def options(group: str) -> list[str]:
    """What `group=` can be."""
    folder = conf_folder() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def ablations() -> list[str]:
    """Names of all ablations on disk, such as `rope_base`."""
    return options("ablation")


def ablation_file(name: str) -> Path:
    return conf_folder() / "ablation" / f"{name}.yaml"


def groups_on_disk() -> list[str]:
    """Folders whose options make up a configuration."""
    others = {"__pycache__", *READ_ELSEWHERE}
    return sorted(path.name for path in conf_folder().iterdir() if path.is_dir() and path.name not in others)


def conf_folder() -> Path:
    return _package_folder("conf")


def dotted_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Names of every key, `optimizer` and `optimizer.lr`."""
    found = []
    for key in config:
        found.append(name := f"{prefix}{key}")
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_interpolation():
            found += dotted_keys(child, f"{name}.")
    return found


def one_sentence(error: BaseException) -> str:
    """The first line of a message of Hydra, OmegaConf or YAML; what follows is about their insides."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _hydra(words: Sequence[str]) -> Composed:
    """What Hydra composes of the words, by itself only where it has to; no preset is selected without `recipe=`."""
    _register_resolvers()
    return _without_hydra(words) or copy.deepcopy(_composed_once(conf_folder(), tuple(words)))


def _without_hydra(words: Sequence[str]) -> Composed | None:
    """The same from the files themselves; None where a file or a word is unusual, or wrong, which Hydra then says."""
    from recipes.quick_compose import Unusual, option_values

    groups = groups_on_disk()
    named = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in groups)
    try:
        config, choices = option_values(conf_folder(), named)
        _set_keys(config, [word for word in words if word.split("=", 1)[0] not in groups])
    except (Unusual, OSError, YAMLError, *_composition_errors()):
        return None
    return Composed(config, choices, tuple(words))


def _set_keys(config: DictConfig, words: Sequence[str]) -> None:
    """What Hydra does last: `key=value` where there is the key, `+key=value` where there is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType

    from recipes.quick_compose import Unusual

    OmegaConf.set_struct(config, True)
    for override in OverridesParser.create().parse_overrides(list(words)):
        key, value, adds = override.key_or_group, override.value(), override.is_add()
        taken = adds and not isinstance(value, dict | list) and OmegaConf.select(config, key) is not None
        ordinary = adds or override.type is OverrideType.CHANGE
        if taken or not ordinary or override.is_sweep_override() or override.package is not None or "/" in key:
            raise Unusual
        OmegaConf.update(config, key, value, merge=key not in WHOLE, force_add=adds)
    OmegaConf.set_struct(config, None)


def _set_later(config: DictConfig, words: Sequence[str]) -> None:
    """The same without Hydra to turn to."""
    from recipes.quick_compose import Unusual

    for word in words:
        try:
            _set_keys(config, [word])
        except Unusual:
            raise ConfigError(f"'{word}' is not understood beside corpus.folder; give one value to one key") from None


@lru_cache(maxsize=64)
def _composed_once(folder: Path, words: tuple[str, ...]) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    preset = [] if any(_name(word) == "recipe" for word in words) else ["~recipe"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        full = hydra_compose("config", overrides=[*preset, *words], return_hydra_config=True)
    choices = {str(group): str(option) for group, option in full.hydra.runtime.choices.items()}
    config = OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"])
    return Composed(config, choices, words)


@lru_cache(maxsize=1)
def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("bundled", _bundled, replace=True)
    OmegaConf.register_new_resolver("product", lambda a, b: round(float(a) * float(b)), replace=True)
    OmegaConf.register_new_resolver("at_most", lambda value, limit: min(value, limit), replace=True)
    OmegaConf.register_new_resolver("octaves", _octaves, replace=True)
    OmegaConf.register_new_resolver("gguf", value_of_gguf, replace=True)
    OmegaConf.register_new_resolver("rest_of_one", lambda share: round(1 - float(share), 12), replace=True)


def _composition_errors() -> tuple[type[Exception], ...]:
    from hydra.errors import HydraException

    return HydraException, OmegaConfBaseException, MarkedYAMLError


def _malformed(words: Sequence[str]) -> list[str]:
    """Words that are not `key=value`, keys that are given twice, and a missing recipe."""
    faults, seen = [], set()
    for word in words:
        name = _name(word)
        if "=" not in word or not name or word[0] in "-~":
            faults.append(f"'{word}' is not of the form key=value; see python -m recipes.show recipe=… for the keys")
        elif (first := name.split(".")[0]) in READ_ELSEWHERE:
            faults.append(f"'{word}' is a word of {READ_ELSEWHERE[first]} alone; remove it, or use that verb")
        elif first == "hydra":
            faults.append(f"'{word}' is a setting of Hydra's, which nothing here reads; remove it")
        elif name in seen:
            faults.append(f"{name} is given twice; keep one")
        seen.add(name)
    if "recipe" not in seen:
        faults.append(f"no recipe given; add recipe=<name>, one of: {', '.join(presets())}")
    return faults


def _unknown_options(words: Sequence[str]) -> list[str]:
    faults, groups = [], groups_on_disk()
    for word in words:
        group, option = _name(word), word.split("=", 1)[1]
        if group in groups and option not in (known := options(group)):
            near = difflib.get_close_matches(option, known, n=3, cutoff=0.4)
            near = near or [name for name in known if option and option in name]
            allowed = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
            faults.append(f"{group}={option} does not exist; {allowed}")
    return faults


def _blame(words: Sequence[str], error: Exception) -> list[str]:
    """One sentence for each word that Hydra would not take, or one about the preset."""
    groups = groups_on_disk()
    whole = [word for word in words if _name(word) in groups or _name(word) == "corpus.folder"]
    try:
        without_keys = _composed(whole)
    except _composition_errors() as deeper:
        recipe = next(word for word in whole if _name(word) == "recipe")
        return [f"{recipe} does not compose: {one_sentence(deeper)}"]
    faults, known = [], dotted_keys(without_keys.config)
    for word in words:
        name = _name(word)
        if word in whole:
            continue
        if name not in known and not word.startswith("+"):
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"nearest: {', '.join(near)}" if near else "see python -m recipes.show recipe=…"
            faults.append(f"unknown key '{name}' on the command line; {hint}")
            continue
        try:
            _composed([*whole, word])
        except _composition_errors() as problem:
            faults.append(_not_understood(word, problem))
    return faults or [one_sentence(error)]


def _not_understood(word: str, error: Exception) -> str:
    if "multirun" in str(error):
        return f"'{word}' gives several values to one key; name one, or write a list as {_name(word)}=[…]"
    return f"'{word}' is not understood ({one_sentence(error)}); put a value with brackets, commas or spaces in quotes"


def _name(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+")


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _octaves(length: int) -> ListConfig:
    """An eighth, a quarter, a half and the whole of a length."""
    return OmegaConf.create([int(length) // part for part in (8, 4, 2, 1)])


def _bundled(name: str) -> str:
    first, _, rest = name.partition("/")
    if first not in BUNDLED:
        raise ValueError(f"there is nothing bundled under '{name}'; known are {sorted(BUNDLED)}")
    return str(_package_folder(BUNDLED[first]) / BUNDLED_FOLDERS.get(first, first) / rest)
