"""A process that has imported the heavy libraries, and forks a child for every start of Python that tests ask for.

A fresh interpreter spends five seconds of processor time on importing torch, lightning and transformers, and one more
on ending; a fork spends a third of a second. What forks share, and so cannot show: faults of importing the libraries,
a hash seed (the order of sets), and environment variables that libraries read while they are imported. Our own packages
are imported by every child anew. The alternative, the forkserver of `multiprocessing`, ends its children by `os._exit`,
and how a process with threads of gloo ends is part of what is tested.

    test process ── request, with three pipes ──> zygote ── fork ──> waiter ── fork ──> the module as `__main__`
          └──────────────────── process id, exit status <────────────────┴──────────────────────┘

The second rank of a training is started by Lightning, as `python` with the same words and other environment variables.
There the child forks beforehand, and that fork waits for these words.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

LIBRARIES = (
    "lightning.pytorch",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    "torchmetrics",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "peft",
    "hydra.utils",
)
MAX_REQUEST_BYTES = 1 << 18


class Request(NamedTuple):
    """What follows `python` on a command line: `-m module …`, `-P file …`, `-c code …`; its pipes travel beside it."""

    words: list[str]
    environment: dict[str, str]
    folder: str
    second_rank: bool = False  # whether the one that Lightning starts is a fork too


class SecondRank:
    """What `subprocess.Popen` is to Lightning's launcher, for the fork that waits to be started."""

    def __init__(self, pid: int, words: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._words = words

    def start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str | None) -> SecondRank:
        request = Request([*command[1:]], dict(env), cwd or str(Path.cwd()))
        with os.fdopen(self._words, "w") as words:
            json.dump(request._asdict(), words)
        return self

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def main() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads after the imports, of which a fork would take along one"
    gc.freeze()  # or each child would visit all that the libraries hold when it ends, which takes a second
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        run(with_second_rank(request) if request.second_rank else request)


def serve(requests: socket.socket) -> Request | None:
    """Fork a child for each request until the test process is gone; returns in each child, with what it has to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks after the waiters
    while True:
        message, pipes, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
        if not message:
            return None
        if os.fork() == 0:
            requests.close()
            become_child(*pipes)
            return Request(**json.loads(message))
        for pipe in pipes:
            os.close(pipe)


def become_child(out: int, err: int, status: int, *stdin: int) -> None:
    """Fork once more; the parent waits and tells the exit status, and only the child comes back."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        for pipe in (out, err, *stdin):
            os.close(pipe)
        _, ended = os.waitpid(child, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.setsid()  # a process group of its own, before anybody knows its id
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    for pipe, standard in ((out, 1), (err, 2), *((pipe, 0) for pipe in stdin)):
        os.dup2(pipe, standard)
        os.close(pipe)


def with_second_rank(request: Request) -> Request:
    """Fork the rank that Lightning will start; returns the request in the first rank, and Lightning's in the second."""
    from lightning.pytorch.strategies.launchers import subprocess_script

    read, write = os.pipe()
    second = os.fork()
    if second:
        os.close(read)
        rank = SecondRank(second, write)
        subprocess_script.subprocess = SimpleNamespace(Popen=rank.start)  # type: ignore[attr-defined]
        return request
    os.close(write)
    with os.fdopen(read) as words:
        said = words.read()
    if not said:  # the first rank ended before it started another
        os._exit(0)
    return Request(**json.loads(said))


def run(request: Request) -> None:
    """What Python does with these words, down to the way in which the interpreter ends."""
    import numpy as np

    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    random.seed()  # children would draw the same numbers
    np.random.seed()  # noqa: NPY002  (the global state, which libraries draw from)
    option, what, *arguments = request.words
    sys.argv = [what, *arguments]
    if option == "-m":
        sys.path[0] = request.folder
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv[0], sys.path[0] = option, ""
        exec(what, {"__name__": "__main__"})
    else:
        assert option == "-P", request.words
        del sys.path[0]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main()
