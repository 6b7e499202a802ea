"""`python -m recipes.ablate` on a tiny model: what runs, what is kept, what a failure costs, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.callbacks.step_checkpoint import StepCheckpoint
from recipes import compose as composing
from recipes.ablate import main
from recipes.cli import run
from recipes.compose import compose
from recipes.evaluating import Evaluation
from recipes.run import run as run_all
from recipes.run_folder import RunFolder, close_run, finished_run, open_run
from tests.recipes.words import replaced

pytestmark = pytest.mark.usefixtures("reopened_here")

GRID = """
recipe: demo/extend
axes:
  theta: {key: rope.rope_theta, values: [10000.0, 80000.0]}
pictures:
  - {name: lines, kind: lines, x: theta, series: length, metric: perplexity}
  - {name: map, kind: heat_map, x: length, y: theta, metric: needle}
"""


@pytest.fixture
def words(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A grid of two bases over the tiny recipe."""
    folder = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), folder)
    monkeypatch.setattr(composing, "conf_folder", lambda: folder)
    (folder / "ablation" / "mine.yaml").write_text(GRID, encoding="utf-8")
    cell = "trainer.checkpoint_every_n_steps=1"
    return ["ablation=mine", *replaced(tiny, "recipe=demo/extend", "evaluation.lengths=[64,1024]", cell)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "ablation" / "mine"


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were measured."""
    names: list[str] = []
    scores = Evaluation.scores
    monkeypatch.setattr(
        Evaluation, "scores", lambda self, model, name: (names.append(name), scores(self, model, name))[1]
    )
    return names


def no_training(*_: object, **__: object) -> None:
    pytest.fail("trained again")


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def cell_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != "report")


def test_a_grid_runs_once_and_reports(
    words: list[str],
    root: Path,
    evaluated: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert cell_folders(root) == ["theta-10000", "theta-80000"]
    for name in cell_folders(root):
        assert read(root / name / "run.json")["status"] == "finished"
        assert (root / name / "export" / "model.safetensors").is_file()
    progress = [line for line in err.splitlines() if line.startswith("cell ")]
    assert [line.split("  ")[:2] for line in progress] == [["cell 1/2", "theta-10000"], ["cell 2/2", "theta-80000"]]
    assert "left" in progress[1]
    for file in ("table.md", "scores.csv", "ablation.json", "lines.png", "map.png"):
        assert (root / "report" / file).stat().st_size > 0
        assert str(root / "report" / file) in out
    table = (root / "report" / "table.md").read_text(encoding="utf-8")
    assert table in out
    assert "Every cell trained 2 steps and 4,096 tokens." in table
    assert [line.split("|")[1].strip() for line in table.splitlines() if "after training" in line] == [
        "theta=10000",
        "theta=80000",
    ]
    # What the cells share was measured once.
    assert [evaluated.count(name) for name in ("base as it is", "RoPE changed, untrained", "after training")] == [
        1,
        2,
        2,
    ]

    with monkeypatch.context() as patched:
        patched.setattr("recipes.running.train_run", no_training)
        evaluated.clear()
        assert main(words) == 0
        again, err = capsys.readouterr()
        assert again == out
        assert [line for line in err.splitlines() if line.startswith("cell ")] == [
            "cell 1/2  theta-10000  done",
            "cell 2/2  theta-80000  done",
        ]
        assert evaluated == []
        # Another evaluation measures the same models again, and trains nothing.
        assert main(replaced(words, "evaluation.lengths=[64,1280]", "evaluation.beyond_context=true")) == 0
        assert [evaluated.count(name) for name in ("base as it is", "after training")] == [1, 2]
        assert cell_folders(root) == ["theta-10000", "theta-80000"]
        with (root / "report" / "scores.csv").open(newline="") as file:
            assert {line["length"] for line in csv.DictReader(file)} == {"64", "1280"}


def test_a_cell_equals_the_same_words_run_alone(words: list[str], tiny: list[str], root: Path, tmp_path: Path) -> None:
    assert main([*words, "ablation.axes.theta.values=[70000.0,80000.0]"]) == 0
    alone = replaced([word for word in words if word != "ablation=mine"], "rope.rope_theta=80000.0", "run_folder=null")
    assert run(alone, run_all) == 0
    folder = (tmp_path / "outputs" / "demo" / "extend" / "latest").resolve()
    second = root / "theta-80000"
    assert read(second / "scores.json") == read(folder / "scores.json")
    assert read(second / "metrics.json")["val_loss"] == read(folder / "metrics.json")["val_loss"]
    assert read(second / "run.json")["mechanism"] == read(folder / "run.json")["mechanism"]


def test_a_cell_that_fails_does_not_take_the_others_along(
    words: list[str],
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = Evaluation.scores

    def fails_once(self: Evaluation, model: Any, name: str) -> Any:
        if name == "after training" and model.config.rope_parameters["rope_theta"] == 10000.0:
            raise RuntimeError("the disk\n  is full")
        return scores(self, model, name)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "scores", fails_once)
        assert main(words) == 1
    out, err = capsys.readouterr()
    assert "- theta=10000 failed: RuntimeError: the disk is full\n" in out
    assert "cell 1/2  theta-10000  failed: RuntimeError: the disk is full (" in err
    assert "Traceback" not in out + err
    assert "fails_once" in (root / "report" / "theta-10000.failed.txt").read_text(encoding="utf-8")
    assert [read(root / name / "run.json")["status"] for name in cell_folders(root)] == ["started", "finished"]
    assert [line.count("theta=80000") for line in out.splitlines() if "after training" in line] == [1]

    assert main(words) == 0
    assert cell_folders(root) == ["theta-10000", "theta-80000"]
    assert "failed" not in (root / "report" / "table.md").read_text(encoding="utf-8")
    assert not (root / "report" / "theta-10000.failed.txt").exists()


def test_a_grid_killed_in_the_middle_of_a_cell_goes_on_there(
    words: list[str],
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = StepCheckpoint._save

    def interrupted(self: StepCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if "theta-80000" in str(self.folder):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepCheckpoint, "_save", interrupted)
        assert main(words) == 130
    assert read(root / "theta-80000" / "run.json")["status"] == "started"
    assert [path.name for path in (root / "theta-80000" / "checkpoints").iterdir()] == ["step-0000001.ckpt"]
    capsys.readouterr()

    assert main(words) == 0
    out, err = capsys.readouterr()
    assert f"going on with {root / 'theta-80000'} from step-0000001.ckpt" in out
    assert "cell 1/2  theta-10000  done" in err
    assert cell_folders(root) == ["theta-10000", "theta-80000"]
    assert read(root / "theta-80000" / "run.json")["steps"] == 2


def test_mistakes_of_all_cells_are_said_before_the_first_one_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "ablation.axes.theta.values=[-1.0,few,80000.0]"
    assert main([*replaced(words, "data.max_steps=0"), grid]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert any(line.startswith("error: every cell: data.max_steps=0 must be a whole number") for line in lines)
    assert any(line.startswith("error: cell theta-few: rope.rope_theta=few must be a number") for line in lines)
    assert not (tmp_path / "outputs").exists()
    assert main([*words, grid.replace("few", "2.0")]) == 2
    assert capsys.readouterr().err.startswith("error: cell theta--1: rope.rope_theta=-1.0 is not a positive number")


def test_several_devices_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "trainer.devices=2", "strategy=ddp"]) == 2
    assert capsys.readouterr().err == (
        "error: every cell: trainer.devices must be 1, as the cells of a grid run in one process\n"
    )


def test_ablation_is_a_word_of_this_verb_alone(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*tiny, "ablation=rope_base"], no_training) == 2
    assert capsys.readouterr().err == (
        "error: 'ablation=rope_base' is a word of python -m recipes.ablate alone; remove it, or use that verb\n"
    )
    assert "ablation" not in composing.groups_on_disk()


@pytest.fixture
def opened(tiny: list[str], tmp_path: Path) -> Callable[..., RunFolder]:
    """Opens a run in `run_folder=…/cell` with some words changed."""

    def open_cell(*changes: str) -> RunFolder:
        return open_run(compose(replaced(tiny, f"run_folder={tmp_path}/runs/cell", *changes)).config)

    return open_cell


def test_run_folder_names_the_folder_and_numbers_what_comes_after(
    opened: Callable[..., RunFolder], tmp_path: Path
) -> None:
    first = opened()
    assert first.path == tmp_path / "runs" / "cell"
    close_run(first, status="started")
    assert opened() == first  # stopped before its first checkpoint: begins anew, where it was
    close_run(first, status="started")
    other = opened("seed=3")
    assert other.path == tmp_path / "runs" / "cell-2"
    close_run(other, status="finished")
    for number in range(3, 12):
        run = opened("resume=never")
        assert run.path == tmp_path / "runs" / f"cell-{number}"
        close_run(run, status="started")
    newest = opened()  # 11 comes after 9, and the one of another seed is none of these
    assert newest.path == tmp_path / "runs" / "cell-11"
    close_run(newest, status="finished")
    assert not (tmp_path / "runs" / "latest").exists()


def test_a_finished_run_is_one_of_the_same_settings_and_base_model(
    tiny: list[str], model_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    config = compose(replaced(tiny, f"model.source.name_or_path={base}", f"run_folder={tmp_path}/runs/cell")).config
    assert finished_run(config) is None
    run = open_run(config)
    checkpoint = run.checkpoints / "step-0000002.ckpt"
    with zipfile.ZipFile(checkpoint, "w") as file:  # as torch writes them
        file.writestr("data", b"x")
    close_run(run, status="finished")
    assert finished_run(config) == RunFolder(run.path, checkpoint)
    config.data.max_steps = 3
    assert finished_run(config) is None
    config.data.max_steps = 2
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert finished_run(config) is None, "another base model of the same name"


def test_lengths_beyond_the_context_are_measured_when_asked_for(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    beyond = replaced(tiny, "evaluation.lengths=[64,1280]")
    assert run(beyond, seen.append) == 2
    assert "[1280] are beyond context_length=1024; lower evaluation.lengths, or set evaluation.beyond_context=true" in (
        capsys.readouterr().err
    )
    assert run([*beyond, "evaluation.beyond_context=true"], seen.append) == 0
    assert run([*beyond, "evaluation.beyond_context=maybe"], seen.append) == 2
    assert len(seen) == 1
