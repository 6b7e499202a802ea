"""One row of a run taken apart for people: which tokens of which document stand where.

A plan says which pieces of documents go into a row, and an augmentation may then cut, interleave and repeat them and
put tokens of its own between. A span is what lies in the row in one go: consecutive tokens of one piece, with the same
document id and positions that count on.

    pieces   a: 0 1 2 3 4 5    b: 0 1 2
    row      a0 a1 a2 | K | b0 b1 b2 | K | a3 a4 a5 | padding
    spans    [a, 0-2]  [-] [b, 0-2]  [-] [a, 3-5]   [padding]

Rows that hold their pieces one after the other are read off exactly. Others are traced by comparing tokens: at each
place the longest stretch of a piece that continues there, where pieces that were read so far go on, or anywhere, if
eight tokens agree. Cost: O(T log T) for the index, and a comparison a span. It is for the eye: a stretch that stands
twice in the documents may be shown as the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT

# T tokens of the row

GRAM = 8
"""Tokens that must agree before a piece is looked for in its middle."""
MOST_CANDIDATES = 64
INSERTED, PADDING = -1, -2
"""In the place of a piece's number."""


class Piece(NamedTuple):
    """A piece of a document that the plan puts into the row."""

    source: str
    document: int
    start: int  # of the document's tokens
    tokens: np.ndarray  # [n] integers
    document_length: int


class Span(NamedTuple):
    """Tokens `start` to `end` of the row that belong together."""

    start: int
    end: int
    piece: int  # number of the piece, INSERTED or PADDING
    offset: int  # in the document, of the first token; 0 where there is no piece


@dataclass(frozen=True, eq=False)
class ShownRow:
    """A row and what is known about it.

    Attributes:
        number: i.
        num_rows: Rows of the run.
        rows_per_step: Rows of one optimizer step, over all micro-batches and ranks.
        pieces: What the plan puts into the row.
        input_ids, labels, position_ids, document_ids: [T] int64, as in `Batch`.
        context_length: Tokens of the longest sequence at the row's step; the row's own length where nothing is cut.
        loss_weights: [T] float32, what the loss of a label counts for; None where all count the same.
        window: Tokens of the fragments of the row that attention stays within; None for the whole row.
    """

    number: int
    num_rows: int
    rows_per_step: int
    pieces: Sequence[Piece]
    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    document_ids: np.ndarray
    context_length: int
    loss_weights: np.ndarray | None = None
    window: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def step(self) -> int:
        """The optimizer step that learns from the row; the first is 0."""
        return self.number // self.rows_per_step

    @property
    def is_padding(self) -> np.ndarray:
        """[T] bool"""
        return self.document_ids == PADDING_DOCUMENT

    @property
    def groups(self) -> np.ndarray:
        """Who sees whom: tokens of one group see the earlier ones of it. [T] int64, PADDING_DOCUMENT for padding"""
        if self.window is None:
            return self.document_ids
        fragments = np.arange(len(self)) // self.window
        _, dense = np.unique(self.document_ids, return_inverse=True)
        return np.where(self.is_padding, PADDING_DOCUMENT, dense * (fragments[-1] + 1) + fragments)

    @property
    def learned(self) -> np.ndarray:
        """Tokens that the loss asks for: their label counts, and a token of their document stands before. [T] bool"""
        found = self.labels != IGNORE_INDEX
        found[1:] &= self.document_ids[1:] == self.document_ids[:-1]
        found[:1] = False
        return found

    def documents(self) -> dict[tuple[str, int], int]:
        """(source, document) -> its number in the row."""
        return {name: k for k, name in enumerate(dict.fromkeys((p.source, p.document) for p in self.pieces))}


