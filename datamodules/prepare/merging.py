"""Finished parts to a token store, in the order of the corpus.

What needs the whole corpus happens here: of documents with the same text the first is kept, and rows that could not be
used are weighed against all rows. Tokens and masks are copied in runs of kept documents, so the cost is that of copying
a file; a single part whose documents are all kept is not even copied. Memory: a byte a document, and to find
duplicates, 32 bytes a document.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datamodules.conversations.policy import ConversationPolicy
from datamodules.corpora.filters import DUPLICATE, EMPTY, Dropped, Drops
from datamodules.prepare.parts import Job, Part
from datamodules.tokens.store import LOSS_MASK, NpyWriter, TokenStore, token_dtype, whole_folder, write_meta

FIRST_ROWS = 20
"""Quarantined rows that `meta.json` holds; `quarantine.jsonl` holds all."""

COPIED_BYTES = 64 << 20
ROWS_AT_ONCE = 1 << 20


def merge_parts(folder: Path, parts: Sequence[Part], *, job: Job, meta: dict[str, Any]) -> TokenStore:
    """Write the store of finished parts.

    Args:
        folder: Its place; must not exist.
        parts: In the order of the corpus.
        job: What they were made for.
        meta: Written into `meta.json` beside counts and report.

    Raises:
        ValueError: No document is left.
    """
    dtype = token_dtype(job.vocab_size)
    drops = Drops()
    for part in parts:
        drops.merge(part.drops)
    keep = _kept(parts, job, drops)
    meta = {**meta, **_report(parts, drops)}
    if not any(mask.any() for mask in keep):
        raise ValueError(f"the corpus of {folder} holds no text ({meta}); check corpus.sources")
    with whole_folder(folder) as partial:
        _put_together(partial / "tokens.bin", parts, keep, dtype.itemsize)
        if isinstance(job.policy, ConversationPolicy):
            _put_together(partial / LOSS_MASK, parts, keep, 1)
        num_documents, num_tokens = _write_index(partial, parts, keep)
        if meta["quarantined"]["count"]:
            with (partial / "quarantine.jsonl").open("wb") as handle:
                for part in parts:
                    handle.write((part.folder / "quarantine.jsonl").read_bytes())
        write_meta(partial, meta, dtype=dtype, num_documents=num_documents, num_tokens=num_tokens)
    return TokenStore(folder)


def num_rows(parts: Sequence[Part]) -> int:
    """Rows that were read: documents that were tokenised, dropped before, or set aside."""
    return sum(part.num_read + part.drops.documents + part.num_quarantined for part in parts)


def quarantined_rows(parts: Sequence[Part]) -> Iterator[dict[str, str]]:
    """Place and reason of every row that could not be used, in order."""
    for part in parts:
        with (part.folder / "quarantine.jsonl").open(encoding="utf-8") as handle:
            yield from map(json.loads, handle)


def _report(parts: Sequence[Part], drops: Drops) -> dict[str, Any]:
    return {
        "num_rows": num_rows(parts),
        "num_empty_documents": drops.dropped.get(EMPTY, Dropped()).documents,
        "drops": drops.as_dict(),
        "quarantined": {
            "count": sum(part.num_quarantined for part in parts),
            "first": list(itertools.islice(quarantined_rows(parts), FIRST_ROWS)),
        },
    }


def _kept(parts: Sequence[Part], job: Job, drops: Drops) -> list[np.ndarray]:
    """A mask [num_documents] for each part; what it leaves out is counted in `drops`."""
    keep = [np.ones(len(part.documents), dtype=bool) for part in parts]
    if job.filters.min_tokens:
        around = job.num_tokens_around
        for part, mask in zip(parts, keep, strict=True):
            short = part.documents["num_tokens"] - around < job.filters.min_tokens
            _drop(part, mask, short, job.filters.too_short, drops)
    if job.filters.drop_duplicates:
        again = _duplicates(parts, keep)
        for part, mask, repeated in zip(parts, keep, again, strict=True):
            _drop(part, mask, repeated, DUPLICATE, drops)
    return keep


def _drop(part: Part, mask: np.ndarray, dropped: np.ndarray, reason: str, drops: Drops) -> None:
    mask &= ~dropped
    if dropped.any():
        documents = part.documents[dropped]
        tokens, characters = int(documents["num_tokens"].sum()), int(documents["num_characters"].sum())
        drops.merge(Drops({reason: Dropped(len(documents), characters, tokens)}))


def _duplicates(parts: Sequence[Part], keep: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each part, which kept documents have the text of an earlier kept one."""
    sizes = [int(mask.sum()) for mask in keep]
    hashes = np.empty((sum(sizes), 2), dtype=np.uint64)
    for part, mask, end, size in zip(parts, keep, itertools.accumulate(sizes), sizes, strict=True):
        hashes[end - size : end] = part.documents["hash"][mask]
    repeated = repeats(hashes)
    found = []
    for mask, end, size in zip(keep, itertools.accumulate(sizes), sizes, strict=True):
        whole = np.zeros(len(mask), dtype=bool)
        whole[mask] = repeated[end - size : end]
        found.append(whole)
    return found


