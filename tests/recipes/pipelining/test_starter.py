"""The process of a stage: who is told when one of the two is asked to stop, or gone."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from recipes.pipelining import starter
from recipes.pipelining.stage import STARTER_VARIABLE, end_with_starter

SAVES_WHEN_ASKED = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, -signal.SIGKILL)])
def test_sigterm_goes_on_to_the_stage_and_ctrl_c_waits_for_it(number: signal.Signals, expected: int) -> None:
    """Ctrl-C reaches the stage from the terminal; here it does not, and the stage is ended otherwise."""
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    child = subprocess.Popen([sys.executable, "-S", "-c", SAVES_WHEN_ASKED], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    timers = [threading.Timer(0.05, os.kill, (os.getpid(), number))]
    if number == signal.SIGINT:
        timers.append(threading.Timer(0.3, child.kill))
    with starter._passed_on(child):
        for timer in timers:
            timer.start()
        assert child.wait(timeout=30) == expected
    for timer in timers:
        timer.join()
    child.stdout.close()
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_stage_is_started_with_its_words_and_told_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import os, sys; sys.exit(3 if os.environ[{STARTER_VARIABLE!r}] == str(os.getppid()) else 4)"
    seen: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        seen.append(command)
        return popen([sys.executable, "-S", "-c", code], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)
    assert starter.run_stage(["recipe=a", "seed=1"]) == 3
    assert seen == [[sys.executable, "-m", "recipes.pipelining.stage", "recipe=a", "seed=1"]]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stage outlives its pipeline")
def test_a_stage_whose_pipeline_is_killed_is_asked_to_stop() -> None:
    reader, writer = os.pipe()
    pipeline = os.fork()
    if pipeline == 0:
        os.environ[STARTER_VARIABLE] = str(os.getpid())
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: os.write(writer, b"asked") and os._exit(0))
            end_with_starter()
            os.write(writer, b"ready" if STARTER_VARIABLE not in os.environ else b"known")
            signal.pause()
            os._exit(1)
        signal.pause()
        os._exit(1)
    os.close(writer)
    assert os.read(reader, 5) == b"ready"
    os.kill(pipeline, signal.SIGKILL)
    os.waitpid(pipeline, 0)
    assert os.read(reader, 5) == b"asked"
    assert os.read(reader, 5) == b""  # nobody is left
    os.close(reader)


def test_a_stage_that_comes_too_late_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    library = SimpleNamespace(prctl=lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setenv(STARTER_VARIABLE, "1")
    monkeypatch.setattr(os, "getppid", lambda: 2)
    with pytest.raises(SystemExit, match="the pipeline that started this stage is gone"):
        end_with_starter()
    assert asked == ([(1, signal.SIGTERM)] if sys.platform == "linux" else [])
