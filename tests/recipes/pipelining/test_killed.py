"""A pipeline that is killed, wherever that happens, ends as one that nobody disturbed, bit for bit."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.recipes.pipelining.conftest import Undisturbed
from tests.recipes.pipelining.killed import MOMENTS
from tests.recipes.words import replaced

STAGES = ("1-first", "2-second")


def test_killed_once_it_ends_as_one_that_was_not(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert_ends_equally(undisturbed, tmp_path, "last_step")


@pytest.mark.slow
def test_killed_at_every_moment_in_turn_it_ends_as_one_that_was_not(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert_ends_equally(undisturbed, tmp_path, *MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_one_moment_it_ends_as_one_that_was_not(
    undisturbed: Undisturbed, tmp_path: Path, moment: str
) -> None:
    assert_ends_equally(undisturbed, tmp_path, moment)


def assert_ends_equally(undisturbed: Undisturbed, folder: Path, *moments: str) -> None:
    words = replaced(undisturbed.words, f"output_dir={folder}")

    def start(moment: str) -> int:
        done = processes.finished("tests.recipes.pipelining.killed", moment, str(undisturbed.conf), *words)
        assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
        return done.returncode

    for moment in moments:
        assert start(moment) == -signal.SIGKILL, f"it was not killed at {moment}"
    assert start("never") == 0
    (killed,) = (path for path in (folder / "pipelines" / "mine").iterdir() if not path.is_symlink())
    assert results(killed, *STAGES) == results(undisturbed.outcome.folder, *STAGES)


def results(folder: Path, *names: str) -> dict[str, Any]:
    """Everything that a finished pipeline came to, but for times and places."""
    assert json.loads((folder / "pipeline.json").read_text())["status"] == "finished"
    assert (folder / "report.md").is_file()
    stages = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] in "12")
    assert stages == [*names]
    found: dict[str, Any] = {}
    for file in (*folder.glob("scores.*"), *folder.glob("?-*/scores.*"), *folder.glob("?-*/export/*.safetensors")):
        found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    for file in folder.glob("?-*/metrics.json"):
        metrics = json.loads(file.read_text())
        assert {*metrics} == {"loss", "lr", "tok/s", "val_loss"}
        metrics.pop("tok/s")
        found[str(file.relative_to(folder))] = metrics
    for file in folder.glob("?-*/run.json"):
        facts = json.loads(file.read_text())
        found[str(file.relative_to(folder))] = [facts[key] for key in ("status", "steps", "tokens")]
    assert len(found) == 12
    return found
