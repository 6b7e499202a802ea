"""The certificate of a checkpoint: findings in words, on one page.

A violation is something that makes a reader compute another model than was trained, or a document see another. What may
be meant so, or lies in how the model is called, is a warning.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

OK, NOTE, WARNING, VIOLATION, SKIPPED = "ok", "note", "warning", "VIOLATION", "not looked at"
WIDTH = 116


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        verdict: One of the words above.
        words: What was found.
        mend: What a user can do about it.
    """

    verdict: str
    words: str
    mend: str = ""


class Section(NamedTuple):
    title: str
    findings: Sequence[Finding]


@dataclass(frozen=True)
class Certificate:
    """Everything that was found out about one checkpoint.

    Args:
        checkpoint: What was looked at, as the user named it.
        subject: The model in a line.
        sections: In reading order.
        seconds: What it took.
    """

    checkpoint: str
    subject: str
    sections: Sequence[Section]
    seconds: float

    def count(self, verdict: str) -> int:
        return sum(finding.verdict == verdict for section in self.sections for finding in section.findings)

    @property
    def clean(self) -> bool:
        return self.count(VIOLATION) == 0

    @property
    def verdict(self) -> str:
        """The outcome in a line."""
        violations, warnings = _plural(self.count(VIOLATION), "violation"), _plural(self.count(WARNING), "warning")
        return f"{'clean' if self.clean else 'NOT CLEAN'}: {violations}, {warnings}"

    def text(self) -> str:
        """The page."""
        lines = [f"certificate of {self.checkpoint}", self.subject]
        for number, (title, findings) in enumerate(self.sections, start=1):
            lines += ["", f"{number}  {title}"]
            for finding in findings:
                lines += _wrapped(f"{finding.verdict:<13}  ", finding.words)
                lines += _wrapped(" " * 15, f"-> {finding.mend}") if finding.mend else []
        return "\n".join([*lines, "", f"verdict  {self.verdict}   ({self.seconds:.1f} s)"])


def _wrapped(head: str, words: str) -> list[str]:
    """Words behind a margin, with their own line breaks kept."""
    lines = []
    for line in words.splitlines():
        lines += textwrap.wrap(line, WIDTH - 3 - len(head), break_long_words=False, break_on_hyphens=False) or [""]
    return [f"   {head if number == 0 else ' ' * len(head)}{line}" for number, line in enumerate(lines)]


def _plural(count: int, thing: str) -> str:
    return f"{count or 'no'} {thing}{'' if count == 1 else 's'}"
