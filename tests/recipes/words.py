"""Words of a command line, changed."""

from __future__ import annotations

from collections.abc import Sequence


def replaced(words: Sequence[str], *changes: str) -> list[str]:
    """The words with some keys given anew, or added."""
    keys = {change.split("=", 1)[0] for change in changes}
    return [*(word for word in words if word.split("=", 1)[0] not in keys), *changes]
