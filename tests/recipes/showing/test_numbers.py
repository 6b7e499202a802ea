"""`python -m recipes.show numbers`: the papers' numbers beside ours, and the README's copy of them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from recipes.compose import ConfigError, presets
from recipes.provenance.reading import Stated, preset_file, stated_numbers
from recipes.provenance.wording import as_written, papers_number
from recipes.showing.numbers import BEGINNING, END, PAPERS, _table, main, markdown

README = Path(__file__).parents[3] / "README.md"
HEAD = ["key", "paper's number", "preset's value", "provenance"]


def cells(text: str) -> list[list[str]]:
    """Rows of all tables, without their heads and rules."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row != HEAD and set("".join(row)) != {"-", "|"}]


def readme_section() -> str:
    """What the README shows of the presets' numbers."""
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGINNING) == text.count(END) == 1, f"README.md needs {BEGINNING} … {END}"
    return text.split(BEGINNING)[1].split(END)[0].strip()


def test_readme_shows_what_the_presets_say() -> None:
    assert readme_section() == markdown(), "put what python -m recipes.show numbers prints into README.md"


def test_table_has_a_row_for_every_number() -> None:
    stated = stated_numbers(preset_file("demo/extend"))
    rows = cells(markdown(["recipe=demo/extend"]))
    assert [row[0] for row in rows] == [f"`{number.key}`" for number in stated]
    assert [row[2] for row in rows] == [f"`{as_written(number.value)}`" for number in stated]
    assert [row[3].split(":")[0] for row in rows] == [number.kind for number in stated]
    assert ["`optimizer.lr`", "not published", "`0.001`", "our choice: where demo/base ended"] in rows


def test_four_papers_are_shown_with_all_their_presets() -> None:
    text = markdown()
    of_papers = [name for name in presets() if any(fnmatch(name.split("/")[0], pattern) for pattern in PAPERS)]
    assert len(of_papers) >= 2
    assert [text.count(f"`{name}`: ") for name in of_papers] == [1] * len(of_papers)
    assert text.count("<details>") == text.count("</details>") <= len(PAPERS)
    assert "demo/" not in text
    assert all(len(row) == 4 for row in cells(text))


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (Stated("a", 4194304, "published", "4M", "table 1", 1), "4M"),
        (Stated("a", 1e-5, "published", "", "table 1", 1), "1e-5"),
        (Stated("rope", "linear", "published", "", "section 2", 1), "the same"),
        (Stated("a", True, "published", "", "section 2", 1), "the same"),
        (Stated("a", 8, "our choice", "", "memory", 1), "not published"),
        (Stated("a", 100, "our choice", "a little", "the report", 1), "a little"),
        (Stated("a", 8, "computed", "", "sizes", 1, "2 * 4"), "-"),
        (Stated("a", 2384, "computed", "10B", "tokens", 1, "10e9 // 4194304"), "10B"),
        (Stated("a", [0.9, 0.95], "second-hand", "", "a blog", 1), "[0.9, 0.95]"),
    ],
)
def test_papers_number_is_the_quote_or_what_the_kind_says(stated: Stated, expected: str) -> None:
    assert papers_number(stated) == expected


def test_copy_for_another_model_shows_what_differs() -> None:
    original = [
        Stated("model", "a", "published", "", "x", 1),
        Stated("rope", "b", "published", "", "x", 2),
        Stated("lr", 1, "our choice", "", "x", 3),
    ]
    copy = [Stated("model", "c", "published", "", "x", 1), Stated("lr", 1, "our choice", "", "other words", 3)]
    text = _table("copy/pretrain", copy, original="first/pretrain", originals=original)
    assert cells(text) == [["`model`", "the same", "`c`", "published: x"]]
    assert text.startswith("`copy/pretrain`: 1 published, 1 our choice; as `first/pretrain` but for\n")
    assert text.endswith("Without `rope`.")
    assert "(nothing)" in _table("same", original, original="first/pretrain", originals=original)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipe=nothing"], "recipe=nothing does not exist; there are the folders "),
        (["recipe=*"], "recipe=* does not exist; there are the folders "),
        (["recipe=demo", "recipe=demo"], "numbers takes at most recipe=<name or folder>"),
        (["optimizer.lr=1"], "'optimizer.lr=1' is not understood"),
    ],
)
def test_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        markdown(words)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_folder_prints_its_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe=demo"]) == 0
    out = capsys.readouterr().out
    assert [out.count(f"`demo/{name}`: ") for name in ("base", "extend", "sft")] == [1, 1, 1]
    assert "<b>demo</b>" in out  # which is no paper's
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m recipes.show numbers")
