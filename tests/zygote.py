"""A process that has imported the heavy libraries, and forks a child for every start of Python that tests ask for.

A fresh interpreter spends five seconds of processor time on importing torch, lightning and transformers, and one more
on ending; a fork spends a third of a second. What forks share, and so cannot show: faults of importing the libraries,
a hash seed (the order of sets), and environment variables that libraries read while they are imported. Our own packages
are imported by every child anew. The alternative, the forkserver of `multiprocessing`, ends its children by `os._exit`,
and how a process with threads of gloo ends is part of what is tested.

    test process ── request, with three pipes ──> zygote ── fork ──> waiter ── fork ──> the module as `__main__`
          └──────────────────── process id, exit status <────────────────┴──────────────────────┘
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
from pathlib import Path
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
    """What follows `python` on a command line, `-m module …` or `-P file …`; its three pipes travel beside it."""

    words: list[str]
    environment: dict[str, str]
    folder: str


def main() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads after the imports, of which a fork would take along one"
    gc.freeze()  # or each child would visit all that the libraries hold when it ends, which takes a second
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        run(request)


def serve(requests: socket.socket) -> Request | None:
    """Fork a child for each request until the test process is gone; returns in each child, with what it has to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks after the waiters
    while True:
        message, pipes, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
        if not message:
            return None
        if os.fork() == 0:
            requests.close()
            become_child(*pipes)
            return Request(**json.loads(message))
        for pipe in pipes:
            os.close(pipe)


def become_child(out: int, err: int, status: int) -> None:
    """Fork once more; the parent waits and tells the exit status, and only the child comes back."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        os.close(out)
        os.close(err)
        _, ended = os.waitpid(child, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.setsid()  # a process group of its own, before anybody knows its id
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    for pipe, standard in ((out, 1), (err, 2)):
        os.dup2(pipe, standard)
        os.close(pipe)


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
    else:
        assert option == "-P", request.words
        del sys.path[0]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main()
