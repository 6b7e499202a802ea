"""What a packing plan is: for every row of a run, the pieces of documents that fill it, as a few flat arrays.

    offsets    [num_rows + 1]     row i holds the pieces offsets[i] to offsets[i + 1]
    sources    [num_pieces]       which source a piece comes from
    documents  [num_pieces]       which document of that source
    starts     [num_pieces]       its tokens starts to ends
    ends       [num_pieces]

A plan is made once, from document lengths alone, and takes 14 bytes a piece. It is kept beside the token stores and
memory-mapped, so that ranks and loader workers share its pages. The alternative, packing while reading, hides state in
a packer: then resuming means replaying, and another number of workers means another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from datamodules.tokens.store import whole_folder

ARRAYS = ("offsets", "sources", "documents", "starts", "ends")
BLOCK = 1 << 16
"""Arrays of a run are worked on so many entries at a time where that spares a copy of the whole."""

EMPTY_ROW = -1
"""A row that holds nothing, for ranks that have fewer rows of a step than others."""


class Segment(NamedTuple):
    """A piece of one document inside a row: its tokens `start` to `end`."""

    source: str
    document: int
    start: int
    end: int


class PackedRows(NamedTuple):
    """Rows over the documents of one stream; `items` are places in that stream."""

    offsets: np.ndarray  # [num_rows + 1] int64
    items: np.ndarray  # [num_pieces] int32 or int64
    starts: np.ndarray  # [num_pieces] int32 or int64
    ends: np.ndarray  # [num_pieces] int32 or int64

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each row, [num_rows] int64."""
        return sums(self.ends, self.offsets) - sums(self.starts, self.offsets)

    def first(self, num_rows: int) -> PackedRows:
        """The first so many rows, or all."""
        offsets = self.offsets[: num_rows + 1]
        return PackedRows(offsets, *(column[: offsets[-1]] for column in self[1:]))

    def take(self, rows: np.ndarray) -> PackedRows:
        """Some rows, in the order given, [n] integers."""
        offsets, pieces = take_rows(self.offsets, rows)
        return PackedRows(offsets, *(column[pieces] for column in self[1:]))


class Packing(Protocol):
    """A packing policy: how documents fill rows, and what they see of one another there."""

    @property
    def max_seqlen(self) -> int:
        """Tokens of a row."""
        ...

    @property
    def document_mask(self) -> bool:
        """Pieces of different documents in a row do not see one another."""
        ...

    @property
    def reset_positions(self) -> bool:
        """`position_ids` restart at 0 with every piece."""
        ...

    @property
    def one_piece_a_row(self) -> bool:
        """A row never holds two pieces, so that sources cannot share one and `mix_at` makes no difference."""
        ...

    @property
    def kept_back(self) -> int:
        """Tokens of a stream that `rows` may leave out, at most, where the stream goes on."""
        ...

    def rows(self, lengths: np.ndarray, *, seed: int, complete: bool, num_rows: int | None = None) -> PackedRows:
        """Fill rows with documents in the order of their stream; every token of it stands in exactly one row.

        Args:
            lengths: Tokens of each document, [num_documents] integers, all positive.
            seed: Of whatever the policy draws.
            complete: The stream ends here. Otherwise rows that further documents would go into are left out.
            num_rows: The run ends with so many rows, or all that there are: they hold the first documents of the
                stream, and next to none of them is left out. None fills rows with all documents.
        """
        ...

    def tokens_for(self, num_rows: int, lengths: np.ndarray) -> int:
        """About how many tokens fill so many rows, with documents of such lengths."""
        ...


