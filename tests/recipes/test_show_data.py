"""`python -m recipes.show data`: rows of real recipes, and what is said to a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recipes.showing.data import USAGE, asked_of, decoder, main
from tests.recipes.words import replaced


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("nothing is trained and no weights are read")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.loading.PretrainedModel.load", forbidden)
    monkeypatch.setattr("lightning.pytorch.Trainer.__init__", forbidden)


@pytest.mark.usefixtures("no_weights", "small_bundle")
def test_a_row_of_the_toy_scale_through_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """demo/extend on its bundled text, against the row itself."""
    words = ["recipe=demo/extend", "scale=toy", f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/outputs"]
    assert main([*words, "i=3", "spans=all"]) == 0
    first, tokens, *lines = capsys.readouterr().out.splitlines()
    assert first == "row 3 of 0-39, in optimizer step 1 of 0-19 with the rows 2-3"

    from recipes.build import build_data
    from recipes.compose import compose

    data = build_data(compose(words).config)
    data.setup()
    assert data.data is not None
    row, segments = data.data[3], data.data.provenance(3)
    assert tokens.startswith(f"4,096 tokens: {len(segments)} piece")
    table = [line.replace(",", "") for line in lines if re.match(r"\s*\d+  ", line)]
    assert len(table) == len(segments)
    for line, (source, document, start, end) in zip(table, segments, strict=True):
        assert f" {source} " in line
        assert f" {document}  " in line
        assert f" {start}-{end - 1} of " in line
    assert data.tokenizer is not None
    opening = str(data.tokenizer.decode(row.input_ids[:5])).replace("\\", "\\\\").replace("\n", "\\n")
    assert f'"{opening}' in "\n".join(lines)
    assert "\x1b" not in "".join(lines)  # not a terminal
    figure = tmp_path / "outputs" / "demo" / "extend" / "data" / "row-3.png"
    assert lines[-1] == f"picture of the attention mask: {figure}"
    assert figure.stat().st_size > 1000


@pytest.mark.usefixtures("no_weights")
def test_colour_and_figure_are_as_asked(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    figure = tmp_path / "elsewhere" / "mask.svg"
    assert main([*tiny, "colour=always", f"figure={figure}"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[38;5;" in out
    assert "row 0 of 0-3" in out
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("row", ["4", "5000000"])
def test_a_row_beyond_the_run_is_refused_before_anything_is_tokenised(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    assert main([*tiny, f"i={row}"]) == 2
    assert capsys.readouterr().err == (
        f"error: i={row} is beyond the run, whose 4 rows are 0 to 3; set i, or data.max_steps for a longer run\n"
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("i=-1", "i=-1 must be a whole number of at least 0; rows are counted from 0"),
        ("i=few", "i=few must be a whole number of at least 0; rows are counted from 0"),
        ("i=1.0", "i=1.0 must be a whole number of at least 0; rows are counted from 0"),
        ("i=", "i= must be a whole number of at least 0; rows are counted from 0"),
        ("figure=mask.bmp", "figure=mask.bmp must end in one of .png, .pdf, .svg; set figure to a file's name"),
        ("colour=pink", "colour=pink must be one of auto, always, never; set colour"),
        ("spans=none", "spans=none must be one of some, all; set spans"),
        ("recipe=demo/extnd", "recipe=demo/extnd does not exist; nearest: demo/extend"),
        ("packing.max_seqln=4", "unknown key 'packing.max_seqln' on the command line; nearest: packing.max_seqlen"),
        ("j=3", "unknown key 'j' on the command line; see python -m recipes.show recipe=…"),
    ],
)
def test_a_mistake_is_one_sentence(change: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replaced(["recipe=demo/extend"], change)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0].startswith(f"error: {sentence}")


def test_all_mistakes_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe=demo/extend", "i=1", "i=2", "colour=pink", "spans=few"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_words_of_the_recipe_are_left_to_it() -> None:
    asked, rest = asked_of(["recipe=a", "i=7", "scale=toy", "figure=b.png", "data.max_steps=1"])
    assert (asked.number, asked.figure, asked.colour, asked.every_span) == (7, Path("b.png"), "auto", False)
    assert rest == ["recipe=a", "scale=toy", "data.max_steps=1"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == f"{USAGE}\n"
    assert USAGE.splitlines()[0] == "usage: python -m recipes.show data recipe=<name> [i=<row>] [key=value …]"


def test_ids_without_a_token_are_shown_by_number(model_folder: Path) -> None:
    """Augmentations may put in rows of the embedding that the tokenizer does not know."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = tokenizer("the sea")["input_ids"]
    decode = decoder(tokenizer)
    beyond = len(tokenizer) + 3
    assert decode([*ids, beyond, *ids, -1]) == f"the sea<{beyond}>the sea<-1>"
    assert decode([tokenizer.eos_token_id]) == tokenizer.eos_token
    assert decode([]) == ""
    assert all(decode([token]) for token in range(len(tokenizer)))


def test_half_a_character_is_shown_by_number_and_a_whole_one_as_itself(model_folder: Path) -> None:
    """Bytes that no text reaches alone serve as tokens of their own, which should be told apart."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    decode = decoder(tokenizer)
    ids = tokenizer("the 漢 sea")["input_ids"]
    assert decode(ids) == "the 漢 sea"
    character = tokenizer("漢")["input_ids"]
    assert len(character) == 3
    assert decode(character[:2]) == f"<{character[0]}><{character[1]}>"
    assert decode([character[1], *ids, character[0]]) == f"<{character[1]}>the 漢 sea<{character[0]}>"
