"""What a user meets at `python -m recipes.<verb>`: quick answers, one sentence for a mistake, and exit statuses."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes.cli import exit_status, run
from tests import processes

ROOT = Path(__file__).parents[2]
VERBS = (
    "ablate",
    "benchmark",
    "list",
    "show",
    "plan",
    "prepare",
    "train",
    "evaluate",
    "export",
    "verify",
    "chat",
    "run",
)
HEAVY = ("torch", "transformers", "lightning", "datasets", "matplotlib")


def python(*arguments: str, cwd: Path = ROOT) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a fresh interpreter; returns what it did and the processor time it took in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_every_verb_is_here() -> None:
    found = {
        path.stem
        for path in (ROOT / "recipes").glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert found == set(VERBS)


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["show", "recipe=index_1p9b_32k/pretrain", "rope=linear"],
        ["plan", "recipe=index_1p9b_32k/pretrain", "hardware=h100_80gb", "devices=8"],
    ],
)
def test_answers_within_a_second_without_torch(words: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"verb, *sys.argv[1:] = {words}\n"
        "try: runpy.run_module(f'recipes.{verb}', run_name='__main__')\n"
        f"finally: assert not {set(HEAVY)} & set(sys.modules), sys.modules.keys()\n"
    )
    seconds = []
    while len(seconds) < 3 and not min(seconds, default=9) < 1.0:  # a busy machine adds to the time
        done, taken = python("-c", code)
        seconds.append(taken)
        assert (done.returncode, done.stderr) == (0, "")
        assert "index_1p9b_32k/pretrain" in done.stdout
    assert min(seconds) < 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_the_verb_does(verb: str) -> None:
    done, seconds = python("-m", f"recipes.{verb}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    usage, _, doc, *_ = done.stdout.splitlines()
    assert usage.startswith(f"usage: python -m recipes.{verb}")
    assert doc
    if verb not in ("benchmark", "chat", "list", "verify"):
        for word in ("recipe=", "demo/extend", "scale=toy", "rope", "adjusted_base, dyn", "resume", "output_dir"):
            assert word in done.stdout
    assert seconds < 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipes.train", "recipe=demo/extnd"], "error: recipe=demo/extnd does not exist; nearest: demo/extend"),
        (["recipes.run"], "error: no recipe given; add recipe=<name>"),
        (["recipes.show", "recipe=demo/extend", "optimizer.lrr=1"], "error: unknown key 'optimizer.lrr'"),
        (["recipes.prepare", "recipe=demo/extend", "data.max_steps=few"], "error: data.max_steps=few must be a whole"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = processes.run([sys.executable, "-m", *words], cwd=tmp_path, env=os.environ)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_interrupt_is_status_130(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    assert run(tiny, interrupted) == 130
    assert capsys.readouterr().err == ("interrupted; run the same command again to go on from the last checkpoint\n")


def test_messages_of_libraries_are_cut_to_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"a": "${b}"})
    assert exit_status(lambda: print(config.a)) == 2
    assert capsys.readouterr().err == "error: Interpolation key 'b' not found\n"


def test_files_that_cannot_be_written_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert exit_status(lambda: (tmp_path / "file" / "run").mkdir()) == 2
    assert f"error: {tmp_path}/file/run: Not a directory; set output_dir" in capsys.readouterr().err


def test_faults_of_the_program_keep_their_traceback() -> None:
    def broken() -> None:
        raise KeyError("a")

    with pytest.raises(KeyError):
        exit_status(broken)


def test_a_reader_that_has_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `python -m recipes.show … | head`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert exit_status(lambda: print("line\n" * 100_000)) == 0
        print("what is left goes nowhere", file=closed, flush=True)
