"""One row of a run as lines of text: its place in the run, its spans in a table, and the words at their edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from datamodules.batch import IGNORE_INDEX
from recipes.showing.ink import Ink, printable
from recipes.showing.row import INSERTED, PADDING, ShownRow, Span

Decode = Callable[[Sequence[int]], str]

EDGE = 12
"""Tokens shown at either edge of a span."""
FIRST, LAST = 32, 16
"""Spans shown of a row that has more of them."""
HEADER = ("#", "row", "source", "document", "its tokens", "tokens", "positions", "id", "learned")
TO_THE_LEFT = ("source",)


def row_lines(row: ShownRow, spans: Sequence[Span], *, decode: Decode, ink: Ink, every_span: bool = False) -> list[str]:
    """What a person wants to see of a row.

    Args:
        row: The row.
        spans: What lies in it, from `spans_of`.
        decode: Token ids to text.
        ink: Writes documents and masked tokens.
        every_span: Print all, not the first and last of many.
    """
    if not len(row):
        return [_place(row), "no tokens: its step needs fewer rows than others do, and this one costs nothing"]
    return [*_facts(row, spans, ink), "", *_table(row, spans, decode=decode, ink=ink, every_span=every_span)]


def _facts(row: ShownRow, spans: Sequence[Span], ink: Ink) -> list[str]:
    num_padding, num_inserted = (_tokens_of(spans, kind) for kind in (PADDING, INSERTED))
    lines = [
        _place(row),
        f"{len(row):,} tokens: {_number(len(row.pieces), 'piece')} of {_number(len(row.documents()), 'document')}"
        f" in {_number(sum(span.piece >= 0 for span in spans), 'span')}, {num_inserted:,} inserted,"
        f" {num_padding:,} of padding; {int(row.learned.sum()):,} are learned",
        ", ".join(f"{printable(source)}: {_number(count, 'token')}" for source, count in _shares(row, spans).items()),
        _attention(row),
    ]
    if row.window is not None:
        lines.append(f"attention stays within fragments of {row.window:,} tokens at this step")
    elif row.context_length < len(row):
        lines.append(f"sequences are at most {row.context_length:,} tokens long at this step")
    if (masked := (row.labels == IGNORE_INDEX) & ~row.is_padding).any():
        lines.append(f"{_number(int(masked.sum()), 'token')} {ink.masked('so')}: seen, but not learned")
    if row.loss_weights is not None and row.learned.any():
        lightest, heaviest = (f"{weigh(row.loss_weights[row.learned]):.3g}" for weigh in (np.min, np.max))
        lines.append(f"labels weigh {lightest}{'' if lightest == heaviest else f' to {heaviest}'} in the loss")
    return list(filter(None, lines))


def _place(row: ShownRow) -> str:
    first = row.step * row.rows_per_step
    last_step = (row.num_rows - 1) // row.rows_per_step
    return (
        f"row {row.number:,} of 0-{row.num_rows - 1:,}, in optimizer step {row.step:,} of 0-{last_step:,}"
        f" with the rows {_range(first, first + row.rows_per_step)}"
    )


def _attention(row: ShownRow) -> str:
    groups = len(np.unique(row.groups[~row.is_padding]))
    if groups <= 1:
        return "every token sees all earlier ones"
    return f"tokens see the earlier ones of their own id, of which there are {groups:,}"


def _shares(row: ShownRow, spans: Sequence[Span]) -> dict[str, int]:
    """Source -> its tokens in the row, most first."""
    counts: dict[str, int] = {}
    for span in spans:
        if span.piece >= 0:
            source = row.pieces[span.piece].source
            counts[source] = counts.get(source, 0) + span.end - span.start
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _table(row: ShownRow, spans: Sequence[Span], *, decode: Decode, ink: Ink, every_span: bool) -> list[str]:
    learned, numbers = row.learned, row.documents()
    shown = list(range(len(spans)))
    left_out = [] if every_span or len(spans) <= FIRST + LAST else shown[FIRST:-LAST]
    cells = {k: _cells(row, spans[k], k, learned) for k in shown if k not in set(left_out)}
    widths = [max(map(len, column)) for column in zip(HEADER, *cells.values(), strict=True)]
    lines = [ink.faint(_joined(HEADER, widths))]
    for k in shown:
        if k in cells:
            span = spans[k]
            piece = row.pieces[span.piece] if span.piece >= 0 else None
            number = numbers[piece.source, piece.document] if piece else None
            lines.append(ink.document(_joined(cells[k], widths), number))
            if span.piece != PADDING:
                lines.append(f"    {_edges(row, span, decode, ink, number)}")
        elif k == left_out[0]:
            tokens = spans[left_out[-1]].end - spans[k].start
            lines.append(f"    … {len(left_out):,} spans of {tokens:,} tokens; spans=all shows them")
    return lines


def _cells(row: ShownRow, span: Span, number: int, learned: np.ndarray) -> tuple[str, ...]:
    count, here = span.end - span.start, slice(span.start, span.end)
    if span.piece >= 0:
        piece = row.pieces[span.piece]
        source, document = printable(piece.source), f"{piece.document:,}"
        tokens = f"{_range(span.offset, span.offset + count)} of {piece.document_length:,}"
    else:
        source, document, tokens = ("(padding)" if span.piece == PADDING else "(inserted)"), "", ""
    position = int(row.position_ids[span.start])
    group = "" if span.piece == PADDING else f"{int(row.groups[span.start])}"
    return (
        str(number),
        _range(span.start, span.end),
        source,
        document,
        tokens,
        f"{count:,}",
        _range(position, position + count),
        group,
        f"{int(learned[here].sum()):,}",
    )


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if name in TO_THE_LEFT else cell.rjust(width)
        for name, cell, width in zip(HEADER, cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def _edges(row: ShownRow, span: Span, decode: Decode, ink: Ink, number: int | None) -> str:
    """The first and the last words of a span, or all of a short one."""
    if span.end - span.start <= 2 * EDGE:
        return _quoted(row, span.start, span.end, decode, ink, number)
    ends = ((span.start, span.start + EDGE), (span.end - EDGE, span.end))
    return " … ".join(_quoted(row, start, end, decode, ink, number) for start, end in ends)


def _quoted(row: ShownRow, start: int, end: int, decode: Decode, ink: Ink, number: int | None) -> str:
    masked = row.labels[start:end] == IGNORE_INDEX
    cuts = [start, *(np.flatnonzero(np.diff(masked)) + start + 1).tolist(), end]
    parts = []
    for begin, stop in pairwise(cuts):
        text = ink.document(printable(decode(row.input_ids[begin:stop].tolist())), number)
        parts.append(ink.masked(text) if masked[begin - start] else text)
    return f'"{"".join(parts)}"'


def _tokens_of(spans: Sequence[Span], kind: int) -> int:
    return sum(span.end - span.start for span in spans if span.piece == kind)


def _range(start: int, end: int) -> str:
    """The first and the last of start … end - 1."""
    return f"{start:,}-{end - 1:,}" if end - start > 1 else f"{start:,}"


def _number(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
