"""The first rows of a run: what its sources give for a number of tokens, packed and in the mixture's order.

Ten million documents are planned in memory for about one copy of their plan: every array is as narrow as its values
allow, the arrays of the sources are joined only when the last reader takes them apart again, and what is needed for a
moment is made in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from datamodules.mixture import Mixture
from datamodules.packing.best_fit import split
from datamodules.packing.plan import RunPlan, emptied, narrow, source_seed, source_type, take_rows
from datamodules.packing.run_end import CANDIDATES, last_rows
from datamodules.packing.stream import DocumentStream

if TYPE_CHECKING:
    from datamodules.packing.run import RunRequest

# S sources


def first_budget(request: RunRequest, streams: list[DocumentStream]) -> int:
    """About how many tokens the run has; too few cost a second round, too many memory."""
    ratios, num_rows = request.mixture.given(1.0), max(request.num_rows, 1)
    tokens = [
        request.packing.tokens_for(num_rows, stream.lengths)
        for stream, ratio in zip(streams, ratios, strict=True)
        if ratio > 0
    ]
    if not request.packing.one_piece_a_row:
        return max(tokens)
    # A token of each source brings another share of a row. The lengths that are drawn are not quite the average.
    rows_per_token = (ratios[ratios > 0] * num_rows / np.maximum(tokens, 1)).sum()
    return math.ceil((num_rows + 8 * math.isqrt(num_rows)) / rows_per_token)


def _drawn(
    request: RunRequest, mixture: Mixture, streams: list[DocumentStream], budget: int
) -> Iterator[tuple[DocumentStream, np.ndarray]]:
    """For each source, its documents among the first so many tokens of the run, and some more."""
    for stream, tokens in zip(streams, mixture.given(budget), strict=True):
        more = request.packing.kept_back
        if request.packing.one_piece_a_row:
            more += (CANDIDATES + 1) * min(request.packing.max_seqlen, int(stream.lengths.max()))
        yield stream, stream.drawn(math.ceil(tokens) + more if tokens else 0)


def by_sequence(request: RunRequest, mixture: Mixture, streams: list[DocumentStream], budget: int) -> RunPlan | None:
    """The rows of a run in which each row is of one source; None where the budget was too small."""
    packing, num_pieces, items = request.packing, [0], []
    documents, starts, ends, sizes, offsets = [], [], [], [], []
    for number, (stream, drawn) in enumerate(_drawn(request, mixture, streams, budget)):
        lengths = stream.lengths[drawn]
        is_all = int(lengths.sum(dtype=np.int64)) == stream.available
        rows = packing.rows(lengths, seed=source_seed(request.seed, number), complete=is_all)
        offsets.append(rows.offsets[:-1] + sum(num_pieces))
        num_pieces.append(len(rows.items))
        documents.append(drawn[rows.items])
        starts.append(narrow(rows.starts))
        ends.append(narrow(rows.ends))
        sizes.append(narrow(rows.num_tokens))
        items.append(rows.items)
        if not packing.one_piece_a_row:
            items.clear()
        del drawn, lengths, rows
    places, times, whole = mixture.places(sizes, seed=request.seed)
    if len(places) < request.num_rows and not math.isinf(whole):
        return None
    if packing.one_piece_a_row and 0 < request.num_rows <= len(places):

        def epoch_end(source: int, row: int) -> int:
            return int(np.searchsorted(items[source], streams[source].epoch_end(int(items[source][row]))))

        places = last_rows(mixture, sizes, places=places, times=times, num_rows=request.num_rows, epoch_end=epoch_end)
    items.clear()
    del times
    places = places[: request.num_rows]
    row_tokens = emptied(sizes)[places]
    if (order := _arranged(request, row_tokens)) is not None:
        places = places[order]
    del row_tokens, order
    offsets.append(np.array([sum(num_pieces)]))
    taken, pieces = take_rows(emptied(offsets), places)
    numbers = np.arange(len(streams), dtype=source_type(len(streams)))
    return RunPlan.of(
        request.names,
        offsets=taken,
        sources=np.repeat(numbers, num_pieces[1:])[pieces],
        documents=emptied(documents)[pieces],
        starts=emptied(starts)[pieces],
        ends=emptied(ends)[pieces],
    )


def by_document(request: RunRequest, mixture: Mixture, streams: list[DocumentStream], budget: int) -> RunPlan | None:
    """The rows of a run in which documents of all sources share rows; None where the budget was too small."""
    documents, starts, sizes = [], [], []
    for stream, drawn in _drawn(request, mixture, streams, budget):
        pieces = split(stream.lengths[drawn], capacity=request.packing.max_seqlen)
        documents.append(drawn[pieces.document])
        starts.append(pieces.start)
        sizes.append(narrow(pieces.end - pieces.start))
        del drawn, pieces
    num_pieces = [len(size) for size in sizes]
    places, _, whole = mixture.places(sizes, seed=request.seed)
    lengths = emptied(sizes)[places]
    is_all = math.isinf(whole)
    rows = request.packing.rows(lengths, seed=request.seed, complete=is_all, num_rows=request.num_rows)
    del lengths
    if len(rows.offsets) - 1 < request.num_rows and not is_all:
        return None
    if (order := _arranged(request, rows.num_tokens)) is not None:
        rows = rows.take(order)
    offsets, items, firsts, lasts = rows
    del rows, order
    places = places[items]  # of each piece in the rows
    del items
    numbers = np.arange(len(streams), dtype=source_type(len(streams)))
    sources, documents = np.repeat(numbers, num_pieces)[places], emptied(documents)[places]
    begins = emptied(starts)[places]
    firsts, lasts = begins + firsts, begins + lasts
    return RunPlan.of(request.names, offsets=offsets, sources=sources, documents=documents, starts=firsts, ends=lasts)


def _arranged(request: RunRequest, row_tokens: np.ndarray) -> np.ndarray | None:
    """The order that the packing gives the rows of a run; None where it leaves them as they are."""
    arranged = getattr(request.packing, "arranged", None)
    return None if arranged is None else arranged(row_tokens, seed=request.seed)
