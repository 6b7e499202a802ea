"""The words of `python -m recipes.chat`, which takes no recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

DTYPES = ("auto", "bf16", "fp32")
NEEDED = {"model": "<folder or hub name>", "file": "<long text>"}


@dataclass(frozen=True)
class ChatWords:
    """What the command line asks for; the keys are those of `--help`."""

    model: str
    file: Path
    prompt: str | None = None
    chat_template: str = "auto"
    context_length: int | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for key, smallest in (("max_new_tokens", 1), ("context_length", 2), ("seed", 0)):
            value = getattr(self, key)
            if value is not None and value < smallest:
                raise ValueError(f"{key}={value} must be at least {smallest}")
        for key, allowed, words in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 (the most likely token each time) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 is none"),
            ("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
        ):
            if not allowed:
                raise ValueError(f"{key}={getattr(self, key)} must be {words}")
        if self.context_length is not None and self.context_length <= self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves nothing of context_length={self.context_length} for the"
                " text and the question; lower max_new_tokens or raise context_length"
            )


def parse_words(words: Sequence[str]) -> ChatWords:
    """The words as values.

    Raises:
        ValueError: A word is not understood, comes twice, is missing, or has a value that cannot be.
    """
    kinds = {field.name: str(field.type) for field in fields(ChatWords)}
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in kinds:
            raise ValueError(f"'{word}' is not understood; the keys are {', '.join(kinds)} (see --help)")
        if key in values:
            raise ValueError(f"{key} is given twice; give it once")
        if not text.strip():
            raise ValueError(f"{key}= has no value; give one or leave it out")
        values[key] = _value(key, text, kinds[key])
    for key, what in NEEDED.items():
        if key not in values:
            raise ValueError(f"give {key}={what} (see --help)")
    return ChatWords(**values)


def _value(key: str, text: str, kind: str) -> Any:
    if kind == "Path":
        return Path(text).expanduser()
    if kind.startswith("str"):
        return text
    number, needed = (int, "a whole number") if kind.startswith("int") else (float, "a number")
    try:
        return number(text)
    except ValueError:
        raise ValueError(f"{key}={text} must be {needed}") from None