class RunPlan:
    """The rows of a run.

    Args:
        names: The sources; `sources` are places in it.
        offsets, sources, documents, starts, ends: See the module's header.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        offsets: np.ndarray,
        sources: np.ndarray,
        documents: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
    ) -> None:
        self.names = list(names)
        self.offsets, self.sources, self.documents, self.starts, self.ends = offsets, sources, documents, starts, ends
        self.folder: Path | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        if self.folder is not None:  # loader workers open the files themselves instead of receiving their bytes
            return {"folder": self.folder}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state if len(state) > 1 else RunPlan.open(state["folder"]).__dict__)

    def segments(self, i: int) -> list[Segment]:
        """The pieces of row i, in order."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        here = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        fields = zip(self.sources[here], self.documents[here], self.starts[here], self.ends[here], strict=True)
        return [Segment(self.names[source], int(d), int(start), int(end)) for source, d, start, end in fields]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece, [num_pieces] int64."""
        return self.ends.astype(np.int64) - self.starts

    @property
    def row_tokens(self) -> np.ndarray:
        """Tokens of each row, [num_rows] int64."""
        return sums(self.ends, self.offsets) - sums(self.starts, self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of the run."""
        return int(self.ends.sum(dtype=np.int64) - self.starts.sum(dtype=np.int64))

    def last_row(self, source: str) -> int:
        """The last row with a piece of a source; -1 where there is none."""
        pieces = np.flatnonzero(self.sources == self.names.index(source))
        return int(np.searchsorted(self.offsets, pieces[-1], side="right")) - 1 if len(pieces) else -1

    def take(self, rows: np.ndarray) -> RunPlan:
        """The plan of some rows, in the order given, [n] int64."""
        offsets, pieces = take_rows(self.offsets, rows)
        columns = {name: getattr(self, name)[pieces] for name in ARRAYS[1:]}
        return RunPlan(self.names, offsets=offsets, **columns)

    def whole_steps(self, rows_per_step: int) -> RunPlan:
        """The plan with empty rows at its end, so that its last step is as long as the others."""
        missing = -len(self) % rows_per_step
        offsets = np.concatenate([self.offsets, np.full(missing, self.offsets[-1])])
        columns = {name: getattr(self, name) for name in ARRAYS[1:]}
        return RunPlan(self.names, offsets=offsets, **columns) if missing else self

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        *,
        offsets: np.ndarray,
        sources: np.ndarray,
        documents: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
    ) -> RunPlan:
        """A plan with each array as narrow as its values allow."""
        return cls(
            names,
            offsets=offsets.astype(np.int64, copy=False),
            sources=sources.astype(source_type(len(names)), copy=False),
            documents=narrow(documents),
            starts=narrow(starts),
            ends=narrow(ends),
        )

    @classmethod
    def open(cls, folder: Path) -> RunPlan:
        """A plan that `save` wrote, memory-mapped."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        plan = cls(meta["names"], **arrays)
        plan.folder = folder
        return plan

    def save(
        self, folder: Path, *, arrays: Mapping[str, np.ndarray] | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        """Write the plan, and what goes with it, under its final name in one step."""
        with whole_folder(folder) as partial:
            for name, array in {**{name: getattr(self, name) for name in ARRAYS}, **(arrays or {})}.items():
                np.save(partial / f"{name}.npy", array)
            (partial / "meta.json").write_text(json.dumps({"names": self.names, **(meta or {})}), encoding="utf-8")


def joined(parts: list[PackedRows]) -> PackedRows:
    """The rows of several parts, one part after the other; at least one.

    Args:
        parts: A part without a row of its own goes on with the last row of the one before. The list is emptied, so that
            hardly a column is in memory twice.
    """
    before = np.cumsum([0, *(len(part.items) for part in parts)])
    offsets = [part.offsets[:-1] + first for part, first in zip(parts, before, strict=False)]
    columns = [list(column) for column in zip(*(part[1:] for part in parts), strict=True)]
    parts.clear()
    return PackedRows(np.concatenate([*offsets, before[-1:]]), *(emptied(column) for column in columns))


def emptied(arrays: list[np.ndarray]) -> np.ndarray:
    """Several arrays one after the other; the list is emptied, so that nobody else keeps them in memory."""
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    arrays.clear()
    return whole


def blocks(size: int) -> Iterator[slice]:
    """0 to `size` in slices of BLOCK."""
    return (slice(first, min(first + BLOCK, size)) for first in range(0, size, BLOCK))


def narrow(values: np.ndarray) -> np.ndarray:
    """The same numbers in 32 bits where they fit."""
    return values.astype(np.int32, copy=False) if values.max(initial=0) < 1 << 31 else values


def source_type(num_sources: int) -> type:
    """What is wide enough for the number of a source."""
    return np.uint8 if num_sources <= 1 << 8 else np.int32


def sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sum of each group, [num_groups] int64: `values[offsets[i]:offsets[i + 1]]`; groups may be empty."""
    found = np.empty(len(offsets) - 1, dtype=np.int64)
    for block in blocks(len(found)):
        edges = np.asarray(offsets[block.start : block.stop + 1])
        before = np.concatenate([[0], np.cumsum(values[edges[0] : edges[-1]], dtype=np.int64)])
        found[block] = np.diff(before[edges - edges[0]])
    return found


def take_rows(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some groups, in the order given.

    Returns:
        Their offsets, [n + 1] int64, and where each of their members stands now, [num_members] int32 or int64.
    """
    offsets, rows = np.asarray(offsets), np.asarray(rows)
    taken = np.zeros(len(rows) + 1, dtype=np.int64)
    for block in blocks(len(rows)):
        taken[block.start + 1 : block.stop + 1] = offsets[rows[block] + 1] - offsets[rows[block]]
    np.cumsum(taken, out=taken)
    places = np.empty(taken[-1], dtype=np.int32 if offsets[-1] < 1 << 31 else np.int64)
    for block in blocks(len(rows)):
        edges = taken[block.start : block.stop + 1]
        moved = np.repeat(offsets[rows[block]] - edges[:-1], np.diff(edges))
        places[edges[0] : edges[-1]] = np.arange(edges[0], edges[-1]) + moved
    return taken, places


def source_seed(seed: int, number: int) -> int:
    """The seed of a run's source by its number, so that two sources of the same length have different orders."""
    return seed + 7919 * number
