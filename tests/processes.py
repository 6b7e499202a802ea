"""Starting `python -m …` as a user does, and leaving nothing of it behind.

Most starts are forks of `tests.zygote`, which has imported the heavy libraries once for this test process, and which
says what such a start cannot show. Interpreters of their own have: every verb in `recipes/test_cli.py`; a run that goes
on in `resume/test_exact_resume.py`; the second rank that meets a full disk in the slow test of
`resume/test_strategies.py`; and the process that opens an export in `recipes/verifying/test_verify.py`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.zygote import Request

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 300
"""After which a process counts as hanging; starting one takes seconds, and minutes where others want the processor."""


class Fork:
    """A child of the zygote; of `subprocess.Popen` what the tests need, and meant the same way.

    Attributes:
        pid: Of the process itself, which leads a process group of its own.
        returncode: Its exit status, negative for a signal; None until somebody asked after its end.
    """

    def __init__(self, request: Request) -> None:
        ends = [os.pipe() for _ in range(3)]
        (self._out, _), (self._err, _), (status, _) = ends
        self._output = {self._out: b"", self._err: b""}
        self._open = [self._out, self._err]
        self._status = os.fdopen(status)
        socket.send_fds(_zygote(), [json.dumps(request._asdict()).encode()], [theirs for _, theirs in ends])
        for _, theirs in ends:
            os.close(theirs)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit status, once there is one."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float = PATIENCE_SECONDS) -> tuple[str, str]:
        """What it and the processes that it started wrote on standard output and error, until the last is gone."""
        deadline = time.monotonic() + timeout
        while self._open:
            ready, _, _ = select.select(self._open, [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            for file in ready:
                self._output[file] += (read := os.read(file, 1 << 16))
                if not read:
                    self._open.remove(file)
                    os.close(file)
        self.wait(max(0.0, deadline - time.monotonic()))
        return self._output[self._out].decode(), self._output[self._err].decode()


class ForkWithPipes:
    """In place of `subprocess.Popen` where a command begins with `sys.executable`, and is asked by its pipes.

    Attributes:
        stdin: To the process, binary.
        stdout: From it.
    """

    def __init__(self, command: Sequence[str], **_: object) -> None:
        executable, *words = command
        assert executable == sys.executable
        (theirs_in, ours_in), (ours_out, theirs_out), (status, theirs_status) = (os.pipe() for _ in range(3))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        theirs = [theirs_out, nowhere, theirs_status, theirs_in]
        request = Request(words, dict(os.environ), str(ROOT))
        socket.send_fds(_zygote(), [json.dumps(request._asdict()).encode()], theirs)
        for pipe in theirs:
            os.close(pipe)
        self.stdin, self.stdout = os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb")
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, once."""
        with self._status:
            return int(self._status.readline())


Process = subprocess.Popen[str] | Fork


@functools.cache
def _zygote() -> socket.socket:
    """The end at which this test process asks its zygote, which goes when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # In a session of its own: Ctrl-C is for the tests, and reaches it as the end of the connection.
    command = [sys.executable, "-m", "tests.zygote", str(theirs.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


@contextmanager
def started(module: str, *arguments: str, fresh: bool = False, second_rank: bool = False) -> Iterator[Process]:
    """`python -m module arguments…` in a process group of its own, of which nothing is left at the end.

    Args:
        module: What has a `__main__`.
        arguments: Of its command line.
        fresh: Whether it is an interpreter of its own.
        second_rank: Whether the rank that Lightning starts is a fork, where the first one is.
    """
    words = ["-m", module, *arguments]
    process = _fresh(words) if fresh else Fork(Request(words, dict(os.environ), str(ROOT), second_rank))
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # further ranks may be there when the first is gone
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finished(module: str, *arguments: str, second_rank: bool = False) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments…` to its end."""
    with started(module, *arguments, second_rank=second_rank) as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return subprocess.CompletedProcess([module, *arguments], process.wait(timeout=PATIENCE_SECONDS), out, err)


def run(
    command: Sequence[str], *, cwd: str | Path, env: Mapping[str, str], **_: object
) -> subprocess.CompletedProcess[str]:
    """In place of `subprocess.run` where a command begins with `sys.executable`; texts are captured."""
    executable, *words = command
    assert executable == sys.executable
    process = Fork(Request(words, dict(env), str(cwd)))
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return subprocess.CompletedProcess(command, process.wait(timeout=PATIENCE_SECONDS), out, err)


def _fresh(words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
