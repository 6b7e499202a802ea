"""What `pipeline=<paper>` names: the stages of a paper in order, each from the last one's export.

    conf/pipeline/<paper>.yaml
    paper     for people
    stages    [{name, recipe, words, at_scale, starts_from}]: a preset each; words, if given, are key=value words of the
              stage, and at_scale such words for a scale, as {toy: […]}; starts_from is an earlier stage, null for a
              model of the preset's own, by default the stage before

On the command line `sft.optimizer.lr=1e-5` is a word of the stage sft alone; every other word goes to all stages that
have its key. A stage cannot be called like a key or a group of the configuration, so the two are never confused. Cost:
nothing is composed or imported here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recipes import compose as composing
from recipes.ablating.faults import key_of
from recipes.compose import ConfigError, groups_on_disk, one_sentence, options, presets

KEYS, STAGE_KEYS = ("paper", "stages"), ("name", "recipe", "words", "at_scale", "starts_from")
RESERVED = ("export", "figures", "starting", "latest", "pipeline", "stage", "stages")
NOT_HERE = {
    "recipe": "the pipeline says which preset each stage runs",
    "recipe_name": "the preset writes it",
    "run_folder": "every stage has a folder of its own below output_dir",
    "checkpoint": "every stage starts from the export of the one before",
}
"""Words that mean something to other verbs, or to a recipe alone."""
OF_ALL = ("resume", "output_dir", "cache_dir")
"""Words of the pipeline that a stage cannot have otherwise."""
HANDED_OVER = (
    "model",
    "model.source.name_or_path",
    "model.source.revision",
    "model.tokenizer",
    "model.original_context_length",
)
"""What a stage gets from the one that it starts from."""


class Stage(NamedTuple):
    """One preset of a pipeline."""

    name: str
    recipe: str
    starts_from: str | None  # name of an earlier stage; None: the preset's own model
    words: tuple[str, ...]  # of the file
    own: tuple[str, ...] = ()  # of the command line, for this stage alone


@dataclass(frozen=True)
class Pipeline:
    """The stages of a paper with the words of a command line.

    Attributes:
        name: Of the file.
        paper: For people.
        stages: In the order in which they run.
        general: Words for every stage that has their key.
        words: All that the command line said beside the name.
        resume: auto, never, or a pipeline's folder.
    """

    name: str
    paper: str
    stages: tuple[Stage, ...]
    general: tuple[str, ...]
    words: tuple[str, ...]
    resume: str

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def is_pipeline(words: Sequence[str]) -> bool:
    """Whether the words name a pipeline, and not a recipe."""
    return any(key_of(word) == "pipeline" for word in words)


def read_pipeline(words: Sequence[str]) -> Pipeline:
    """The pipeline that the words of a command line name.

    Raises:
        ConfigError: No such pipeline, or a file or word that does not fit; one sentence for each fault.
    """
    name = _name_of(words)
    given = [word for word in words if key_of(word) != "pipeline"]
    node = _node(name)
    _refuse(name, [*node_faults(node)])
    stages = [*_stages(node, given)]
    names = [stage.name for stage in stages]
    _refuse(name, [*_word_faults(given, stages)])
    own = {stage: tuple(_without(word, stage) for word in given if stage_of(word, names) == stage) for stage in names}
    return Pipeline(
        name=name,
        paper=str(node["paper"]),
        stages=tuple(stage._replace(own=own[stage.name]) for stage in stages),
        general=tuple(word for word in given if stage_of(word, names) is None and key_of(word) != "resume"),
        words=tuple(given),
        resume=next((word.split("=", 1)[1] for word in given if key_of(word) == "resume"), "auto"),
    )


def stage_of(word: str, names: Sequence[str]) -> str | None:
    """The stage that a word is meant for alone, if it begins with the name of one."""
    first, dot, _ = key_of(word).partition(".")
    return first if dot and first in names else None


def merged(*words: Sequence[str]) -> tuple[str, ...]:
    """All words in order, of each key the last one."""
    by_key = {key_of(word): word for group in words for word in group}
    return tuple(by_key.values())


def node_faults(node: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the file."""
    for key in node:
        if key not in KEYS:
            yield f"{key} is not a key of a pipeline; they are {' and '.join(KEYS)}"
    stages = node.get("stages")
    if not isinstance(node.get("paper"), str) or not isinstance(stages, list) or not stages:
        yield "the file must have paper, and stages as a list of {name, recipe}"
        return
    taken = {*RESERVED, *groups_on_disk(), *map(str, OmegaConf.load(composing.conf_folder() / "config.yaml"))}
    before: list[str] = []
    for k, stage in enumerate(stages):
        where = f"stages[{k}]"
        if not isinstance(stage, dict) or not {"name", "recipe"} <= set(stage) <= set(STAGE_KEYS):
            yield f"{where}={stage} must have name and recipe, and may have words, at_scale and starts_from"
            continue
        name, recipe = str(stage["name"]), stage["recipe"]
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in before or name in taken:
            yield f"{where}.name={name} must be a name of letters, digits and _, and of nothing else in a configuration"
        if recipe not in presets():
            yield f"{where}.recipe={recipe} does not exist{_near(str(recipe), presets())}"
        yield from _words_faults(stage.get("words"), f"{where}.words")
        at_scale = stage.get("at_scale") or {}
        if not isinstance(at_scale, dict) or not set(at_scale) <= set(options("scale")):
            yield f"{where}.at_scale={at_scale} must be lists of words by scale: {', '.join(options('scale'))}"
        else:
            for scale, words in at_scale.items():
                yield from _words_faults(words, f"{where}.at_scale.{scale}")
        if stage.get("starts_from") not in (None, *before):
            yield f"{where}.starts_from={stage['starts_from']} must be null or a stage before it"
        before.append(name)


