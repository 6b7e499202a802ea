"""A whole pipeline of two short stages: what it writes, what it keeps and what it runs again, how it is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from datamodules.tokens.tokenise import tokenizer_fingerprint
from recipes import compose as composing
from recipes.build import build_tokenizer
from recipes.cli import exit_status, help_printed
from recipes.compose import compose
from recipes.pipelining import running
from recipes.pipelining.folder import root
from recipes.pipelining.pipeline import read_pipeline
from recipes.pipelining.running import Outcome, run_pipeline
from recipes.run import interpreter, start
from tests.recipes.pipelining.conftest import Undisturbed, in_this_process
from tests.recipes.words import replaced

pytestmark = pytest.mark.usefixtures("reopened_by_a_fork")

Runs = Callable[..., Outcome]


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def started() -> list[str]:
    """Names of the run folders of stages that were started."""
    return []


@pytest.fixture
def runs(words: list[str], started: list[str]) -> Runs:
    """Runs the pipeline with more words, each stage in this process."""

    def start(stage_words: Sequence[str]) -> int:
        started.append(Path(compose(stage_words).config.run_folder).name)
        return in_this_process(stage_words)

    return lambda *more: run_pipeline(read_pipeline(replaced(words, *more)), start=start)


def test_a_pipeline_runs_stage_by_stage(undisturbed: Undisturbed) -> None:
    folder = undisturbed.outcome.folder
    assert undisturbed.started == ["1-first", "2-second"]
    assert [line for line in undisturbed.said if line.startswith(("stage", "prepare"))] == [
        "prepare first",
        "prepare second",
        f"stage 1 of 2, first: recipe=demo/extend in {folder}/1-first",
        f"stage 2 of 2, second: recipe=demo/extend in {folder}/2-second",
    ]
    # What the second stage starts from was measured when the first one ended.
    assert undisturbed.evaluated == [
        "base as it is",
        "RoPE changed, untrained",
        "after training",
        "after training",
    ]
    assert_whole(undisturbed.outcome)


def test_what_is_done_is_not_done_again(
    undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "conf_folder", lambda: undisturbed.conf)
    folder, before = undisturbed.outcome.folder, contents(undisturbed.outcome.folder)
    again = run_pipeline(read_pipeline(undisturbed.words), start=lambda _: pytest.fail("started"))
    assert again.folder == folder
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(("stage", "prepare"))] == [
        f"stage 1 of 2, first: done before ({folder}/1-first)",
        f"stage 2 of 2, second: done before ({folder}/2-second)",
    ]
    assert contents(folder) == before


@pytest.mark.slow
def test_only_what_a_word_changes_is_run_again(
    runs: Runs, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs().folder
    scored = read(folder / "scores.json")
    # Another evaluation measures the same models again, in the same folder.
    with monkeypatch.context() as patched:
        patched.setattr("recipes.running.train_run", lambda *_: pytest.fail("trained again"))
        assert runs("evaluation.lengths=[64,128]").folder == folder
    assert {int(length) for model in read(folder / "scores.json")["variants"] for length in model["perplexity"]} == {
        64,
        128,
    }
    runs()
    assert read(folder / "scores.json") == scored
    started.clear()

    # A word of the second stage: a folder of its own, and the first stage as it was.
    other = runs("second.optimizer.lr=1e-5")
    assert started == ["2-second"]
    assert other.folder != folder
    assert (other.folder / "1-first").readlink() == Path("..") / folder.name / "1-first"
    assert (other.folder / "2-second" / "run.json").is_file()
    assert not (other.folder / "2-second").is_symlink()
    assert (
        load_file(other.folder / "export/model.safetensors").keys()
        == load_file(folder / "export/model.safetensors").keys()
    )
    assert read(other.folder / "scores.json")["variants"][:2] == scored["variants"][:2]
    assert read(other.folder / "scores.json")["variants"][2] != scored["variants"][2]
    assert (folder.parent / "latest").resolve() == other.folder
    started.clear()

    # A word of the first stage: everything that comes from it. resume=never: everything.
    runs("first.data.max_steps=1")
    assert started == ["1-first", "2-second"]
    started.clear()
    anew = runs("resume=never")
    assert started == ["1-first", "2-second"]
    assert read(anew.folder / "scores.json") == scored
    assert runs(f"resume={folder}").folder == folder
    for path, sentence in (
        (tmp_path, f"resume={tmp_path} is no folder of a pipeline; set resume to one, or to auto or never"),
        (other.folder, f"resume={other.folder} has other settings of second; set resume=auto or never"),
    ):
        with pytest.raises(ValueError, match="^" + str(sentence).replace("[", r"\[") + "$"):
            runs(f"resume={path}")


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that a pipeline wrote beside its pictures, and what its stages hold."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".png"}


def assert_whole(outcome: Outcome) -> None:
    """What is in the folder of a finished pipeline, and that each stage went on from the one before."""
    folder = outcome.folder
    record = read(folder / "pipeline.json")
    assert record["status"] == "finished"
    assert {name: stage["status"] for name, stage in record["stages"].items()} == {
        "first": "finished",
        "second": "finished",
    }
    assert [stage["folder"] for stage in record["stages"].values()] == ["1-first", "2-second"]
    assert (folder.parent / "latest").resolve() == folder
    for file in ("report.md", "scores.csv", "figures/perplexity.png", "figures/needle.png"):
        assert (folder / file).stat().st_size > 0
    assert (folder / "export").readlink() == Path("2-second/export")

    first, second = (outcome.runs[name] for name in ("first", "second"))
    config = compose(outcome.words["second"]).config
    assert config.model.source.name_or_path == str(first.export)
    # The shell said beforehand what the export says now.
    exported = read(first.export / "config.json")
    planned = outcome.planned["second"].config
    assert exported["max_position_embeddings"] == planned.model.original_context_length == 1024
    assert exported["rope_parameters"]["rope_theta"] == outcome.planned["first"].config.rope.rope_theta
    assert read(folder / "export" / "config.json")["rope_parameters"] == exported["rope_parameters"]
    tokenizers = [build_tokenizer(compose(outcome.words[name]).config) for name in ("first", "second")]
    assert len({*map(tokenizer_fingerprint, tokenizers)}) == 1
    # Its first step was taken from the weights that the first stage exported.
    ours, theirs = load_file(first.export / "model.safetensors"), load_file(second.export / "model.safetensors")
    assert ours.keys() == theirs.keys()
    distances = [float((ours[name] - theirs[name]).abs().max()) for name in ours]
    assert 0 < max(distances) < 0.05
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())

    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[0][:5] == ["model", "steps", "tokens", "minutes", "val loss"]
    assert rows[0][5:] == ["ppl 64", "ppl 1024", "needle 64", "needle 1024"]
    assert [row[:3] for row in rows[1:]] == [
        ["before first", "-", "-"],
        ["after first", "2", "4,096"],
        ["after second", "2", "4,096"],
    ]
    for row, run_of in zip(rows[2:], (first, second), strict=True):
        assert float(row[4]) == pytest.approx(read(run_of.path / "metrics.json")["val_loss"], abs=5e-4)
        trained = next(m for m in read(run_of.path / "scores.json")["variants"] if m["name"] == "after training")
        assert float(row[6]) == pytest.approx(trained["perplexity"]["1024"], rel=1e-3)
    card = (folder / "export" / "README.md").read_text(encoding="utf-8")
    lineage = card.split("## Lineage\n", 1)[1]
    assert "1. `demo/extend`" in lineage
    assert "context 512 -> 1,024 tokens, 2 steps, 4,096 tokens" in lineage
    assert "from stage 1: context 1,024 tokens, 2 steps, 4,096 tokens" in lineage


def test_a_stage_that_stops_ends_the_pipeline(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_pipeline(read_pipeline(words), start=lambda _: 75)
    assert caught.value.code == 75
    assert capsys.readouterr().err.splitlines()[-1].startswith("stage 1 of 2, first: recipe=")
    (folder,) = (path for path in root(output_dir(words), "mine").iterdir() if not path.is_symlink())
    record = read(folder / "pipeline.json")
    assert record["status"] == "started"
    assert [stage["status"] for stage in record["stages"].values()] == ["stopped", "waiting"]


@pytest.mark.parametrize(
    ("status", "expected", "sentence"),
    [
        (2, 2, "stage 1, a: stopped by the mistake above; mend it, and run the same command again to go on\n"),
        (75, 75, ""),
        (130, 130, ""),
        (1, 1, "error: stage 1, a ended with status 1; run the same command again to go on\n"),
        (-9, 1, "error: stage 1, a was killed by SIGKILL; run the same command again to go on\n"),
    ],
)
def test_the_status_of_a_stage_is_the_pipelines(
    status: int, expected: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        running._stop(status, "stage 1, a")
    assert caught.value.code == expected
    assert capsys.readouterr().err == sentence


def output_dir(words: Sequence[str]) -> str:
    return next(word.split("=", 1)[1] for word in words if word.startswith("output_dir="))


def test_two_processes_never_share_a_pipeline(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def another() -> None:
        run_pipeline(read_pipeline(words), start=lambda _: pytest.fail("started"))

    def start_another(_: Sequence[str]) -> int:
        assert exit_status(another) == 2
        return 75

    with pytest.raises(SystemExit):
        run_pipeline(read_pipeline(words), start=start_another)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert line.endswith("is being run by another process; wait for it, or set resume=never for one beside it")


def test_a_stage_that_another_process_trains_is_waited_for(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipeline that was killed alone leaves its stage behind, which saves and ends."""
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.5)
    reader, writer = os.pipe()

    def stopped(stage_words: Sequence[str]) -> int:
        return 75 if begin(stage_words) else 1

    def begin(stage_words: Sequence[str]) -> bool:
        folder = Path(compose(stage_words).config.run_folder)
        folder.mkdir()
        orphan = os.fork()
        if orphan == 0:
            from recipes.run_folder import lock_folder

            lock = lock_folder(folder)
            os.write(writer, b"held" if lock else b"free")
            os.read(os.open("/dev/null", os.O_RDONLY), 1)
            os.kill(os.getpid(), 19)  # SIGSTOP: holds the lock until it is killed
            os._exit(0)
        orphans.append(orphan)
        return os.read(reader, 4) == b"held"

    orphans: list[int] = []
    try:
        with pytest.raises(SystemExit):
            run_pipeline(read_pipeline(words), start=stopped)
        with pytest.raises(ValueError, match="is being trained by another process; wait for it to end"):
            run_pipeline(read_pipeline(words), start=lambda _: pytest.fail("started"))
    finally:
        for orphan in orphans:
            os.kill(orphan, 9)
            os.waitpid(orphan, 0)
    started: list[int] = []
    with pytest.raises(SystemExit):
        run_pipeline(read_pipeline(words), start=lambda _: started.append(1) or 75)
    assert started == [1]


