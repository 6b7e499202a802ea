"""A fork of the zygote is what a fresh interpreter would be, but for what it has imported already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

ENDS = {
    "returns": "import atexit; atexit.register(print, 'at its end'); print('begins')",
    "leaves": "import sys; sys.exit(75)",
    "says why": "import sys; sys.exit('error: no recipe given')",
    "raises": "def f(): raise KeyError('a')\nf()",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "is asked to stop": "import os, signal; print('begins', flush=True); os.kill(os.getpid(), signal.SIGTERM)",
    "is interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "waits for a thread": "import threading as t, time; t.Timer(0.1, print, ['later']).start(); print('begins')",
    "sees": "import os, sys; print(sys.argv, os.environ['ASKED'], os.getcwd(), os.getpid() == os.getpgrp(), __name__)",
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def forked(script: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-P", str(script), *arguments]
    return processes.run(command, cwd=script.parent, env={**os.environ, "ASKED": "yes"})


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_and_says_what_an_interpreter_does(end: str, script: Path) -> None:
    ours = forked(script, ENDS[end], "a", "b c")
    theirs = subprocess.run(
        ours.args,
        cwd=script.parent,
        env={**os.environ, "ASKED": "yes"},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_it_imports_our_packages_itself_and_the_libraries_are_there(script: Path) -> None:
    code = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    found = forked(script, code).stdout.split()
    assert {"torch", "lightning", "transformers"} <= {*found}
    assert not {"recipes", "datamodules", "lightning_modules", "pytest"} & {*found}


def test_siblings_draw_other_numbers_where_interpreters_do_and_the_same_where_they_do(script: Path) -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    ours, others = (forked(script, code).stdout.split() for _ in range(2))
    assert [a == b for a, b in zip(ours, others, strict=True)] == [False, False, True]


def test_nothing_is_left_of_it_and_of_what_it_started(tmp_path: Path) -> None:
    with processes.started("timeit", "-n1", "-r1", "import subprocess; subprocess.run(['sleep', '1000'])") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (ids := children.read_text().split()):
            assert process.poll() is None
        (child,) = ids
    assert process.returncode == -9
    status = Path(f"/proc/{child}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()  # dead, if nobody has asked after it
