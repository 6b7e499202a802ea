"""How much of a corpus may be set aside before that is a fault of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.corpora.base import Corpus, Quarantine, QuarantinedRow, shards_of


def max_quarantined(corpus: Corpus) -> float:
    """The largest share of its rows that may be set aside, 0..1; 0 for corpora that do not say."""
    return getattr(corpus, "max_quarantined", 0.0)


def quarantine_of(corpus: Corpus) -> Quarantine:
    """An empty quarantine for one shard; strict where no row may be set aside."""
    return Quarantine(strict=max_quarantined(corpus) == 0)


def check_quarantined(corpus: Corpus, rows: Sequence[QuarantinedRow], *, num_documents: int) -> None:
    """Stop where too many rows of a corpus were set aside.

    Args:
        corpus: Says how many are too many.
        rows: All that were set aside, over all shards.
        num_documents: Documents that were read besides, dropped ones among them.

    Raises:
        ValueError: Too many; the message names the first ones.
    """
    _check(corpus, rows, num_rows=len(rows) + num_documents, num_quarantined=len(rows))


def check_reused(corpus: Corpus, meta: Mapping[str, Any]) -> None:
    """Stop where too many rows for this corpus were set aside when its store was made, perhaps with a higher limit.

    Raising the limit makes no store anew, as it changes none of the documents that there are.

    Args:
        corpus: Says how many are too many.
        meta: Of the store: counts, the first rows that were set aside, and `max_quarantined` as it was.

    Raises:
        ValueError: Too many; the message names the first ones.
    """
    count = meta.get("quarantined", {}).get("count", 0)
    if not count or max_quarantined(corpus) >= meta.get("max_quarantined", 1.0):
        return
    first = [QuarantinedRow(**row) for row in meta["quarantined"]["first"]]
    _check(corpus, first, num_rows=meta["num_rows"], num_quarantined=count)
    shards_of(corpus)  # whole files that cannot be read count by their size, which is known there


def _check(corpus: Corpus, rows: Sequence[QuarantinedRow], *, num_rows: int, num_quarantined: int) -> None:
    share = num_quarantined / max(1, num_rows)
    first = "; ".join(f"{row.place}: {row.reason}" for row in rows[:2])
    if num_quarantined and num_quarantined == num_rows:
        raise ValueError(f"not one of {num_rows} rows can be used ({first}); check corpus.sources.*")
    if share > max_quarantined(corpus):
        raise ValueError(
            f"{num_quarantined} of {num_rows} rows ({share:.2%}) cannot be used, above"
            f" max_quarantined={max_quarantined(corpus):g} ({first}); repair them or raise"
            " corpus.sources.*.max_quarantined"
        )
