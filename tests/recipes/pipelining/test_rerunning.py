"""Which stages run when a command is given again, with other words or after a stop; they only pretend to train."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from recipes.compose import compose
from recipes.evaluating import BASE, TRAINED, measured
from recipes.pipelining import running
from recipes.pipelining.pipeline import read_pipeline
from recipes.pipelining.running import Outcome, run_pipeline
from recipes.reporting.tables import VariantScores, write_scores
from recipes.run_folder import close_run, finished_run, open_run
from tests.recipes.pipelining.conftest import MINE, Write
from tests.recipes.words import replaced

Runs = Callable[..., Outcome]


def pretend(words: Sequence[str], *, stops: bool = False) -> int:
    """What a stage leaves behind, without training; one that stops leaves a checkpoint."""
    config = compose(words).config
    run = finished_run(config) or open_run(config)
    run.checkpoints.mkdir(exist_ok=True)
    with zipfile.ZipFile(run.checkpoints / "step-0000002.ckpt", "w") as file:
        file.writestr("data", b"x")
    if stops:
        close_run(run, status="started")
        return 75
    run.export.mkdir(exist_ok=True)
    facts = {"max_position_embeddings": int(config.context_length), "lr": float(config.optimizer.lr)}
    (run.export / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    scores = [VariantScores(BASE, {64: 2.0}), VariantScores(TRAINED, {64: 1.0})]
    write_scores(scores, json_path=run.path / "scores.json", csv_path=run.path / "scores.csv")
    (run.path / "metrics.json").write_text("{}", encoding="utf-8")
    run.update(steps=2, tokens=4096, seconds=1, measured=measured(config))
    close_run(run, status="finished")
    return 0


@pytest.fixture
def started() -> list[str]:
    """Names of the run folders of stages that were started."""
    return []


@pytest.fixture
def runs(words: list[str], started: list[str], monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs the pipeline with more words; `stops` names a stage that is stopped after its checkpoint."""
    monkeypatch.setattr(running, "_prepare", lambda _: None)
    monkeypatch.setattr("recipes.pipelining.composing.validate", lambda _: None)  # takes most of a second
    monkeypatch.setattr("recipes.pipelining.report.plot_perplexity", lambda *_, **__: None)
    monkeypatch.setattr("recipes.pipelining.report.plot_needles", lambda *_, **__: None)

    def run_with(*more: str, stops: str = "") -> Outcome:
        started.clear()

        def start(stage_words: Sequence[str]) -> int:
            place = Path(compose(stage_words).config.run_folder)
            started.append(f"{place.parent.name}/{place.name}")
            return pretend(stage_words, stops=bool(stops) and stops in place.name)

        return run_pipeline(read_pipeline(replaced(words, *more)), start=start)

    return run_with


def test_a_word_of_a_stage_runs_it_and_what_comes_from_it(runs: Runs, started: list[str]) -> None:
    one = runs().folder
    assert started == [f"{one.name}/1-first", f"{one.name}/2-second"]
    assert runs().folder == one
    assert started == []

    other = runs("second.optimizer.lr=1e-5").folder
    assert started == [f"{other.name}/2-second"]
    assert other != one
    assert (other / "1-first").readlink() == Path("..") / one.name / "1-first"
    assert (one.parent / "latest").resolve() == other
    third = runs("first.optimizer.lr=1e-5").folder
    assert started == [f"{third.name}/1-first", f"{third.name}/2-second"]
    assert not any((third / name).is_symlink() for name in ("1-first", "2-second"))

    # What was run before is there still, and practical words concern nothing.
    assert runs("second.optimizer.lr=1e-5").folder == other
    assert runs("data.num_workers=2", "trainer.log_every_n_steps=7").folder == one
    assert started == []


def test_another_evaluation_measures_again_in_the_same_folder(runs: Runs, started: list[str]) -> None:
    one = runs().folder
    assert runs("evaluation.seed=99").folder == one
    assert started == [f"{one.name}/1-first", f"{one.name}/2-second"]
    assert runs("evaluation.seed=99").folder == one
    assert started == []
    assert runs("evaluation.seed=99", "second.evaluation.seed=5").folder == one
    assert started == [f"{one.name}/2-second"]


def test_an_export_that_is_gone_is_made_again(runs: Runs, started: list[str]) -> None:
    one = runs().folder
    shutil.rmtree(one / "2-second" / "export")
    assert runs().folder == one
    assert started == [f"{one.name}/2-second"]


def test_another_export_of_a_stage_runs_what_started_from_it(runs: Runs, started: list[str]) -> None:
    """Whoever puts another model in its place gets a stage from that one, beside the first."""
    one = runs().folder
    (one / "1-first" / "export" / "config.json").write_text('{"max_position_embeddings": 1024, "lr": 3}')
    outcome = runs()
    assert started == [f"{one.name}/2-second"]
    assert outcome.runs["second"].path.name == "2-second-2"
    assert (one / "export").readlink() == Path("2-second-2/export")
    assert json.loads((one / "pipeline.json").read_text())["stages"]["second"]["folder"] == "2-second-2"


def test_a_stage_of_an_earlier_folder_stands_in_only_where_its_base_does(
    runs: Runs, started: list[str], write: Write
) -> None:
    write(f"{MINE}  - {{name: third, recipe: demo/extend, words: [rope=unchanged, extension_factor=1.0]}}\n")
    one = runs().folder
    other = runs("third.optimizer.lr=1e-5").folder
    assert started == [f"{other.name}/3-third"]
    shutil.rmtree(one / "1-first")
    shutil.rmtree(other)
    anew = runs("third.optimizer.lr=1e-5").folder
    assert started == [f"{anew.name}/{name}" for name in ("1-first", "2-second", "3-third")]


def test_resume_says_which_folder(runs: Runs, started: list[str], tmp_path: Path) -> None:
    one = runs().folder
    anew = runs("resume=never").folder
    assert started == [f"{anew.name}/1-first", f"{anew.name}/2-second"]
    assert runs().folder == anew
    assert runs(f"resume={one}").folder == one
    assert runs(f"resume={one.parent}/latest").folder == anew
    assert started == []
    other = runs("second.optimizer.lr=1e-5").folder
    for path, sentence in (
        (tmp_path, "is no folder of a pipeline; set resume to one, or to auto or never"),
        (other, "has other settings of second; set resume=auto or never"),
    ):
        with pytest.raises(ValueError, match=f"^resume={path} {sentence}$"):
            runs(f"resume={path}")


def test_a_stage_that_was_stopped_is_gone_on_with_by_a_pipeline_of_other_words_too(
    runs: Runs, started: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        runs(stops="1-first")
    assert stopped.value.code == 75
    (one,) = started
    other = runs("second.optimizer.lr=1e-5")
    assert started[0] == one
    assert other.runs["first"].path.parent.name == Path(one).parent.name
    assert other.folder.name != Path(one).parent.name
    runs()
    assert started == [f"{Path(one).parent.name}/2-second"]


def test_a_stage_whose_record_is_gone_stands_in_for_none(runs: Runs, started: list[str]) -> None:
    one = runs().folder
    (one / "1-first" / "run.json").unlink()
    other = runs("second.optimizer.lr=1e-5").folder
    assert started == [f"{other.name}/1-first", f"{other.name}/2-second"]


def test_a_record_that_is_no_json_is_named(runs: Runs, started: list[str]) -> None:
    record = runs().folder / "pipeline.json"
    record.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{record} cannot be read .*; mend it, or move {record.parent} elsewhere$"):
        runs()
    assert started == []
