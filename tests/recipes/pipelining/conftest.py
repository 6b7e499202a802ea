"""A pipeline of seconds: demo/extend from 512 to 1024 tokens, then demo/extend once more as a stage that keeps RoPE."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from recipes import compose as composing
from recipes.cli import run
from recipes.compose import ConfigError, compose
from recipes.pipelining.pipeline import Pipeline, read_pipeline
from tests import processes
from tests.recipes.conftest import tiny_words
from tests.recipes.words import replaced

if TYPE_CHECKING:
    from recipes.pipelining.running import Outcome

MINE = """
paper: two short stages
stages:
  - {name: first, recipe: demo/extend}
  - {name: second, recipe: demo/extend, words: [rope=unchanged, extension_factor=1.0]}
"""

Write = Callable[[str], None]


def conf_with(text: str, folder: Path) -> Path:
    """A copy of conf/ in a folder, with pipeline/mine.yaml in it."""
    shutil.copytree(composing.conf_folder(), folder)
    (folder / "pipeline" / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes conf/pipeline/mine.yaml, in a conf/ of the test's own."""
    folder = conf_with("", tmp_path / "conf")
    monkeypatch.setattr(composing, "conf_folder", lambda: folder)

    def write_text(text: str) -> None:
        (folder / "pipeline" / "mine.yaml").write_text(text, encoding="utf-8")

    return write_text


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token stores, the same for all pipelines here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def words(tiny: list[str], write: Write, cache_dir: Path) -> list[str]:
    """Words of the pipeline of two short stages, everything else written below tmp_path."""
    write(MINE)
    return ["pipeline=mine", *replaced(short(tiny), f"cache_dir={cache_dir}")]


class Undisturbed(NamedTuple):
    """A pipeline of two stages that ran to its end at once."""

    words: list[str]
    conf: Path
    outcome: Outcome
    started: list[str]  # names of the folders of its stages, as they were started
    evaluated: list[str]  # names of the models that were measured
    said: list[str]  # lines on standard error


@pytest.fixture(scope="package")
def undisturbed(
    model_folder: Path, texts: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """One for all tests that only look at it, each stage in this process."""
    from recipes.evaluating import Evaluation
    from recipes.pipelining.running import run_pipeline
    from recipes.verifying import loaded

    folder = tmp_path_factory.mktemp("undisturbed")
    conf = conf_with(MINE, folder / "conf")
    words = ["pipeline=mine", *replaced(short(tiny_words(model_folder, texts, folder)), f"cache_dir={cache_dir}")]
    started: list[str] = []
    evaluated: list[str] = []
    scores = Evaluation.scores

    def start(stage_words: Sequence[str]) -> int:
        started.append(Path(compose(stage_words).config.run_folder).name)
        return in_this_process(stage_words)

    def noted(evaluation: Evaluation, model: Any, name: str) -> Any:
        evaluated.append(name)
        return scores(evaluation, model, name)

    with pytest.MonkeyPatch.context() as patched, redirect_stderr(io.StringIO()) as err:
        patched.setattr(composing, "conf_folder", lambda: conf)
        patched.setattr(loaded, "subprocess", SimpleNamespace(run=processes.run))
        patched.setattr(Evaluation, "scores", noted)
        outcome = run_pipeline(read_pipeline(words), start=start)
    return Undisturbed(words, conf, outcome, started, evaluated, err.getvalue().splitlines())


def in_this_process(words: Sequence[str]) -> int:
    """In place of the process of a stage."""
    from recipes.pipelining.stage import complete_stage

    return run(words, complete_stage)


def short(tiny: list[str]) -> list[str]:
    """The words of the tiny recipe for every stage."""
    general = [word for word in tiny if not word.startswith("recipe=")]
    return replaced(general, "evaluation.lengths=[64,1024]", "trainer.checkpoint_every_n_steps=1")


def mine(*words: str) -> Pipeline:
    return read_pipeline(["pipeline=mine", *words])


def faults(*words: str) -> list[str]:
    """What reading a pipeline of these words complains about."""
    with pytest.raises(ConfigError) as caught:
        read_pipeline(words)
    return str(caught.value).splitlines()