def repeats(hashes: np.ndarray) -> np.ndarray:
    """Which rows of [n, 2] stood before, [n] bool; by sorting one half, and both where the halves agree."""
    order = np.argsort(hashes[:, 0], kind="stable")
    first = hashes[order, 0]
    equal = np.zeros(len(order), dtype=bool)
    equal[1:] = first[1:] == first[:-1]
    candidates = equal.copy()
    candidates[:-1] |= equal[1:]
    some = np.sort(order[candidates])
    rows = hashes[some]
    by_both = np.lexsort((rows[:, 1], rows[:, 0]))  # stable: of equal rows the first stays the first
    rows = rows[by_both]
    again = np.zeros(len(hashes), dtype=bool)
    again[some[by_both[1:]]] = (rows[1:] == rows[:-1]).all(axis=1)
    return again


def _put_together(file: Path, parts: Sequence[Part], keep: Sequence[np.ndarray], token_bytes: int) -> None:
    """Write what the parts hold, under the same name, of the documents that are kept."""
    if len(parts) == 1 and keep[0].all():
        _link(parts[0].folder / file.name, file)
        return
    with file.open("wb") as handle:
        for part, mask in zip(parts, keep, strict=True):
            _copy_tokens(part, mask, file.name, handle, token_bytes)


def _copy_tokens(part: Part, mask: np.ndarray, name: str, handle: BinaryIO, token_bytes: int) -> None:
    ends = np.cumsum(part.documents["num_tokens"]) * token_bytes
    with (part.folder / name).open("rb") as source:
        for start, end in _runs(mask):
            source.seek(int(ends[start - 1]) if start else 0)
            left = int(ends[end - 1]) - source.tell()
            while left:
                block = source.read(min(left, COPIED_BYTES))
                assert block, "a part is shorter than it says"
                handle.write(block)
                left -= len(block)


def _runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of every run of kept documents."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    yield from ((int(start), int(end)) for start, end in edges.reshape(-1, 2))


def _write_index(folder: Path, parts: Sequence[Part], keep: Sequence[np.ndarray]) -> tuple[int, int]:
    end = 0
    with (
        NpyWriter(folder / "offsets.npy", np.int64) as offsets,
        NpyWriter(folder / "hashes.npy", np.uint8, (16,)) as hashes,
    ):
        offsets.append(np.zeros(1))
        for part, mask in zip(parts, keep, strict=True):
            for start in range(0, len(mask), ROWS_AT_ONCE):
                rows = part.documents[start : start + ROWS_AT_ONCE][mask[start : start + ROWS_AT_ONCE]]
                ends = end + np.cumsum(rows["num_tokens"])
                end = int(ends[-1]) if len(ends) else end
                offsets.append(ends)
                hashes.append(np.ascontiguousarray(rows["hash"]).view(np.uint8).reshape(-1, 16))
    return hashes.num_rows, end


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        shutil.copyfile(source, target)
