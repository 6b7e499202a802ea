"""`python -m recipes.show data recipe=… i=…`: one row of a recipe's run, as text and as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.cli import exit_status
from recipes.compose import ConfigError, compose

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from datamodules.base import PackedDataModule
    from recipes.showing.lines import Decode
    from recipes.showing.row import ShownRow

USAGE = """usage: python -m recipes.show data recipe=<name> [i=<row>] [key=value …]

Print one row of a recipe's run: where its tokens come from, which are learned, who sees whom.

  i=0                           which row of the run, counted from 0; any row, at once
  figure=<file>                 where the picture of the attention mask goes, .png, .pdf or .svg;
                                without it <output_dir>/<recipe>/data/row-<i>.png
  colour=auto                   documents in colour: auto is on a terminal, unless NO_COLOR is set; always; never
  spans=some                    of a row with many spans the first and the last; all

All other words are the recipe's: python -m recipes.show --help. Text that was not tokenised yet is; nothing is trained,
and no weights are read."""

KEYS = ("i", "figure", "colour", "spans")
LONGEST_CHARACTER = 4
"""Bytes, and so tokens at most."""
FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Asked:
    """What the words say beside the recipe's."""

    number: int = 0
    figure: Path | None = None
    colour: str = "auto"
    every_span: bool = False


def main(words: Sequence[str]) -> int:
    """Act on the words after `data`; returns the exit status."""
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    return exit_status(lambda: show_data(words))


def show_data(words: Sequence[str]) -> None:
    """Print a row, and draw its attention mask.

    Raises:
        ValueError: A word that is not understood, a recipe with faults, or a row that the run does not have.
    """
    from recipes.showing.ink import Ink, encodable, wants_colour

    asked, rest = asked_of(words)
    composed = compose(rest)

    from recipes.build import build_data, quiet
    from recipes.validate import validate

    validate(composed)
    config = composed.config
    quiet()
    data = build_data(config)
    if data.max_steps is not None and data.tokens_per_step is not None:  # before hours of tokenising
        _refuse_beyond(asked.number, data.max_steps * data.sequences_per_step)
    data.prepare_data()
    data.setup()

    from recipes.showing.lines import row_lines
    from recipes.showing.mask_picture import draw_mask
    from recipes.showing.row import spans_of

    row = shown_row(data, asked.number)
    spans = spans_of(row)
    ink = Ink(colour=wants_colour(asked.colour, sys.stdout))
    lines = row_lines(row, spans, decode=decoder(data.tokenizer), ink=ink, every_span=asked.every_span)
    print("\n".join(encodable(line, sys.stdout) for line in lines))
    if not len(row):
        return
    path = asked.figure or _default_figure(config, asked.number)
    title = f"Who sees whom in row {asked.number:,} of {config.recipe_name}"
    print(f"\npicture of the attention mask: {draw_mask(row, spans, title=title, path=path)}")


def asked_of(words: Sequence[str]) -> tuple[Asked, list[str]]:
    """Splits the words into those of this verb and the recipe's.

    Raises:
        ConfigError: One of ours is given twice or cannot be understood; one sentence for each fault.
    """
    from recipes.showing.ink import CHOICES

    given: dict[str, str] = {}
    faults, rest = [], []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            rest.append(word)
        elif key in given:
            faults.append(f"{key} is given twice; keep one")
        else:
            given[key] = value
    number, figure = given.get("i", "0"), given.get("figure")
    colour, spans = given.get("colour", "auto"), given.get("spans", "some")
    if not number.isdecimal():
        faults.append(f"i={number} must be a whole number of at least 0; rows are counted from 0")
    if figure is not None and Path(figure).suffix not in FORMATS:
        faults.append(f"figure={figure} must end in one of {', '.join(FORMATS)}; set figure to a file's name")
    if colour not in CHOICES:
        faults.append(f"colour={colour} must be one of {', '.join(CHOICES)}; set colour")
    if spans not in ("some", "all"):
        faults.append(f"spans={spans} must be one of some, all; set spans")
    if faults:
        raise ConfigError("\n".join(faults))
    return Asked(int(number), Path(figure).expanduser() if figure else None, colour, spans == "all"), rest


def shown_row(data: PackedDataModule, number: int) -> ShownRow:
    """Row i of the run and what is known about it; the data module is set up.

    Raises:
        ValueError: The run has no such row.
    """
    from recipes.showing.row import Piece, ShownRow

    packed = data.data
    assert packed is not None
    _refuse_beyond(number, len(packed), key="data.max_steps" if data.epochs is None else "data.epochs")
    pieces = []
    for source, document, start, end in packed.provenance(number):
        store = packed.stores[source]
        length = int(store.offsets[document + 1] - store.offsets[document])
        pieces.append(Piece(source, document, start, store.slice(document, start, end), length))
    row, step = packed[number], number // data.sequences_per_step
    return ShownRow(
        number=number,
        num_rows=len(packed),
        rows_per_step=data.sequences_per_step,
        pieces=pieces,
        input_ids=row.input_ids,
        labels=row.labels,
        position_ids=row.position_ids,
        document_ids=row.document_ids,
        context_length=data.context_length(step),
        loss_weights=row.loss_weights,
        window=data.attention_window(step),
    )


def decoder(tokenizer: Any) -> Decode:
    """Token ids to text; what is none alone, such as unused rows of an embedding or half a character, as <id>.

    Args:
        tokenizer: Of transformers; by itself it leaves out ids that it does not know, and writes \ufffd for half
            characters, which augmentations use for tokens of their own.
    """

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def is_text(ids: Sequence[int]) -> bool:
        known = all(0 <= k < len(tokenizer) and tokenizer.convert_ids_to_tokens(k) is not None for k in ids)
        return known and "\ufffd" not in text(ids)

    def decode(ids: Sequence[int]) -> str:
        if is_text(ids):
            return text(ids)
        parts, place = [], 0
        while place < len(ids):
            lengths = range(1, min(LONGEST_CHARACTER, len(ids) - place) + 1)
            length = next((n for n in lengths if is_text(ids[place : place + n])), 0)
            parts.append(text(ids[place : place + length]) if length else f"<{ids[place]}>")
            place += max(length, 1)
        return "".join(parts)

    return decode


def _refuse_beyond(number: int, num_rows: int, *, key: str = "data.max_steps") -> None:
    if number >= num_rows:
        raise ValueError(
            f"i={number} is beyond the run, whose {num_rows} rows are 0 to {num_rows - 1}; set i, or {key} for a longer"
            " run"
        )


def _default_figure(config: DictConfig, number: int) -> Path:
    return Path(config.output_dir) / config.recipe_name / "data" / f"row-{number}.png"
