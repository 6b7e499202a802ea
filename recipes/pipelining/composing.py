"""All stages of a pipeline composed and validated before the first one starts.

    words of a stage:  recipe < the file's < general ones that it takes < BETWEEN < its own < what it is handed

A stage that starts from another gets that one's export as its model. As long as there is none, a shell of it stands in
its place (recipes/pipelining/shell.py). Cost: some 100 ms a stage, and reading each base model's config and tokenizer.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from recipes.ablating.faults import key_of
from recipes.compose import ConfigError, compose, dotted_keys, groups_on_disk
from recipes.judging import value_of
from recipes.pipelining.pipeline import Pipeline, Stage, is_handed_over, merged
from recipes.validate import validate
from recipes.verifying.folder import read_json, text_part

BETWEEN = ("export.layout=native", "export.dtype=float32")
"""How a stage hands over what another one trains further: in its own architecture, and not rounded."""

NAMES = ("model.source.name_or_path", "model.tokenizer.name_or_path")


class Planned(NamedTuple):
    """A stage ready to run."""

    stage: Stage
    words: tuple[str, ...]  # without what is handed over
    config: DictConfig  # with a shell of what is handed over
    identity: str  # of everything that its weights depend on


def compose_stages(pipeline: Pipeline, shells: Path) -> dict[str, Planned]:
    """The configuration of every stage, validated.

    Args:
        pipeline: What the command line named.
        shells: An empty folder, for what stages will hand over.

    Raises:
        ConfigError: With every fault of every stage, one a line, naming the stages that have it.
    """
    words = stage_words(pipeline)
    planned: dict[str, Planned] = {}
    faults: dict[str, list[str]] = {}
    for stage in pipeline.stages:
        base = None if stage.starts_from is None else planned.get(stage.starts_from)
        shell = shells / (stage.starts_from or "")
        try:
            config = _valid(stage, words[stage.name], base, shell)
            if _is_base(stage, pipeline):
                _hand_over(config, shells / stage.name)
            planned[stage.name] = Planned(stage, words[stage.name], config, _identity(config, base))
        except ConfigError as error:
            for fault in _of_this_stage(str(error), stage, base, shell):
                faults.setdefault(fault, []).append(stage.name)
    _refuse(faults, pipeline)
    return planned


def stage_words(pipeline: Pipeline) -> dict[str, tuple[str, ...]]:
    """The words of every stage, without what is handed over.

    Raises:
        ConfigError: A word that no stage takes, or a preset that does not compose.
    """
    found: dict[str, tuple[str, ...]] = {}
    faults: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    for stage in pipeline.stages:
        try:
            meant = _meant(pipeline.general, stage)
            keys[stage.name] = dotted_keys(compose(_options(stage, meant)).config)
        except ConfigError as error:
            for fault in str(error).splitlines():
                faults.setdefault(fault, []).append(stage.name)
            continue
        taken = [word for word in meant if _is_whole(word) or word[0] == "+" or key_of(word) in keys[stage.name]]
        between = BETWEEN if _is_base(stage, pipeline) else ()
        found[stage.name] = merged([f"recipe={stage.recipe}"], stage.words, taken, between, stage.own)
    _refuse(faults, pipeline)
    for word in pipeline.general:
        if not any(word in taken or _overruled(word, taken) for taken in found.values()):
            faults[_taken_by_none(word, keys)] = []
    _refuse(faults, pipeline)
    return found


def partly_taken(pipeline: Pipeline) -> Iterator[str]:
    """A line for each general word that some stages do not take."""
    found = stage_words(pipeline)
    for word in pipeline.general:
        names = [name for name, words in found.items() if word in words]
        if 0 < len(names) < len(found):
            yield f"{word} goes to {' and '.join(names)} alone"


def final_words(planned: Planned, *, base: Planned | None, export: Path | None, run_folder: Path) -> list[str]:
    """The words of a stage as it runs.

    Args:
        planned: The stage.
        base: What it starts from; None where that is the preset's own model.
        export: The folder of that.
        run_folder: Where the run goes.
    """
    handed = () if base is None or export is None else _handed(export, base.config, planned.words, planned.config)
    return [*merged(planned.words, handed), f"run_folder={quoted(run_folder)}"]


def quoted(path: Path) -> str:
    """A path as a value on the command line."""
    text = str(path)
    return text if re.fullmatch(r"[\w./~-]+", text) else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _handed(export: Path, base: DictConfig | None, words: Sequence[str], config: DictConfig) -> tuple[str, ...]:
    """Words by which a stage takes an export as its model.

    Args:
        export: Its folder, or its shell's.
        base: Configuration of the stage that exported it; None where that has faults.
        words: Of the stage that takes it.
        config: The same, composed.
    """
    reads = value_of(config if base is None else base, "context_length")
    counted = reads if base is None else int(text_part(read_json(export / "config.json"))["max_position_embeddings"])
    found = [
        "model=hugging_face",
        f"model.source.name_or_path={quoted(export)}",
        "model.source.revision=null",
        f"model.tokenizer.name_or_path={quoted(export)}",
        f"model.original_context_length={counted}",
        "model.head_dim=null",  # what the preset says of the model that it counts on
        "model.original_rope_theta=null",
    ]
    if (dtype := value_of(config, "model.source.dtype")) is not None:  # of frozen weights, the preset's choice
        found.append(f"model.source.dtype={dtype}")
    # A config may count more than the stage was taken to (a factor above its length), or less (dynamic scaling).
    if counted != reads and value_of(config, "extension_factor") == 1 and "context_length" not in map(key_of, words):
        found.append(f"context_length={reads}")
    return tuple(found)


def _valid(stage: Stage, words: Sequence[str], base: Planned | None, shell: Path) -> DictConfig:
    """The valid configuration of a stage, with the shell as its model where it starts from another stage."""
    handed: tuple[str, ...] = ()
    if stage.starts_from is not None:
        handed = _handed(shell, None if base is None else base.config, words, compose(words).config)
    composed = compose(merged(words, handed))
    validate(composed)
    if composed.config.trainer.num_nodes > 1:
        raise ConfigError(
            "trainer.num_nodes must be 1, as a pipeline starts its stages on this machine; run the stages one by one"
        )
    return composed.config


def _hand_over(config: DictConfig, shell: Path) -> None:
    from recipes.build import build_adapter
    from recipes.pipelining.shell import write_shell

    if build_adapter(config) is not None and config.export.adapter_as == "adapter":
        raise ConfigError("export.adapter_as=adapter leaves the next stage no whole model; set it to merged or both")
    try:
        write_shell(config, shell)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _of_this_stage(faults: str, stage: Stage, base: Planned | None, shell: Path) -> Iterator[str]:
    """Faults without those of a model that is not there because of the faults of the stage before."""
    for fault in faults.splitlines():
        if stage.starts_from is None:
            yield fault
        elif base is not None or not fault.startswith(tuple(f"{name}=" for name in NAMES)):
            yield fault.replace(str(shell), f"<the export of {stage.starts_from}>")


def _identity(config: DictConfig, base: Planned | None) -> str:
    from recipes.run_folder import base_fingerprint, mechanism

    flat = mechanism(config)
    if base is not None:  # wherever that lies
        flat = {key: value for key, value in flat.items() if key not in NAMES}
    handed = (
        base_fingerprint(config)
        if base is None
        else {"stage": base.identity, **{key: value_of(base.config, f"export.{key}") for key in ("dtype", "layout")}}
    )
    return hashlib.sha256(json.dumps([flat, handed], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _meant(general: Sequence[str], stage: Stage) -> list[str]:
    """General words without those about what a stage is handed over: the model, and RoPE where the stage keeps it."""
    if stage.starts_from is None:
        return [*general]
    others = [word for word in general if not is_handed_over(word)]
    plain = [word for word in others if not _is_about_rope(word)]
    return plain if compose(_options(stage, plain)).choices["rope"] == "unchanged" else others


def _options(stage: Stage, general: Sequence[str]) -> list[str]:
    """The preset of a stage with the group options that it is given, without single keys."""
    return [word for word in merged([f"recipe={stage.recipe}"], stage.words, general, stage.own) if _is_whole(word)]


def _is_about_rope(word: str) -> bool:
    return key_of(word).split(".")[0] in ("rope", "extension_factor")


def _is_whole(word: str) -> bool:
    """Whether the word names an option of a group, or a preset."""
    return key_of(word) in groups_on_disk()


def _is_base(stage: Stage, pipeline: Pipeline) -> bool:
    return any(other.starts_from == stage.name for other in pipeline.stages)


def _overruled(word: str, taken: Sequence[str]) -> bool:
    return key_of(word) in {key_of(other) for other in taken}


def _taken_by_none(word: str, keys: Mapping[str, Sequence[str]]) -> str:
    key = key_of(word)
    first, _, rest = key.partition(".")
    names = ", ".join(keys)
    if rest and (near := difflib.get_close_matches(first, list(keys), n=1, cutoff=0.5)) and rest in keys[near[0]]:
        return f"'{key}' is no key of any stage; did you mean {near[0]}.{rest}? stages are {names}"
    known = sorted({name for found in keys.values() for name in found})
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    return f"'{key}' is no key of any stage; {hint}a word of one stage begins with its name: {names}"


def _refuse(faults: Mapping[str, Sequence[str]], pipeline: Pipeline) -> None:
    if faults:
        raise ConfigError("\n".join(f"{_said(names, pipeline)}: {fault}" for fault, names in faults.items()))


def _said(names: Sequence[str], pipeline: Pipeline) -> str:
    if not names:
        return f"pipeline={pipeline.name}"
    if len(names) == len(pipeline.stages) > 1:
        return "every stage"
    return f"stage{'s' if len(names) > 1 else ''} {', '.join(names)}"
