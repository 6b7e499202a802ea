from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes import running, training
from recipes.cli import run
from recipes.run import run as run_all
from recipes.train import train
from tests.recipes.words import replaced


@pytest.mark.parametrize("action", [train, run_all])
def test_wrong_resume_path_is_said_before_any_data_is_prepared(
    action: Any, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        pytest.fail("text was read before the path was looked at")

    monkeypatch.setattr(training, "build_data", read)
    monkeypatch.setattr(running, "Evaluation", read)
    assert run(replaced(tiny, f"resume={tmp_path}/nowhere"), action) == 2
    assert capsys.readouterr().err == (
        f"error: resume={tmp_path}/nowhere is neither a run folder nor a checkpoint in one\n"
    )
    assert not (tmp_path / "cache").exists()


def test_sentence_for_the_user_has_its_traceback_in_the_runs_log(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ValueError need not be a mistake of the user's: libraries raise it for ours."""

    def broken(*_: object) -> None:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr("lightning_modules.base.CausalLMModule.training_step", broken)
    assert run(tiny, train) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert errors == ["error: too many values to unpack"]
    log = (tmp_path / "outputs" / "demo" / "extend" / "latest" / "log.txt").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in log
    assert "in broken\n" in log
    assert log.endswith("ValueError: too many values to unpack\n")
