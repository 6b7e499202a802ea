"""What a recipe does with the gate and the certificate, through its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.cli import exit_status, run
from recipes.export import export
from recipes.train import train
from recipes.verify import verify
from tests.lightning_modules.callbacks.test_start_gate import plain_causal_attention

pytestmark = pytest.mark.usefixtures("reopened_by_a_fork")


def test_a_leaking_mask_is_one_sentence_and_status_2_and_nothing_is_trained(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_modules.attention.registry.per_document_attention_forward", plain_causal_attention)
    assert run(tiny, train) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "training is refused before its first step: documents of a row see one another" in errors[0]
    (info,) = (path for path in (tmp_path / "outputs").rglob("run.json") if "latest" not in path.parts)
    assert json.loads(info.read_text("utf-8"))["status"] == "started"
    assert [*(info.parent / "checkpoints").iterdir()] == []


def test_an_export_is_clean_for_older_readers_too_and_its_card_says_so(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny, train) == 0
    assert run(tiny, export) == 0
    folder = tmp_path / "outputs" / "demo" / "extend" / "latest"
    assert "start gate: RoPE is what the config says; no document sees" in (folder / "log.txt").read_text("utf-8")
    card = (folder / "export" / "README.md").read_text("utf-8")
    assert "## Certificate" in card
    assert "verdict  clean: no violations" in card
    assert str(tmp_path) not in card
    capsys.readouterr()
    assert exit_status(lambda: verify([f"checkpoint={folder}"])) == 0
    page = capsys.readouterr().out
    assert "the same RoPE: default, theta 320000" in page
    assert "rope_theta is absent" not in page
