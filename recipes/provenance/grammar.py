"""The comment that says where a number of a preset comes from, taken apart.

    # published: ["the paper's own words",] where               read in the paper, its code or its model card
    # second-hand: ["…",] where it was read, and of whom
    # recalled: ["…",] what, unverified
    # computed: arithmetic that gives the value; ["…",] from what
    # our choice: ["…",] why, or whose value was borrowed

What stands in quotation marks is the paper's own number or words; a comma follows it, and must where it is published.
"""

from __future__ import annotations

import re
from typing import NamedTuple

KINDS = ("published", "second-hand", "recalled", "computed", "our choice")
_BEGINNING = re.compile(rf"({'|'.join(KINDS)})(?::|$)\s*(.*)", re.DOTALL)
_QUOTE = re.compile(r'"([^"]*)"\s*(?:,\s*(.*))?$', re.DOTALL)
_BEGINS_WITH_QUOTE = re.compile(r'"([^"]*)"')
_LACKS = {
    "published": "names no place; say where it stands (section, table or file), behind the quote and its comma",
    "second-hand": "names no place; say where it was read, and of whom",
    "recalled": "says nothing; say what is recalled",
    "computed": "does not say from what; write '# computed: <arithmetic>; from what'",
    "our choice": "gives no reason; say why, or whose value was borrowed",
}


class Provenance(NamedTuple):
    """Where one value comes from.

    Attributes:
        kind: One of `KINDS`.
        quote: The paper's own number or words; empty if none are quoted.
        text: The place or the reason; the quote is part of it where no comma sets them apart.
        arithmetic: What a computed value is computed by; empty for the other kinds.
    """

    kind: str
    quote: str
    text: str
    arithmetic: str = ""


def begins_with_kind(comment: str) -> bool:
    return _BEGINNING.match(comment) is not None


def parsed(comment: str) -> Provenance:
    """A comment without its sign, taken apart.

    Raises:
        ValueError: It is of no known kind, or says too little; the end of a sentence that begins with the key.
    """
    found = _BEGINNING.match(comment)
    if found is None:
        raise ValueError(
            f"has the comment '# {shortened(comment)}', which is no provenance; begin with {one_of_kinds()}"
        )
    kind, rest = found[1], found[2].strip()
    arithmetic = ""
    if kind == "computed":
        arithmetic, _, rest = (part.strip() for part in rest.partition(";"))
        if not arithmetic:
            raise ValueError("is computed, but by no arithmetic; write '# computed: <arithmetic>; from what'")
    quoted = _QUOTE.match(rest)
    if quoted is None and kind == "published" and rest.startswith('"'):
        raise ValueError(f"is published as {shortened(rest)}; close the quote and put a comma between it and the place")
    quote, text = (quoted[1], (quoted[2] or "").strip()) if quoted else ("", rest)
    if not quoted and (begins := _BEGINS_WITH_QUOTE.match(rest)):
        quote = begins[1]
    if not re.search(r"\w", text):
        raise ValueError(f"is '{kind}', which {_LACKS[kind]}")
    return Provenance(kind, quote, text, arithmetic)


def one_of_kinds() -> str:
    """For error messages: how a provenance may begin."""
    return ", ".join(f"'# {kind}:'" for kind in KINDS[:-1]) + f" or '# {KINDS[-1]}:'"


def shortened(text: str, width: int = 40) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