def test_the_summary_says_where_everything_is_and_what_to_do_next(
    undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "conf_folder", lambda: undisturbed.conf)
    assert start(undisturbed.words) == 0
    out = capsys.readouterr().out
    folder = undisturbed.outcome.folder
    table = [line for line in (folder / "report.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert all(f"{line}\n" in out for line in table)
    for file in ("report.md", "figures/perplexity.png", "figures/needle.png", "scores.json", "export"):
        assert f"{folder}/{file}" in out
    assert f"python -m recipes.chat model={folder}/export" in out.replace(interpreter(), "python")
    assert "second.data.max_steps=4" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pipeline=dema"], "error: pipeline=dema does not exist; nearest: demo"),
        (["pipeline=demo", "recipe=demo/extend"], "error: pipeline=demo: recipe cannot be set here, as the pipeline"),
        (
            ["pipeline=demo", "stf.data.max_steps=5"],
            "error: pipeline=demo: 'stf.data.max_steps' is no key of any stag",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert len(err.splitlines()) == 1


def test_help_explains_recipes_and_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    from recipes import run as verb

    assert help_printed("run", ["--help"], doc=verb.__doc__ or "")
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m recipes.run recipe=<name>|pipeline=<name> [key=value …]\n")
    for words in (
        "pipeline=<name>  ",
        "recipe=<name>  ",
        "index_1p9b_32k",
        "sft.optimizer.lr=1e-5 to the stage sft",
    ):
        assert words in out


@pytest.mark.slow
def test_a_stage_that_trains_an_adapter_hands_over_the_whole_model(runs: Runs, model_folder: Path) -> None:
    outcome = runs("first.peft=lora", "first.peft.r=2", "first.optimizer=adamw", "first.optimizer.lr=1e-2")
    first, second = (outcome.runs[name] for name in ("first", "second"))
    base, merged = load_file(model_folder / "model.safetensors"), load_file(first.export / "model.safetensors")
    assert merged.keys() == base.keys()
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    config = compose(outcome.words["second"]).config
    assert config.model.source.name_or_path == str(first.export)
    trained = load_file(second.export / "model.safetensors")
    assert max(float((trained[name] - merged[name]).abs().max()) for name in merged) < 0.05
