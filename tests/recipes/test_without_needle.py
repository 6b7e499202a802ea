"""evaluation.needle.num_samples=0 measures perplexity alone: what a needle costs at long lengths is not paid."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import evaluating
from recipes.build import build_tokenizer
from recipes.compose import compose
from recipes.evaluating import Evaluation, base_model, report
from recipes.reporting.tables import read_scores
from recipes.validate import validate
from tests.recipes.words import replaced


def test_perplexity_alone_is_measured_and_pictured(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = compose(replaced(tiny, "evaluation.needle.num_samples=0"))
    validate(composed)
    config = composed.config
    monkeypatch.setattr(evaluating, "needle_recall", lambda *given, **named: pytest.fail("a needle was asked for"))
    scores = Evaluation(config, build_tokenizer(config)).scores(base_model(config), "base")
    assert scores.needles is None
    assert set(scores.perplexity) == set(config.evaluation.lengths)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}", encoding="utf-8")
    table = report(config, [scores], folder)
    assert "needle" not in table
    assert [path.name for path in (folder / "figures").iterdir()] == ["perplexity.png"]
    assert read_scores(folder / "scores.json") == [scores]
