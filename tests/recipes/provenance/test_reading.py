"""Comments of a preset's file and the values that they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.provenance.reading import provenance_faults, stated_numbers

TEXT = """# @package _global_
# Paper    none.
defaults: # our choice: the smallest
  - override /model: demo
  - override /data: supervised_finetuning
  - override /rope: linear # published: "PI", section 3
about:
  paper: none
stage: continued_pretraining
context_length: 32768 # published: abstract
# An aside that is no provenance.
# second-hand: "128 rows", a blog about
# the report
batch: 128
model: {source: {name_or_path: a/b, dtype: bf16}} # our choice: it fits
betas: [0.9, 0.95] # our choice: not published
rope: {factor: 8.0, on_scaled_base: refuse} # published: config.json
corpus:
  # our choice: one corpus of your own
  mixture: {a: 0.25, b: 0.75}
  path: ???
  separator: "\\n # published: no comment" # recalled: "\\\\n", their code
  phases: # our choice: short ones first
    - tokens: 5
      mixture: {a: 1.0}
    - tokens: 6 # computed: 2 * 3; doubled
  words: |  # our choice: in two lines
    one # published: no comment
    two
  shares: # computed: 1 / 2; halves
    c: 0.5
    d: 0.5
  more: {e: 1, # our choice: e
         f: 2,
         g: 3} # our choice: closing
seed: ${context_length}
nothing: null
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "preset.yaml").write_text(TEXT, encoding="utf-8")
    return tmp_path / "preset.yaml"


def test_every_value_has_the_nearest_comment(file: Path) -> None:
    found: dict[str, tuple[Any, ...]] = {
        number.key: (number.value, number.kind, number.quote, number.text) for number in stated_numbers(file)
    }
    assert found == {
        "model": ("demo", "our choice", "", "the smallest"),
        "rope": ("linear", "published", "PI", "section 3"),
        "context_length": (32768, "published", "", "abstract"),
        "batch": (128, "second-hand", "128 rows", "a blog about the report"),
        "model.source.dtype": ("bf16", "our choice", "", "it fits"),
        "betas": ([0.9, 0.95], "our choice", "", "not published"),
        "rope.factor": (8.0, "published", "", "config.json"),
        "rope.on_scaled_base": ("refuse", "published", "", "config.json"),
        "corpus.mixture": ({"a": 0.25, "b": 0.75}, "our choice", "", "one corpus of your own"),
        "corpus.separator": ("\n # published: no comment", "recalled", "\\\\n", "their code"),
        "corpus.phases.0.tokens": (5, "our choice", "", "short ones first"),
        "corpus.phases.0.mixture": ({"a": 1.0}, "our choice", "", "short ones first"),
        "corpus.phases.1.tokens": (6, "computed", "", "doubled"),
        "corpus.words": ("one # published: no comment\ntwo\n", "our choice", "", "in two lines"),
        "corpus.shares.c": (0.5, "computed", "", "halves"),
        "corpus.shares.d": (0.5, "computed", "", "halves"),
        "corpus.more.e": (1, "our choice", "", "e"),
        "corpus.more.f": (2, "our choice", "", "closing"),
        "corpus.more.g": (3, "our choice", "", "closing"),
    }
    assert provenance_faults(file) == []


def test_lines_are_those_of_the_values(file: Path) -> None:
    lines = TEXT.splitlines()
    for number in stated_numbers(file):
        assert number.key.split(".")[-1] in lines[number.line - 1]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "lr: 1.0",
            "line 1: lr does not say where it comes from; end its line with '# published:', '# second-hand:', ",
        ),
        (
            "lr: 1.0 # from: the paper",
            "lr has the comment '# from: the paper', which is no provenance; begin with '# pub",
        ),
        (
            "lr: 1.0 # published:",
            "lr is 'published', which names no place; say where it stands (section, table or file)",
        ),
        ('lr: 1.0 # published: "1"', "lr is 'published', which names no place"),
        ('lr: 1.0 # published: "1" table 2', 'lr is published as "1" table 2; close the quote and put a comma'),
        ("lr: 1.0 # second-hand:", "lr is 'second-hand', which names no place; say where it was read, and of whom"),
        ("lr: 1.0 # recalled: ?", "lr is 'recalled', which says nothing"),
        ("lr: 1.0 # our choice", "lr is 'our choice', which gives no reason; say why, or whose value was borrowed"),
        ("lr: 1.0 # our choice: ", "lr is 'our choice', which gives no reason"),
        ('lr: 1.0 # our choice: "one",', "lr is 'our choice', which gives no reason"),
        (
            "lr: 1.0 # computed: 2 / 2",
            "lr is 'computed', which does not say from what; write '# computed: <arithmetic>; f",
        ),
        ("lr: 1.0 # computed: ; why", "lr is computed, but by no arithmetic"),
        ("lr: 1.0 # computed: 3 / 2; why", "lr is 1.0, but '3 / 2' gives 1.5; change one of them"),
        ("lr: 1.0 # computed: ten; why", "'ten' is no number of this file"),
        ("lr: 1.0 # computed: lr; why", "'lr' is no number of this file"),
        ("on: true # computed: 1; why", "on is True, but '1' gives 1"),
        ("lr: few # computed: 1; why", "lr is few, but '1' gives 1"),
        ("b: [1, 2] # computed: 1, 3; why", "b is 2, but '1, 3' gives 3; change one of them"),
        (
            "b: [1, 2] # computed: 1, 2, 3; why",
            "b has 2 values, but '1, 2, 3' gives 3; give one for each, or one for all",
        ),
        (
            "# our choice: above\nlr: 1.0 # our choice: behind",
            "line 2: lr has 2 provenances, such as '# our choice: above'",
        ),
        (
            "# our choice: a\n# computed: 1; b\nlr: 1.0",
            "line 3: lr has 2 provenances, such as '# computed: 1; b'; keep one",
        ),
        ("o: {a: 1} # our choice: x\no: {b: 1} # our choice: x", "line 2: o stands twice, first in line 1; keep one"),
        ("o: {a: 1, a: 1} # our choice: x", "line 1: o.a stands twice, first in line 1; keep one"),
        ("defaults:\n  - override /rope: linear", "line 2: rope does not say where it comes from"),
        ("a: [1", "line 2: this is not YAML: did not find expected"),
    ],
)
def test_fault_is_one_sentence_with_file_line_and_key(line: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text(f"{line}\n", encoding="utf-8")
    (fault,) = provenance_faults(file)
    assert sentence in fault
    assert "preset.yaml, line " in fault
    assert "\n" not in fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "lr: 1.0 # computed: 1, 1; two for one\n",
        "a: 1\nb: [x, {c: '${a}'}]\n",
        "a: []\nb: {}\n",
    ],
)
def test_reading_never_refuses_what_is_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text(text, encoding="utf-8")
    assert all(not number.kind or number.kind == "computed" for number in stated_numbers(file))


def test_keys_of_the_file_can_be_computed_with(tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text("a: {b: 4} # our choice: x\nc: 12 # computed: a.b * 3; y\n", encoding="utf-8")
    assert provenance_faults(file) == []


def test_file_that_is_no_yaml_is_refused_by_reading(tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(yaml.YAMLError):
        stated_numbers(file)
