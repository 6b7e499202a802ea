"""What a run puts on a disk."""

from __future__ import annotations

from typing import NamedTuple

from recipes.planning.prepared import PreparedRun
from recipes.planning.reading import Run

RAW_BYTES = 4.2
"""A token of English text, uncompressed. Our choice; 3 (code, Chinese) to 5 are seen."""


class Disk(NamedTuple):
    """Bytes by purpose.

    Attributes:
        raw: Text that the run's tokens are read from, each read once; None where their number is not known.
        tokens: Token stores: of the data that is there, or that the run's tokens take, each read once.
        checkpoint: One checkpoint.
        checkpoints: Those that are kept, and one more while it is written.
        export: The exported model.
    """

    raw: float | None
    tokens: float | None
    checkpoint: float
    checkpoints: float
    export: float


def disk_of(run: Run, prepared: PreparedRun | None, *, steps: int | None, tokens: int | None) -> Disk:
    """What a run puts on a disk.

    Args:
        run: The stage.
        prepared: What its data says, where it is prepared.
        steps: Of the run; None where not known.
        tokens: Of the run; None where not known.
    """
    job = run.job
    width = token_bytes(job.model.vocab_size) + (1 if run.labels_kept else 0)
    if prepared is not None:
        raw, stored = RAW_BYTES * prepared.stored_tokens, float(prepared.stored_bytes)
    else:
        raw, stored = (None, None) if tokens is None else (RAW_BYTES * tokens, float(width * tokens))
    checkpoint = 4.0 * job.trained + job.moments(adapter=True) + job.moments(adapter=False)
    written = 1 if steps is None else -(-steps // run.checkpoint_every)
    kept = written if run.keep_checkpoints < 0 else min(written, run.keep_checkpoints + 1)
    return Disk(raw, stored, checkpoint, kept * checkpoint, float(run.export_bytes * job.model.num_parameters))


def token_bytes(vocab_size: int) -> int:
    """Of a token in a store (datamodules/tokens/store.py)."""
    return 2 if vocab_size <= 1 << 16 else 4
