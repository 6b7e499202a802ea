"""Starting `python -m …` as a user does, and leaving nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 300
"""After which a process counts as hanging; starting one takes seconds, and minutes where others want the processor."""


@contextmanager
def started(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m module arguments…` in a process group of its own, of which nothing is left at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # further ranks may be there when the first is gone
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
