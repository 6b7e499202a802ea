"""Tokenise a corpus into a store, once.

    corpus -> shards -> parts (datamodules/prepare/parts.py) -> store (datamodules/prepare/merging.py)

Cost: one pass over the text, and one over the tokens where there is more than one shard. A killed preparation goes on
with its finished parts. The alternative, tokenising on the fly, would make sequence i depend on everything before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.conversations.policy import ConversationPolicy
from datamodules.corpora.base import Corpus, QuarantinedRow, shards_of
from datamodules.corpora.filters import filters_of, ready_filters
from datamodules.corpora.quarantine import check_quarantined, check_reused, max_quarantined
from datamodules.prepare.engine import Engine
from datamodules.prepare.local_engine import LocalEngine
from datamodules.prepare.merging import merge_parts, num_rows, quarantined_rows
from datamodules.prepare.parts import Job, Part, Unit, open_parts
from datamodules.prepare.progress import Progress
from datamodules.tokens.policy import TokenPolicy
from datamodules.tokens.store import TokenStore, locked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenPolicy", "prepare_store", "store_key", "tokenizer_fingerprint"]

FORMAT_VERSION = 2
ABANDONED_SECONDS = 14 * 24 * 3600
"""Parts of a preparation that nobody went on with for this long are removed by the next one."""


def store_key(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy | ConversationPolicy) -> str:
    """The name of the store of this corpus: it changes with the content, the filters, the tokenizer and the policy."""
    return _key(corpus.fingerprint(), corpus, tokenizer, policy)


def _key(
    content: str, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy | ConversationPolicy
) -> str:
    parts = [FORMAT_VERSION, content, filters_of(corpus).fingerprint(), tokenizer_fingerprint(tokenizer)]
    return hashlib.sha256(json.dumps([*parts, policy.describe(tokenizer)], sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the ids of a text; a truncation or padding that some earlier call left behind does not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else _lasting(backend.to_str())
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(f"{content} {special}".encode()).hexdigest()


@lru_cache(maxsize=2)  # a run asks several times for each source, and it takes long where a vocabulary is large
def _lasting(content: str) -> str:
    return json.dumps({**json.loads(content), "truncation": None, "padding": None}, sort_keys=True)


def prepare_store(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    policy: TokenPolicy | ConversationPolicy,
    cache_dir: Path,
    name: str,
    progress: bool = True,
    engine: Engine | None = None,
) -> TokenStore:
    """Open the store of a corpus, making it first if it is not there.

    Args:
        corpus: What to read.
        tokenizer: Of transformers.
        policy: What stands around each document; or for a corpus of conversations, how they are written.
        cache_dir: Where stores are kept; sources of the same text share one.
        name: What messages call the corpus.
        progress: Show a progress bar.
        engine: Who does the work; None does it here, on all cores. The store is the same.

    Raises:
        ValueError: The corpus cannot be read, is empty or changes meanwhile, too many of its rows cannot be used, or
            the policy names a token that the tokenizer lacks.
    """
    policy.check(tokenizer)
    content = corpus.fingerprint()
    folder = cache_dir / _key(content, corpus, tokenizer, policy)
    parts = folder.with_name(f"{folder.name}.parts")
    if folder.is_dir() and not parts.exists():
        return _opened(folder, corpus)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():  # no other process made it while we waited
            _remove_abandoned(cache_dir, but=parts)
            units = [Unit(index, shard) for index, shard in enumerate(shards_of(corpus))]
            filters, strict = ready_filters(corpus), max_quarantined(corpus) == 0
            job = Job(parts, tokenizer, policy, filters, strict)
            try:
                open_parts(parts, units)
                with Progress(units, description=f"tokenise {name}", shown=progress) as bar:
                    (engine or LocalEngine()).run(job, units, progress=bar)
                _finish(folder, corpus, job, units, content=content, name=name)
            except OSError:  # where a file system has no locks, another process may have finished and cleared away
                if not folder.is_dir():
                    raise
        shutil.rmtree(parts, ignore_errors=True)
    return _opened(folder, corpus)


def _opened(folder: Path, corpus: Corpus) -> TokenStore:
    """A store that is there, unless more of its rows were set aside than the corpus allows by now."""
    store = TokenStore(folder)
    check_reused(corpus, store.meta)
    return store


def _finish(folder: Path, corpus: Corpus, job: Job, units: Sequence[Unit], *, content: str, name: str) -> None:
    """Judge the parts, and make the store of them."""
    if corpus.fingerprint() != content:
        shutil.rmtree(job.folder)
        raise ValueError(f"corpus {name} changed while it was read; run the same command again when it is complete")
    parts = [Part(job.part(unit)) for unit in units]
    set_aside = [QuarantinedRow(**row) for row in quarantined_rows(parts)]
    check_quarantined(corpus, set_aside, num_documents=num_rows(parts) - len(set_aside))
    meta = {"format": FORMAT_VERSION, "corpus": content, "policy": job.policy.describe(job.tokenizer)}
    meta["max_quarantined"] = max_quarantined(corpus)
    try:
        merge_parts(folder, parts, job=job, meta=meta)
    except ValueError:  # there is no text
        shutil.rmtree(job.folder)
        raise


def _remove_abandoned(cache_dir: Path, *, but: Path) -> None:
    """Remove parts that were left behind when their corpus or recipe changed; they can be large."""
    for parts in cache_dir.glob("*.parts"):
        if parts != but and time.time() - parts.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(parts, ignore_errors=True)
