"""Renders chat templates of others in a process that has little memory and can be ended.

A template is a program, and one from the hub is a stranger's. transformers runs it in Jinja's sandbox, which keeps it
from reading attributes and files and not from filling the memory or never ending. So it runs here: the process may take
`MEMORY_BYTES`, and whoever asked ends it after a while (`jinja_process.py`). Requests and answers are lines of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 << 30
GROWTH, ROOM = 4, 1 << 20
"""A rendered conversation has at most so many times its characters, and so many more."""

TOO_MUCH = "writes far more than the conversation holds"


def main() -> None:
    """Answer requests until there are no more."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    settings = json.loads(sys.stdin.readline())
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing else may write between the answers
    for line in sys.stdin:
        request = json.loads(line)
        found = [_rendered(render_jinja_template, settings, one, request) for one in request["conversations"]]
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _rendered(render: Any, settings: dict[str, Any], messages: list[Any], request: dict[str, Any]) -> dict[str, Any]:
    """`text` and `spans` of one conversation, or `error`, or the `limit` that it broke."""
    size = sum(len(message["content"]) for message in messages)
    try:
        (text,), spans = render(
            conversations=[messages],
            chat_template=settings["template"],
            return_assistant_tokens_mask=request["spans"],
            add_generation_prompt=request["prompt"],
            **settings["arguments"],
        )
    except MemoryError:
        return {"limit": TOO_MUCH}
    except Exception as error:  # whatever a program of somebody else raises
        reason = str(error).strip() or type(error).__name__
        return {"error": reason.splitlines()[0][:300]}
    if len(text) > GROWTH * size + ROOM:
        return {"limit": TOO_MUCH}
    return {"text": text, "spans": spans[0] if spans else []}


def _limit_memory() -> None:
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        used = 8 << 30
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


if __name__ == "__main__":
    main()