def spans_of(row: ShownRow) -> list[Span]:
    """What lies in the row in one go, in order; together the whole row."""
    if not len(row):
        return []
    origin, piece = np.full(len(row), INSERTED), np.full(len(row), INSERTED)  # [T], places in the pieces end to end
    used = ~row.is_padding
    origin[used] = origins(row.input_ids[used], [p.tokens for p in row.pieces])
    lengths = [len(p.tokens) for p in row.pieces]
    found = origin != INSERTED
    piece[found] = np.repeat(np.arange(len(lengths)), lengths)[origin[found]]
    piece[~used] = PADDING
    begins = (np.diff(piece) != 0) | (np.diff(row.document_ids) != 0) | (np.diff(row.position_ids) != 1)
    begins |= found[1:] & (np.diff(origin) != 1)
    starts = [0, *(np.flatnonzero(begins) + 1).tolist()]
    first = np.cumsum([0, *lengths])
    spans = []
    for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
        number = int(piece[start])
        offset = row.pieces[number].start + int(origin[start] - first[number]) if number >= 0 else 0
        spans.append(Span(start, end, number, offset))
    return spans


def origins(input_ids: np.ndarray, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Where each token comes from: its place in the pieces laid end to end, or INSERTED. [T] int64

    Args:
        input_ids: [T] integers, without padding.
        pieces: Tokens of each, [n] integers.
    """
    stream = np.concatenate([np.zeros(0, np.int64), *pieces])
    if np.array_equal(stream, input_ids):
        return np.arange(len(stream))
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    ends = np.cumsum(lengths)
    goes_on = ends - lengths  # where each piece is read on
    index, first, last = _index(stream, input_ids, ends)
    found = np.full(len(input_ids), INSERTED)
    place = 0
    while place < len(input_ids):
        unread = goes_on[goes_on < ends]
        near = unread[stream[unread] == input_ids[place]].tolist()
        far = index[first[place] : min(last[place], first[place] + MOST_CANDIDATES)].tolist()
        length, start = 0, 0
        for candidate in [*near, *far]:
            end = int(ends[np.searchsorted(ends, candidate, side="right")])
            same = _agreeing(input_ids[place:], stream[candidate:end])
            if same > length and (same > 1 or candidate + same == end):  # one token alone may agree by chance
                length, start = same, candidate
        if length:
            piece = int(np.searchsorted(ends, start, side="right"))
            skipped = start - int(goes_on[piece])
            earlier = slice(max(0, place - skipped), place)
            if 0 < skipped <= place and np.array_equal(input_ids[earlier], stream[start - skipped : start]):
                # The stretch before happened to go on with the very tokens that this one begins with.
                if (before := int(found[earlier][0])) != INSERTED:
                    goes_on[np.searchsorted(ends, before, side="right")] = before
                found[earlier] = np.arange(start - skipped, start)
            found[place : place + length] = np.arange(start, start + length)
            goes_on[piece] = start + length
        place += max(length, 1)
    return found


def _index(stream: np.ndarray, input_ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds eight tokens of the row in the pieces.

    Returns:
        Places in the stream by the hash of what begins there; and for each place of the row where the places of its
        own hash begin and end among them, [T] each.
    """
    places = np.arange(max(0, len(stream) - GRAM + 1))
    places = places[ends[np.searchsorted(ends, places, side="right")] - places >= GRAM]  # within one piece
    hashes = _hashes(stream)[places]
    order = np.argsort(hashes, kind="stable")
    asked = _hashes(input_ids)
    first, last = (np.searchsorted(hashes[order], asked, side=side) for side in ("left", "right"))
    at_the_end = np.zeros(len(input_ids) - len(asked), np.int64)  # too few tokens are left there
    return places[order], np.concatenate([first, at_the_end]), np.concatenate([last, at_the_end])


def _hashes(tokens: np.ndarray) -> np.ndarray:
    """A number for each run of GRAM tokens, [T - GRAM + 1] uint64; what it finds is compared anyway."""
    count = max(0, len(tokens) - GRAM + 1)
    mixed = np.zeros(count, np.uint64)
    for k in range(GRAM):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + tokens[k : k + count].astype(np.uint64)
    return mixed


def _agreeing(left: np.ndarray, right: np.ndarray) -> int:
    """How many tokens agree from the beginning on; looks at about twice as many."""
    count = min(len(left), len(right))
    begin, end = 0, 32
    while begin < count:
        end = min(end, count)
        if len(differing := np.flatnonzero(left[begin:end] != right[begin:end])):
            return begin + int(differing[0])
        begin, end = end, 2 * end
    return count
