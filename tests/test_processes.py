"""A fork of the zygote is what a fresh interpreter would be, but for what it has imported already."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import processes
from tests.zygote import Request

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
    deadline = time.monotonic() + 60  # a signal is only seen when its turn on a busy processor comes
    while not is_dead(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_dead(process: int) -> bool:
    """Or about to be forgotten, as nobody has asked after it."""
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


RANKS = """
import os, sys, time
print(sys.argv[1:], os.environ.get("LOCAL_RANK"), os.path.samefile(os.getcwd(), os.path.dirname(__file__)), flush=True)
if "LOCAL_RANK" in os.environ:
    sys.exit(7)
from lightning.pytorch.strategies.launchers.subprocess_script import subprocess
command = [sys.executable, "-P", __file__, "b"]
second = subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": "1"}, cwd=None)
assert os.getpgid(second.pid) == os.getpgrp()
while second.poll() is None:
    time.sleep(0.01)
second.send_signal(9)
print(second.returncode)
"""


@pytest.mark.parametrize("is_fork", [True, False])
def test_second_rank_is_what_lightning_would_start(is_fork: bool, script: Path) -> None:
    assert said_by(script, RANKS, second_rank=is_fork) == ["['a'] None True", "['b'] 1 True", "7"]


def test_second_rank_that_is_never_started_ends_with_the_first(script: Path) -> None:
    assert said_by(script, "print('alone')", second_rank=True) == ["alone"]


def said_by(script: Path, code: str, *, second_rank: bool) -> list[str]:
    script.write_text(code, encoding="utf-8")
    process = processes.Fork(Request(["-P", str(script), "a"], dict(os.environ), str(script.parent), second_rank))
    out, err = process.communicate(timeout=60)
    assert process.wait(timeout=60) == 0, err
    return out.splitlines()
