"""The process that renders a tokenizer's chat template, seen from outside."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from datamodules.conversations.conversation import Message

SECONDS = 30.0
"""Longest time for a request after the process has started: a long conversation or some short ones. Theirs is
milliseconds."""

START_SECONDS = 120.0
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from datamodules.conversations.jinja_worker import main; main()"
)


class JinjaText(NamedTuple):
    """What a template made of a conversation.

    Attributes:
        text: The rendered conversation; "" where there is an error.
        spans: Where `{% generation %}` began and ended.
        error: What the template has against the conversation.
    """

    text: str = ""
    spans: Sequence[Sequence[int]] = ()
    error: str = ""


class JinjaProcess:
    """Renders conversations by a chat template, in a process of its own that is started when it is needed.

    Args:
        template: Jinja.
        arguments: What else the template may read, such as `bos_token`.
    """

    def __init__(self, template: str, arguments: Mapping[str, Any]) -> None:
        self._settings = json.dumps({"template": template, "arguments": dict(arguments)})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(
        self, conversations: Sequence[Sequence[Message]], *, spans: bool = False, prompt: bool = False
    ) -> list[JinjaText]:
        """Render conversations.

        Args:
            conversations: Their messages.
            spans: Whether to tell where `{% generation %}` stands.
            prompt: Whether to add what stands in front of an answer.

        Raises:
            ValueError: The template takes too long or too much memory.
        """
        if not conversations:
            return []
        messages = [[message._asdict() for message in one] for one in conversations]
        request = json.dumps({"conversations": messages, "spans": spans, "prompt": prompt})
        with self._lock:
            fresh = self._process is None
            try:
                answers = self._ask(request, SECONDS + (START_SECONDS if fresh else 0))
            except BaseException:
                self.close()
                raise
        for answer in answers:
            if "limit" in answer:
                raise _refused(answer["limit"])
        return [JinjaText(**answer) for answer in answers]

    def close(self) -> None:
        """End the process; the next request starts another."""
        if self._process is not None:
            self._end()
            self._process = None

    def _ask(self, request: str, seconds: float) -> list[dict[str, Any]]:
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise _refused("ends the process that renders it") from None
        answered = selectors.DefaultSelector()
        answered.register(process.stdout, selectors.EVENT_READ)
        blocks: list[bytes] = []
        while not (blocks and blocks[-1].endswith(b"\n")):
            if not answered.select(max(0.0, deadline - time.monotonic())):
                raise _refused(f"takes longer than {SECONDS:g} seconds")
            block = os.read(process.stdout.fileno(), 1 << 20)
            if not block:
                raise _refused("ends the process that renders it")
            blocks.append(block)
        return json.loads(b"".join(blocks))

    def _start(self) -> None:
        command = [sys.executable, "-c", START, json.dumps(sys.path)]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._end = weakref.finalize(self, _end, process)
        assert process.stdin is not None
        process.stdin.write(self._settings.encode() + b"\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent any more
                pipe.close()


def _refused(what: str) -> ValueError:
    return ValueError(
        f"the tokenizer's chat template {what}; set chat_template to one of those of conf/chat_template, or"
        " model.tokenizer"
    )
