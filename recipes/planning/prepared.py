"""What only prepared data says: how many steps epochs take, how full rows are, and how long documents are.

It is asked where every token store of the run is there already; nothing is read or tokenised for it.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from recipes.judging import value_of

if TYPE_CHECKING:
    from datamodules.base import PackedDataModule


class PreparedRun(NamedTuple):
    """A run whose rows are planned.

    Attributes:
        num_steps: Optimizer steps.
        num_tokens: Of the run, padding not among them.
        rows_per_step: Rows of a step over all ranks, some of which may be empty.
        longest_row: Tokens.
        seen: `flops.pairs` of the documents of the run, as attention sees them.
        stored_bytes: Of the token stores.
        stored_tokens: In them.
    """

    num_steps: int
    num_tokens: int
    rows_per_step: int
    longest_row: int
    seen: float
    stored_bytes: int
    stored_tokens: int


def prepared_run(config: DictConfig) -> PreparedRun | None:
    """The planned rows of a run; None where its stores are not all there."""
    if not _may_be_prepared(config):
        return None
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not on this disk is not prepared
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return _planned(config)
        except (ValueError, OSError, ImportError):  # a plan of full rows is still one; train says what is wrong
            return None


def _may_be_prepared(config: DictConfig) -> bool:
    """What can be seen without an import: there are stores, and a tokenizer on this disk."""
    cache = Path(str(value_of(config, "cache_dir")))
    if not cache.is_dir() or next(cache.glob("*/meta.json"), None) is None:
        return False
    name = value_of(config, "model.tokenizer.name_or_path")
    return name is None or Path(str(name)).expanduser().is_dir()


def _planned(config: DictConfig) -> PreparedRun | None:
    from datamodules.tokens.tokenise import store_key
    from recipes.build import build_data

    data = build_data(config)
    data.validation = None
    for corpus in data.sources.values():
        if not (data.cache_dir / store_key(corpus, data.tokenizer, data.token_policy) / "meta.json").is_file():  # type: ignore[arg-type]
            return None
    data.prepare_data()
    data.setup()
    assert data.rows is not None
    plan = data.rows.plan
    stores = {data.prepare_store(name).folder for name in data.sources}
    files = [file for folder in stores for file in folder.iterdir() if file.is_file()]
    return PreparedRun(
        num_steps=data.num_steps,
        num_tokens=int(plan.num_tokens),
        rows_per_step=data.sequences_per_step,
        longest_row=int(plan.row_tokens.max(initial=1)),
        seen=_seen(data),
        stored_bytes=sum(file.stat().st_size for file in files),
        stored_tokens=sum(data.prepare_store(name).num_tokens for name in data.sources),
    )


def _seen(data: PackedDataModule) -> float:
    """`flops.pairs` of what attention sees of the run's rows."""
    import numpy as np

    assert data.rows is not None
    plan, rows = data.rows.plan, data.rows
    masked = data.packing.document_mask and data.augmentation is None
    lengths: Any = np.asarray(plan.lengths if masked else plan.row_tokens, dtype=np.float64)
    if rows.cut or rows.window:
        limit = np.repeat(rows.context_lengths, data.sequences_per_step).astype(np.float64)  # of each row
        limit = np.repeat(limit, np.diff(plan.offsets)) if masked else limit
        whole, rest = np.divmod(lengths, limit)
        return float((whole * limit * (limit + 1) + rest * (rest + 1)).sum())
    return float((lengths * (lengths + 1)).sum())
