"""The stages that an exported model comes from, as a section of its card.

A run that started from another run's export says so by the path of its model, so the stages are found whether a
pipeline ran them or a person did, one by one. A base that was moved away ends the list.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipes.judging import value_of
from recipes.run_folder import RunFolder


def lineage(run: RunFolder) -> list[RunFolder]:
    """The runs that a run comes from, the first one first, and itself."""
    found = [run]
    while (base := _base(found[0])) is not None and base.path not in [known.path for known in found]:
        found.insert(0, base)
    return found


def lineage_section(run: RunFolder) -> tuple[str, ...]:
    """Every stage with what it started from; none where there is one stage alone."""
    runs = lineage(run)
    if len(runs) == 1:
        return ()
    lines = ["## Lineage", ""]
    for number, stage in enumerate(runs, 1):
        config = OmegaConf.load(stage.path / "config.yaml")
        info = stage.info()
        before, after = config.model.original_context_length, config.context_length
        context = f"{before:,} -> {after:,} tokens" if before != after else f"{after:,} tokens"
        assert isinstance(config, DictConfig)
        starts = starting_model(config) if number == 1 else f"stage {number - 1}"
        lines.append(
            f"{number}. `{info['recipe']}` ({config.about.paper}), from {starts}: context {context},"
            f" {info.get('steps', 0):,} steps, {stage.tokens:,} tokens"
        )
    return ("\n".join(lines),)


def starting_model(config: DictConfig) -> str:
    """What a run starts from, which at another scale or with another `model` is not what the paper extends."""
    name, extends = value_of(config, "model.source.name_or_path"), str(config.about.extends)
    if name is None:
        return extends
    above = Path(str(name)).expanduser().parent
    if (above / "run.json").is_file():
        return f"the export of a run of `{RunFolder(above).info()['recipe']}`"
    found = Path(str(name)).name
    return extends if extends.lower().startswith(found.lower()) else f"`{found}` (the paper: {extends})"


def _base(run: RunFolder) -> RunFolder | None:
    name = run.info()["mechanism"].get("model.source.name_or_path")
    folder = Path(str(name)).expanduser().parent
    return RunFolder(folder) if name is not None and (folder / "run.json").is_file() else None
