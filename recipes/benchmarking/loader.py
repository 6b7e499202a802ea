"""How fast a training loop is handed its batches: token store, plan, rows, collation, and the loader's processes.

The store is written for this into a temporary folder: real text in documents of the lengths of `length_profile`. It is
read from the page cache, so no disk is measured. The clock starts with the first batch, and a consumer that only counts
takes the others. Where the system lets a process choose, everything stays on two cores.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.augmentations.base import Augmentation
from datamodules.base import PackedDataModule
from datamodules.batch import PADDING_DOCUMENT
from datamodules.continued_pretraining import ContinuedPretrainingDataModule
from datamodules.packing.plan import Packing
from datamodules.tokens.store import TokenStore, write_store
from recipes.benchmarking.augment import MAX_SEQLEN, RECIPE, on_disk, text_tokens, with_tokenizer
from recipes.benchmarking.length_profile import length_profile
from recipes.benchmarking.table import markdown_table
from recipes.build import build, build_data, build_tokenizer, quiet
from recipes.compose import compose, options

BAR_TOKENS = 1_000_000
NUM_CORES = 2
WORKERS = (0, 2)
AUGMENTED = ("best_fit", "concat_chunk"), "untie_the_knots"
"""The packing, the first of these that there is, and the augmentation that are measured together."""
HEADER = ("rows", "workers", "rows/s", "tokens/s", "of the bar", "CPU ms a row", "tokens per CPU s")


class Handed(NamedTuple):
    """What a loader handed over."""

    rows: int
    tokens: int  # without padding
    seconds: float
    cpu_seconds: float  # of this process and the loader's


class _Elsewhere:
    """Stands for a corpus whose tokens are there already."""

    def fingerprint(self) -> str:
        return "synthetic"

    def texts(self) -> Iterator[str]:
        raise AssertionError("the token store is there")


class StoredData(ContinuedPretrainingDataModule):
    """The data module over one token store that is there already."""

    store: TokenStore

    def prepare_store(self, name: str) -> TokenStore:
        return self.store


def loader_table(
    *, max_seqlen: int = MAX_SEQLEN, num_tokens: int = 1 << 24, most_rows: int = 400, most_seconds: float = 6.0
) -> str:
    """The table of `python -m recipes.benchmark target=loader`: every packing in conf/packing, and one augmentation.

    Args:
        max_seqlen: Tokens of a row.
        num_tokens: Of the store.
        most_rows: Rows taken from each loader.
        most_seconds: After so many seconds no further row is taken.
    """
    quiet()
    tokenizer = build_tokenizer(compose([f"recipe={RECIPE}"]).config)
    kinds = _kinds(tokenizer, max_seqlen=max_seqlen)
    lines = []
    with tempfile.TemporaryDirectory() as folder, on_cores(NUM_CORES) as cores:
        store = synthetic_store(Path(folder) / "store", text_tokens(tokenizer), num_tokens=num_tokens)
        for name, (packing, augmentation) in kinds.items():
            data = stored_data(store, packing, augmentation=augmentation, num_rows=most_rows + 1)
            data.setup()
            lines += _lines(name, data, most_rows=most_rows, most_seconds=most_seconds)
        facts = f"{store.num_tokens:,} tokens in {len(store):,} documents"
    title = f"Loaders at rows of {max_seqlen:,} tokens, {len(options('packing'))} packings in conf/packing; {facts}"
    return _table(title, lines, cores)


def recipe_loader_table(words: Sequence[str], *, most_rows: int = 400, most_seconds: float = 10.0) -> str:
    """The same of a recipe's own data; what is not tokenised yet is.

    Raises:
        ConfigError: The recipe has faults.
    """
    from recipes.validate import validate

    composed = compose(words)
    validate(composed)
    quiet()
    data = build_data(composed.config)
    data.prepare_data()
    data.setup()
    with on_cores(NUM_CORES) as cores:
        lines = _lines(composed.config.recipe_name, data, most_rows=most_rows, most_seconds=most_seconds)
    return _table(f"Loader of {' '.join(words)} at rows of {data.packing.max_seqlen:,} tokens", lines, cores)


def _kinds(tokenizer: Any, *, max_seqlen: int) -> dict[str, tuple[Packing, Augmentation | None]]:
    """Name -> packing and augmentation: every packing alone, and one with an augmentation."""
    kinds: dict[str, tuple[Packing, Augmentation | None]] = {}
    for name in options("packing"):
        words = [f"recipe={RECIPE}", f"packing={name}", f"context_length={max_seqlen}"]
        kinds[name] = build(compose(words).config.packing), None
    packings, name = AUGMENTED
    if name in options("augmentation"):
        packing = next(packing for packing in packings if packing in kinds)
        kinds[f"{packing}, {name}"] = kinds[packing][0], with_tokenizer(on_disk(name, max_seqlen=max_seqlen), tokenizer)
    return kinds


def synthetic_store(folder: Path, text: np.ndarray, *, num_tokens: int) -> TokenStore:
    """A store of documents of real text, in the lengths of the profile; at least `num_tokens` tokens."""
    lengths = length_profile(max(1, num_tokens // 1000))
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), num_tokens)) + 1]
    starts = np.random.default_rng(0).integers(0, len(text), len(lengths))
    places = (np.arange(start, start + length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True))
    documents = (np.take(text, place, mode="wrap") for place in places)
    return write_store(folder, documents, vocab_size=int(text.max()) + 1, meta={})


def stored_data(
    store: TokenStore, packing: Packing, *, num_rows: int, augmentation: Augmentation | None = None
) -> StoredData:
    """The data module of continued pre-training over a store; a step is a row."""
    data = StoredData(
        sources={"synthetic": _Elsewhere()},
        packing=packing,
        augmentation=augmentation,
        tokens_per_step=packing.max_seqlen,
        micro_batch_size=1,
        max_steps=num_rows,
        cache_dir=str(store.folder.parent),
        seed=0,
    )
    data.store = store
    return data


def handed_over(data: PackedDataModule, *, most_rows: int, most_seconds: float) -> Handed:
    """Take rows from the training loader; the first step starts the clock and does not count."""
    begun_cpu = _cpu_seconds()
    steps = iter(data.train_dataloader())
    next(steps)
    if not data.num_workers:  # else the start of the loader's processes is in it
        begun_cpu = _cpu_seconds()
    rows = tokens = 0
    begun = time.perf_counter()
    for batches in steps:
        for batch in batches:
            rows += len(batch["document_ids"])
            tokens += int((batch["document_ids"] != PADDING_DOCUMENT).sum())
        if rows >= most_rows or time.perf_counter() - begun > most_seconds:
            break
    seconds = time.perf_counter() - begun
    del steps  # ends the loader's processes, whose CPU time is known then
    return Handed(rows, tokens, seconds, _cpu_seconds() - begun_cpu)


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


@contextmanager
def on_cores(number: int) -> Iterator[int]:
    """Keep this process, and those it starts, on so many cores; yields how many it has then."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[-number:]))  # the first ones serve interrupts, and what others pin
    try:
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


def _lines(name: str, data: PackedDataModule, *, most_rows: int, most_seconds: float) -> list[list[str]]:
    lines = []
    for workers in WORKERS:
        data.num_workers = workers
        handed = handed_over(data, most_rows=most_rows, most_seconds=most_seconds)
        rate = handed.tokens / handed.seconds
        cpu = f"{1e3 * handed.cpu_seconds / handed.rows:.2f}", f"{handed.tokens / handed.cpu_seconds:,.0f}"
        lines.append(
            [
                name,
                str(workers),
                f"{handed.rows / handed.seconds:,.1f}",
                f"{rate:,.0f}",
                f"{rate / BAR_TOKENS:.1f} x",
                *cpu,
            ]
        )
    return lines


def _table(title: str, lines: list[list[str]], cores: int) -> str:
    about = (
        f"{title}.\nWall time on {cores} core{'s' if cores > 1 else ''}; bar {BAR_TOKENS:,} tokens/s without padding;"
        " CPU time of all processes, whatever else the machine does.\n"
    )
    return "\n".join([about, markdown_table(HEADER, lines)])
