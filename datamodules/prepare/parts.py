"""One part of a preparation: a shard of the corpus, read, filtered, tokenised and left on disk, finished or not there.

    <cache_dir>/<key>.parts/
        plan.json           the shards; where they are others, everything begins anew
        000017/             appears when it is finished
            tokens.bin      the documents' tokens, with BOS, EOS and separator as the policy says
            loss_mask.bin   a byte a token, 1 where it is a label; only of conversations
            documents.bin   one DOCUMENT a document
            report.json     drops, quarantined rows
            quarantine.jsonl

Whatever reads the shards, one process or a cluster, makes these; so a killed preparation goes on with those that are
finished, and the store that is put together of them (`merging.py`) does not show who made them.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from datamodules.conversations.policy import ConversationPolicy
from datamodules.conversations.samples import ConversationSamples
from datamodules.corpora.base import Quarantine, QuarantinedRow, Shard
from datamodules.corpora.filters import DocumentFilters, Drops
from datamodules.prepare.encoding import TextEncoder
from datamodules.prepare.samples import Sample, SampleMaker, TextSamples
from datamodules.tokens.policy import TokenPolicy
from datamodules.tokens.store import LOSS_MASK, token_dtype, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOCUMENT = np.dtype([("num_tokens", "<i8"), ("num_characters", "<i8"), ("hash", "<u8", (2,))])
"""`num_tokens` counts all of the document's tokens in `tokens.bin`; `hash` is `content_hash` of its text."""

Advance = Callable[[int, int], None]
"""Called with tokens and characters that were made and read since the last call."""


class Unit(NamedTuple):
    """What one process makes alone: the part of a shard."""

    index: int
    shard: Shard


@dataclass(frozen=True)
class Job:
    """All that it takes to make a part of it, on any machine that sees `folder`.

    Args:
        folder: Where the parts go.
        tokenizer: Of transformers.
        policy: What stands around each document, or how conversations are written.
        filters: What is dropped.
        strict: A row that cannot be used is an error.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    policy: TokenPolicy | ConversationPolicy
    filters: DocumentFilters
    strict: bool

    def part(self, unit: Unit) -> Path:
        """Where a unit's part is once it is finished."""
        return self.folder / f"{unit.index:06d}"

    def maker(self, *, num_threads: int | None) -> SampleMaker:
        """What makes samples of this job's documents, on so many threads; None takes one for each core."""
        if isinstance(self.policy, ConversationPolicy):
            return ConversationSamples(self.tokenizer, self.policy, num_threads=num_threads)
        return TextSamples(self.tokenizer, self.policy, num_threads=num_threads)

    @cached_property
    def num_tokens_around(self) -> int:
        """Tokens of a text that are not its own: BOS, EOS and the separator; a conversation's all are."""
        if isinstance(self.policy, ConversationPolicy):
            return 0
        encoder = TextEncoder(self.tokenizer, num_threads=1)
        separators = [self.policy.separator] if self.policy.separator else []
        return sum(map(len, self.policy.around(self.tokenizer))) + sum(len(ids) for ids in encoder.encode(separators))

    @cached_property
    def vocab_size(self) -> int:
        """Above every id; not len(tokenizer), as ids may have gaps."""
        return max(self.tokenizer.get_vocab().values()) + 1


def make_part(job: Job, unit: Unit, *, maker: SampleMaker, advance: Advance | None = None) -> None:
    """Make the part of a unit, unless it is there.

    Raises:
        ValueError: A shard cannot be read, or a row with `job.strict`; the message names the place.
    """
    if job.part(unit).is_dir():
        return
    try:
        # A name of its own: on a cluster, a worker that was taken for dead may still be writing the same part.
        with whole_folder(job.part(unit), suffix=f"{uuid.uuid4().hex}.partial") as folder:
            _write_part(folder, job, unit, maker, advance or (lambda tokens, characters: None))
    except OSError:
        if not job.part(unit).is_dir():  # someone else was first
            raise


def _write_part(folder: Path, job: Job, unit: Unit, maker: SampleMaker, advance: Advance) -> None:
    quarantine, drops = Quarantine(strict=job.strict), Drops()
    documents = unit.shard.documents(quarantine)
    num_further = 0
    with ExitStack() as files:
        tokens = files.enter_context((folder / "tokens.bin").open("wb", buffering=1 << 20))
        rows = files.enter_context((folder / "documents.bin").open("wb"))
        masks = files.enter_context((folder / LOSS_MASK).open("wb", buffering=1 << 20)) if maker.masked else None
        for sample in maker.samples(documents, filters=job.filters, drops=drops, quarantine=quarantine):
            _write_sample(sample, tokens, rows, masks, vocab_size=job.vocab_size)
            num_further += sample.further
            advance(len(sample.ids), sample.num_characters)
    _write_report(folder, drops, quarantine.rows, num_further - quarantine.num_joined)


def _write_sample(sample: Sample, tokens: BinaryIO, rows: BinaryIO, masks: BinaryIO | None, *, vocab_size: int) -> None:
    ids, mask = sample.ids, sample.mask
    assert len(ids) == 0 or ids.max() < vocab_size, "a token id would wrap around"
    tokens.write(ids.astype(token_dtype(vocab_size), copy=False).tobytes())
    row = np.array((len(ids), sample.num_characters, np.frombuffer(sample.hash, "<u8")), dtype=DOCUMENT)
    rows.write(row.tobytes())
    if masks is not None:
        assert mask is not None
        assert len(mask) == len(ids), "a sample's mask is not as long as its tokens"
        masks.write(mask.astype(np.uint8).tobytes())


def _write_report(folder: Path, drops: Drops, quarantined: Sequence[QuarantinedRow], num_further: int) -> None:
    with (folder / "quarantine.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as handle:
        handle.writelines(json.dumps(row._asdict()) + "\n" for row in quarantined)
    report = {"drops": drops.as_dict(), "num_quarantined": len(quarantined), "num_further": num_further}
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


@dataclass(frozen=True)
class Part:
    """A finished part."""

    folder: Path

    @cached_property
    def documents(self) -> np.ndarray:
        """[num_documents] DOCUMENT, memory-mapped."""
        file = self.folder / "documents.bin"
        return np.memmap(file, dtype=DOCUMENT, mode="r") if file.stat().st_size else np.empty(0, DOCUMENT)

    @cached_property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))

    @property
    def drops(self) -> Drops:
        return Drops.from_dict(self.report["drops"])

    @property
    def num_quarantined(self) -> int:
        return int(self.report["num_quarantined"])

    @property
    def num_read(self) -> int:
        """Rows that are in the part: a document may have several samples, and be of several rows."""
        return len(self.documents) - int(self.report.get("num_further", 0))


def open_parts(folder: Path, units: Sequence[Unit]) -> None:
    """Make the folder of the parts ready: what another plan or a killed attempt left there goes."""
    plan = json.dumps([unit.shard.name for unit in units])
    file = folder / "plan.json"
    if folder.is_dir() and (not file.exists() or file.read_text(encoding="utf-8") != plan):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for partial in folder.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    if not file.exists():
        beside = file.with_name("plan.json.new")
        beside.write_text(plan, encoding="utf-8")
        beside.replace(file)
