"""How values and their provenance are put into words, for a terminal and for Markdown alike."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from recipes.provenance.grammar import KINDS
from recipes.provenance.reading import Stated

NOT_PUBLISHED = "not published"
FOLLOWS = "-"
"""The paper's number where the value follows from others by arithmetic and nothing is quoted."""
SAME = "the same"
"""Where the value is a word of this repository's, such as an option's name, which no paper prints."""


def as_written(value: Any) -> str:
    """A value as it would stand in a preset, on one line."""
    match value:
        case dict():
            return f"{{{', '.join(f'{key}: {as_written(inner)}' for key, inner in value.items())}}}"
        case list():
            return f"[{', '.join(map(as_written, value))}]"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return re.sub(r"e([+-])0*", lambda sign: f"e{sign[1].strip('+')}", repr(value))
    text = str(value)
    return text if text and text.isprintable() and text == text.strip() else json.dumps(text, ensure_ascii=False)


def papers_number(stated: Stated) -> str:
    """The paper's own words, or what follows from the kind."""
    if stated.quote:
        return stated.quote
    value = SAME if isinstance(stated.value, str | bool) else as_written(stated.value)
    return {"our choice": NOT_PUBLISHED, "computed": FOLLOWS}.get(stated.kind, value)


def reason(stated: Stated, *, with_quote: bool) -> str:
    """The place or reason, after the arithmetic and, if wanted, the paper's own words."""
    quoted = f'"{stated.quote}"'
    quote = f"{quoted}, " if with_quote and stated.quote and not stated.text.startswith(quoted) else ""
    arithmetic = f"{stated.arithmetic}; " if stated.arithmetic else ""
    return f"{arithmetic}{quote}{stated.text}"


def counted(kinds: Iterable[str]) -> str:
    """Such as `14 published, 3 computed, 6 our choice`."""
    counts = Counter(kinds)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