def _words_faults(words: Any, where: str) -> Iterator[str]:
    if words and (not isinstance(words, list) or not all(isinstance(word, str) and "=" in word for word in words)):
        yield f"{where}={words} must be a list of key=value words"


def _word_faults(given: Sequence[str], stages: Sequence[Stage]) -> Iterator[str]:
    names = [stage.name for stage in stages]
    keys = [key_of(word) for word in given]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"{key} is given twice; keep one"
    for word in given:
        stage = stage_of(word, names)
        key = key_of(word) if stage is None else key_of(word).removeprefix(f"{stage}.")
        if key in NOT_HERE:
            yield f"{key} cannot be set here, as {NOT_HERE[key]}; remove {word}"
        elif stage is None and key == "variant" and len(stages) > 1:
            yield f"{word} changes one stage; say which, such as {names[0]}.{word}"
        elif stage is not None and key in OF_ALL:
            yield f"{key} is the same for all stages; give {word.removeprefix(f'{stage}.')} instead of {word}"
    for stage in stages:
        for word in given:
            if stage_of(word, names) == stage.name and stage.starts_from and is_handed_over(_without(word, stage.name)):
                yield f"{word} cannot be set, as {stage.name} starts from the export of {stage.starts_from}; remove it"


def is_handed_over(word: str) -> bool:
    """Whether a word is about the model that a stage starts from."""
    key = key_of(word)
    return key in HANDED_OVER or key.startswith("model.tokenizer.")


def _without(word: str, stage: str) -> str:
    plus = word[: len(word) - len(word.lstrip("+"))]
    return plus + word.lstrip("+").removeprefix(f"{stage}.")


def _stages(node: Mapping[str, Any], given: Sequence[str]) -> Iterator[Stage]:
    before = None
    said = {key_of(word): word.split("=", 1)[1] for word in given}
    for stage in node["stages"]:
        scale = said.get(f"{stage['name']}.scale", said.get("scale"))
        words = merged(stage.get("words") or (), (stage.get("at_scale") or {}).get(scale) or ())
        starts_from = stage.get("starts_from", before)  # null is one of its own
        yield Stage(stage["name"], stage["recipe"], starts_from, words)
        before = stage["name"]


def _name_of(words: Sequence[str]) -> str:
    known = options("pipeline")
    unreadable = [word for word in words if "=" not in word or word[0] in "-~="]
    faults = [f"'{word}' is not of the form key=value; see python -m recipes.run --help" for word in unreadable]
    names = [word.split("=", 1)[1] for word in words if "=" in word and key_of(word) == "pipeline"]
    if len(names) > 1:
        faults.append("pipeline is given twice; keep one")
    for name in names:
        if name not in known:
            faults.append(f"pipeline={name} does not exist{_near(name, known)}")
    if faults:
        raise ConfigError("\n".join(faults))
    return names[0]


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; nearest: {', '.join(near)}" if near else f"; there are: {', '.join(known)}"


def _refuse(name: str, faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError("\n".join(f"pipeline={name}: {fault}" for fault in faults))


def _node(name: str) -> dict[str, Any]:
    try:
        node = OmegaConf.load(composing.conf_folder() / "pipeline" / f"{name}.yaml")
        if not isinstance(node, DictConfig):
            raise ConfigError(f"pipeline={name}: the file must hold the keys {' and '.join(KEYS)}")
        found = OmegaConf.to_container(node)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"pipeline={name}: {one_sentence(error)}") from error
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
