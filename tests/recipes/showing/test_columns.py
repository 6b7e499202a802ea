"""Tables that fit a terminal."""

from __future__ import annotations

import pytest

from recipes.showing.columns import columns

ROWS = [
    ("name", "paper", "mask"),
    ("a/short", "one two three four five six", "yes"),
    ("a/rather_long_name", "none", "no"),
]


def test_wide_enough_nothing_is_wrapped() -> None:
    assert columns(ROWS, width=80, wrap=True) == columns(ROWS, width=80, wrap=False)
    assert columns(ROWS, width=80, wrap=False) == [
        "name                paper                        mask",
        "------------------  ---------------------------  ----",
        "a/short             one two three four five six  yes",
        "a/rather_long_name  none                         no",
    ]


@pytest.mark.parametrize("width", [37, 40, 48])
def test_wrapped_lines_fit_and_keep_every_word(width: int) -> None:
    lines = columns(ROWS, width=width, wrap=True)
    assert max(map(len, lines)) <= width
    words = " ".join(lines[2:-1]).split()
    assert [word for word in words if word in ROWS[1][1].split()] == ROWS[1][1].split()
    assert lines[-1].startswith("a/rather_long_name")


def test_shortened_rows_are_a_line_each_and_only_prose_is_shortened() -> None:
    lines = columns(ROWS, width=40, wrap=False, prose=["paper"])
    assert len(lines) == 4
    assert max(map(len, lines)) == 40
    assert lines[2] == "a/short             one two three…  yes"
    assert columns(ROWS, width=40, wrap=False, prose=["mask"])[2].count("…") == 0


def test_notes_stand_below_their_rows() -> None:
    lines = columns(ROWS, width=60, wrap=False, notes=["", "reported: 75.0"])
    assert lines[-2:] == [lines[-2], "    reported: 75.0"]
    assert lines[-2].startswith("a/rather")
