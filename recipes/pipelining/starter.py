"""Starting the process of a stage and waiting for it, whoever is asked to stop meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from recipes.pipelining.stage import STARTER_VARIABLE


def run_stage(words: Sequence[str]) -> int:
    """Run a stage to its end; returns its exit status, negative for a signal."""
    command = [sys.executable, "-m", "recipes.pipelining.stage", *words]
    child = subprocess.Popen(command, env={**os.environ, STARTER_VARIABLE: str(os.getpid())})
    with _passed_on(child):
        return child.wait()


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM goes on to the stage, which saves; Ctrl-C has reached it from the terminal, and it says what to do."""

    def terminate(*_: int | FrameType | None) -> None:
        child.send_signal(signal.SIGTERM)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
