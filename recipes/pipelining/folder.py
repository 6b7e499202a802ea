"""One pipeline, one folder: `outputs/pipelines/<paper>/<time>/`, and `latest` beside it.

    pipeline.json  report.md  scores.csv  scores.json  figures/  export -> 2-sft/export  1-pretrain/  2-sft/

A stage's folder is an ordinary run folder. The same command goes on with its folder. Another one, of other words, gets
a folder of its own, in which a stage that would train exactly what an earlier pipeline trained is a link to that one:
changing a word of the second stage does not train the first one again. A process holds the folder that it works in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from lightning_modules.checkpointing import newest_checkpoint
from recipes.reporting.tables import write_whole
from recipes.run_folder import lock_folder, new_folder, point_latest, versions

RECORD = "pipeline.json"


class PipelineFolder(NamedTuple):
    """The folder of a pipeline, held by this process."""

    path: Path
    lock: IO[str]

    def info(self) -> dict[str, Any]:
        return read_record(self.path)

    def update(self, **facts: Any) -> None:
        """Write facts into `pipeline.json`, whole or not at all."""
        write_whole(self.path / RECORD, json.dumps({**self.info(), **facts}, indent=2) + "\n")

    def note(self, stage: str, **facts: Any) -> None:
        """Write facts about a stage."""
        stages = self.info()["stages"]
        stages[stage] |= facts
        self.update(stages=stages)


def root(output_dir: str, name: str) -> Path:
    """Where the folders of a pipeline lie."""
    return Path(output_dir) / "pipelines" / name


def read_record(folder: Path) -> dict[str, Any]:
    """What `pipeline.json` holds; nothing where there is none.

    Raises:
        ValueError: Somebody wrote into it what is no JSON.
    """
    file = folder / RECORD
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); mend it, or move {folder} elsewhere") from error


def found_folder(parent: Path, identities: Mapping[str, str], *, resume: str) -> PipelineFolder | None:
    """The folder to go on with, as `resume` says; None where there is to be a new one.

    Args:
        parent: Where the folders of the pipeline lie.
        identities: Stage -> what its weights depend on.
        resume: auto: the newest one of the same stages; never; or a folder.

    Raises:
        ValueError: `resume` names no such folder, or another process works in it.
    """
    if resume == "never":
        return None
    if resume == "auto":
        path = next((path for path in _folders(parent) if _identities(path) == dict(identities)), None)
    else:
        path = Path(resume).resolve() if Path(resume).is_symlink() else Path(resume)
        if not _identities(path):
            raise ValueError(f"resume={resume} is no folder of a pipeline; set resume to one, or to auto or never")
        if other := [name for name, identity in identities.items() if _identities(path).get(name) != identity]:
            raise ValueError(f"resume={resume} has other settings of {', '.join(other)}; set resume=auto or never")
    if path is None:
        return None
    if (lock := lock_folder(path)) is None:
        raise ValueError(f"{path} is being run by another process; wait for it, or set resume=never for one beside it")
    return PipelineFolder(path, lock)


def make_folder(
    parent: Path, *, name: str, words: Sequence[str], stages: Mapping[str, Any], anew: bool
) -> PipelineFolder:
    """A new folder, with its record.

    Args:
        parent: Where the folders of the pipeline lie.
        name: Of the pipeline.
        words: Of the command line.
        stages: Name -> facts.
        anew: Whether no stage of an earlier pipeline may stand in for one of this.
    """
    path = new_folder(parent, datetime.now().strftime("%Y%m%d-%H%M%S"))
    lock = lock_folder(path)
    assert lock is not None
    folder = PipelineFolder(path, lock)
    record = {"pipeline": name, "status": "started", "words": [*words], "anew": anew, "stages": dict(stages)}
    record |= versions()
    write_whole(path / RECORD, json.dumps(record, indent=2) + "\n")
    point_latest(parent, path)
    return folder


def stage_folder(folder: Path, number: int, name: str, *, base: Path | None) -> Path:
    """Where a stage runs: in this folder, or in an earlier one where it has been trained, or begun, already.

    Args:
        folder: Of the pipeline.
        number: Of the stage, from 1.
        name: Of the stage, as in the folder's record.
        base: The export that the stage starts from.
    """
    place = folder / f"{number}-{name}"
    is_open = not place.is_symlink() and not place.exists() and not read_record(folder)["anew"]
    if is_open and (earlier := _earlier(folder, name, base)) is not None:
        link_to(earlier, place)
    return Path(os.path.normpath(folder / place.readlink())) if place.is_symlink() else place


def link_to(target: Path, link: Path) -> None:
    """Let a link lead to a target, at once; the two can be moved together."""
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)


def is_held(run_folder: Path) -> bool:
    """Whether a process trains in a run folder."""
    if not (run_folder / ".lock").exists():
        return False
    if (lock := lock_folder(run_folder)) is None:
        return True
    lock.close()
    return False


def _earlier(folder: Path, name: str, base: Path | None) -> Path | None:
    """The run of an equal stage in another folder that nobody works in: a finished one, or else one to go on with."""
    identity = _identities(folder)[name]
    begun: list[Path] = []
    for other in _folders(folder.parent):
        stage = read_record(other)["stages"].get(name, {})
        if other == folder or stage.get("identity") != identity or not stage.get("folder"):
            continue
        run = (other / stage["folder"]).resolve()
        is_run = (run / "run.json").is_file() and newest_checkpoint(run / "checkpoints")
        if is_run and not is_held(run) and (base is None or _base_of(run) == str(base)):
            begun.append(run)
    return next((run for run in begun if _info(run)["status"] == "finished"), next(iter(begun), None))


def _base_of(run_folder: Path) -> str:
    return str(_info(run_folder)["mechanism"].get("model.source.name_or_path"))


def _info(run_folder: Path) -> dict[str, Any]:
    return json.loads((run_folder / "run.json").read_text(encoding="utf-8"))


def _identities(folder: Path) -> dict[str, str]:
    return {name: stage["identity"] for name, stage in read_record(folder).get("stages", {}).items()}


def _folders(parent: Path) -> Iterator[Path]:
    """Folders of a pipeline, newest first."""
    yield from sorted(
        (file.parent for file in parent.glob(f"*/{RECORD}") if not file.parent.is_symlink()), reverse=True
    )
