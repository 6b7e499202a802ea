r"""The tokens of table problems, put together of the tokens of their pieces.

    text      …closed |\n| K12345 | Anna Smith | 2015-07-30 | 42 | open |\n| K77130 | …
    pieces          [ |\n| K][12345][ | Anna][ Smith][ | 2015][-07][-30][ |][ 42][ | open][ |\n| K][77130][ | …

Algorithm: a table has few different pieces, such as ` | Anna`, ` Smith`, `-07` and `", "status": "open`; each is
tokenised once, and a table is one gather from their tokens. Cost: numbers that were not met before are tokenised, all
else is numpy: twenty times as fast as tokenising the text. Alternative: tokenising it as a whole, which is done with
tokenizers of which it is not known that texts can be cut so.

A piece ends only where no token can lie over its end, whatever stands before and after:

    a letter or a digit, then neither        ` | Anna`, `2015-`, `open",`
    a letter, then a digit                   `K12345`
    one of `|`, `,` and `:`, then a number    `,42`, `: 42`

The regular expressions of GPT-2, Llama 3, Qwen and GPT-4o end a word there: none of their alternatives matches the two
characters in a row, and none looks back. BPE without words (Llama 2, Gemma) may have no merge that joins these two;
then those on either side happen as without the other. Which of the two a tokenizer is, `prepare`
decides for cutting long texts (`cut_rule`). What is promised so is tried on one problem of each format, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from datamodules.augmentations.knot_tokens import TextEncoder
from datamodules.prepare.cutting import SPACE_ASCII, SPACE_OR_LINE, cut_rule
from datamodules.tasks.table_columns import DrawnCells, Part, Table
from datamodules.tasks.table_formats import FORMATS, Format, Frame, frame, render
from datamodules.tasks.tables import draft_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# n rows, P pieces of a row

WRITTEN = r"[A-Za-z0-9 ,|:{}\[\]\"\n?.+=-]"
"""A character of a table problem, in formats, cells, questions and answers."""

JOINED = re.compile(r"[A-Za-z0-9][ ▁,|\"\-}\n]|[A-Za-z][0-9]|[|,:][ ▁0-9]")
"""Two characters of which one piece may end with the first and the next begin with the second."""

ANCHOR = "0"
"""What a piece is tokenised behind: a tokenizer may treat the beginning of a text in another way."""

NUMBERS_AT_ONCE = 512
PROBE_ROWS = 12


class Measured(Protocol):
    """A table of which the number of tokens of every row is known."""

    @property
    def ends(self) -> np.ndarray:
        """Tokens of the first row, of the first two, and so on, [n] int64; with a `WholeText` about so many."""
        ...

    def problem(self, opening: str, num_rows: int, closing: str) -> np.ndarray:
        """The tokens of the text `opening`, the table of the first rows, `closing`, [tokens] int64.

        Args:
            opening: Stands before the table.
            num_rows: At least one.
            closing: Stands behind it, and begins with a line end or punctuation.
        """
        ...


class TableTokens(Protocol):
    """Tables to tokens."""

    def measure(self, table: Table, written: Format, sample: Table) -> Measured:
        """Find out how long the rows of a table are.

        Args:
            table: As it was drawn.
            written: Its format.
            sample: Rows of the same schema, for those who estimate.
        """
        ...


def table_tokens(tokenizer: PreTrainedTokenizerBase) -> JoinedPieces | WholeText:
    """The fastest way that gives the tokens of the text; both pickle.

    Args:
        tokenizer: Made the tokens of the documents.
    """
    encode = TextEncoder.of(tokenizer)
    whole, pieces = WholeText(encode), JoinedPieces(encode)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _can_be_cut(backend):
        return whole
    for k, written in enumerate(FORMATS):
        draft = draft_problem((k,), max_columns=8, formats=[written])
        table = draft.draw(PROBE_ROWS)
        texts = "Question: which?\n\n", PROBE_ROWS, "\n\nAnswer: 42"
        expected = whole.measure(table, written, table).problem(*texts)
        if not np.array_equal(pieces.measure(table, written, table).problem(*texts), expected):
            return whole
    return pieces


@dataclass(frozen=True)
class WholeText:
    """Tokenises the text of every problem.

    Args:
        encode: Text -> token ids.
    """

    encode: TextEncoder

    def measure(self, table: Table, written: Format, sample: Table) -> Measured:
        """See `TableTokens`."""
        mean_row = len(self.encode(render(sample, written).text)) / sample.num_rows
        return _Text(self.encode, table, written, (mean_row * np.arange(1, table.num_rows + 1)).astype(np.int64))


class _Text(NamedTuple):
    encode: TextEncoder
    table: Table
    written: Format
    ends: np.ndarray

    def problem(self, opening: str, num_rows: int, closing: str) -> np.ndarray:
        text = opening + render(self.table.head(num_rows), self.written).text + closing
        return np.array(self.encode(text), dtype=np.int64)


class Pieces(NamedTuple):
    """Where the tokens of some pieces are: piece i at `start[i]`, `length[i]` of them."""

    start: np.ndarray  # [pieces] int64
    length: np.ndarray  # [pieces] int64

    def __getitem__(self, indices: np.ndarray) -> Pieces:  # type: ignore[override]
        return Pieces(self.start[indices], self.length[indices])


class JoinedPieces:
    """Puts problems together of pieces; what was tokenised once is kept.

    Args:
        encode: Text -> token ids.
    """

    def __init__(self, encode: TextEncoder) -> None:
        self.encode = encode
        self.tokens = np.empty(1 << 16, dtype=np.int64)  # of all pieces one after the other, with room behind
        self._used = 0
        self._words: dict[tuple[str, tuple[str, ...]], Pieces] = {}
        self._numbers: dict[str, Pieces] = {}
        self._anchor = len(encode(ANCHOR))

    def __reduce__(self) -> tuple[type[JoinedPieces], tuple[TextEncoder]]:
        return JoinedPieces, (self.encode,)  # what it has learned is not sent along

    def measure(self, table: Table, written: Format, sample: Table) -> Measured:
        """See `TableTokens`."""
        around = frame(table, written)
        turn = around.after + around.between
        pieces: list[Pieces] = []
        for number, (column, before) in enumerate(zip(table.columns, around.before, strict=True)):
            assert isinstance(column.cells, DrawnCells)
            pieces += self._column(column.cells.parts, before if number else turn + before)
        rows = Pieces(*(np.stack(arrays, axis=1) for arrays in zip(*pieces, strict=True)))  # [n, P]
        return _Joined(self, rows, around, str(table.head(1).keys[0])[0])

    def behind(self, text: str) -> list[int]:
        """The tokens of a text behind a letter or digit."""
        return self.encode(ANCHOR + text)[self._anchor :]

    def _column(self, parts: Sequence[Part], before: str) -> list[Pieces]:
        """The pieces of every cell with what stands before it."""
        first, *others = parts
        found = []
        if first.words is None:
            fixed = before.rstrip(" ")
            num_cells = len(first.indices)
            found = [self.words(fixed, ("",))[np.zeros(num_cells, dtype=np.int64)]]
            found.append(self.numbers(before[len(fixed) :], first.indices))
        else:
            found.append(self.words(before, first.words)[first.indices])
        for part in others:
            made = self.numbers("", part.indices) if part.words is None else self.words("", part.words)[part.indices]
            found.append(made)
        return found

    def words(self, before: str, words: tuple[str, ...]) -> Pieces:
        """The pieces `before + word` of all words."""
        key = before, words
        if key not in self._words:
            self._words[key] = self._keep([self.behind(before + word) for word in words])
        return self._words[key]

    def numbers(self, space: str, numbers: np.ndarray) -> Pieces:
        """The pieces of numbers behind a letter or comma, each with or without a space in front.

        There are too many to tokenise all; those that were not met before are.
        """
        known = self._numbers.get(space, Pieces(np.empty(0, np.int64), np.empty(0, np.int64)))
        size = 10 ** len(str(numbers.max()))
        if len(known.start) < size:
            more = np.full(size - len(known.start), -1, dtype=np.int64)
            known = Pieces(np.concatenate([known.start, more]), np.concatenate([known.length, more]))
            self._numbers[space] = known
        missing = np.unique(numbers[known.start[numbers] < 0])
        for begin in range(0, len(missing), NUMBERS_AT_ONCE):
            some = missing[begin : begin + NUMBERS_AT_ONCE]
            known.start[some], known.length[some] = self._keep(self._encoded(space, some))
        return known[numbers]

    def _encoded(self, space: str, numbers: np.ndarray) -> list[np.ndarray]:
        """Many numbers with few calls: a comma is one token, and none of those of a number."""
        (comma,) = self.behind(",")
        ids = np.array(self.behind("".join(f",{space}{number}" for number in numbers.tolist())), dtype=np.int64)
        found = np.split(ids, np.flatnonzero(ids == comma))[1:]
        assert len(found) == len(numbers)
        return [tokens[1:] for tokens in found]

    def _keep(self, pieces: Sequence[Sequence[int] | np.ndarray]) -> Pieces:
        length = np.array([len(piece) for piece in pieces], dtype=np.int64)
        start = self._used + np.cumsum(length) - length
        end = self._used + int(length.sum())
        if end > len(self.tokens):
            grown = np.empty(2 * end, dtype=np.int64)
            grown[: self._used] = self.tokens[: self._used]
            self.tokens = grown
        self.tokens[self._used : end] = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
        self._used = end
        return Pieces(start, length)


class _Joined:
    """A table whose pieces are known."""

    def __init__(self, made_by: JoinedPieces, rows: Pieces, around: Frame, letter: str) -> None:
        self.made_by, self.rows, self.around, self.letter = made_by, rows, around, letter
        self.ends = rows.length.sum(axis=1).cumsum()

    def problem(self, opening: str, num_rows: int, closing: str) -> np.ndarray:
        # Before the first row there is no row's end: its first piece, up to the key's letter, belongs to the opening.
        start = self.rows.start[:num_rows].ravel()[1:]
        length = self.rows.length[:num_rows].ravel()[1:]
        around = self.around
        ends = np.cumsum(length)
        places = np.repeat(start - ends + length, length)
        places += np.arange(len(places))
        opened = self.made_by.encode(opening + around.head + around.before[0] + self.letter)
        closed = self.made_by.behind(around.after + around.tail + closing)
        return np.concatenate([np.array(opened, np.int64), self.made_by.tokens[places], np.array(closed, np.int64)])


def _can_be_cut(backend: Any) -> bool:
    """Whether pieces that end as the module's header says have the tokens that they have in the text."""
    rule = cut_rule(backend)
    description = json.loads(backend.to_str())
    for token in description["added_tokens"]:
        forms = {token["content"]}
        if token["normalized"] and backend.normalizer is not None:
            forms.add(backend.normalizer.normalize_str(token["content"]).replace("▁", " "))
        if any(re.fullmatch(f"{WRITTEN}*", form) and "  " not in form for form in forms):
            return False  # it would be cut out of the text before anything else
    if rule is None or rule.place is not SPACE_ASCII:
        return rule is not None and rule.place is SPACE_OR_LINE
    model = description["model"]
    characters = [chr(code) for code in range(128) if re.match(WRITTEN, chr(code)) and chr(code) != " "]
    # Unknown characters side by side become one token, so there may be none.
    single = {f"<0x{ord(c):02X}>" if model["byte_fallback"] and c not in model["vocab"] else c for c in characters}
    if not single <= model["vocab"].keys():
        return False
    return not any(JOINED.match(left[-1] + right[0]) for left, right in model["merges"])
