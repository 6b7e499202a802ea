"""Tokenise a corpus into a store, once.

Cost: one pass; texts go to the tokenizers library in batches of about a megabyte (`encode_batch_fast`, which skips the
offsets that `encode_batch` and transformers' `__call__` compute and throw away). The alternative, tokenising on the
fly, would make sequence i depend on everything before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.corpora.base import Corpus
from datamodules.tokens.store import TokenStore, locked, write_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARACTERS = 1_000_000
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TokenPolicy:
    """What stands around each document.

    Args:
        prepend_bos: Start every document with the tokenizer's BOS token.
        append_eos: End every document with the tokenizer's EOS token.
        separator: Text in front of every document, as OpenChatKit's "\\n".
    """

    prepend_bos: bool = False
    append_eos: bool = True
    separator: str = ""


def store_key(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy) -> str:
    """The name of the store of this corpus: it changes with the content, the tokenizer and the policy."""
    parts = [FORMAT_VERSION, corpus.fingerprint(), tokenizer_fingerprint(tokenizer), asdict(policy)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the ids of a text; a truncation or padding that some earlier call left behind does not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:
        content |= {"truncation": None, "padding": None}
    content = json.dumps(content, sort_keys=True)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(f"{content} {special}".encode()).hexdigest()


def prepare_store(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    policy: TokenPolicy,
    cache_dir: Path,
    name: str,
    progress: bool = True,
) -> TokenStore:
    """Open the store of a corpus, making it first if it is not there.

    Raises:
        ValueError: The corpus cannot be read or is empty, or the policy names a token that the tokenizer lacks.
    """
    _check_policy(policy, tokenizer)
    folder = cache_dir / store_key(corpus, tokenizer, policy)  # sources of the same text share it
    if folder.is_dir():
        return TokenStore(folder)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():  # another process made it while we waited
            return TokenStore(folder)
        meta = {"corpus": corpus.fingerprint(), "policy": asdict(policy), "num_empty_documents": 0}
        documents = _tokenised(_not_empty(corpus.texts(), meta), tokenizer, policy)
        if progress:
            documents = _with_progress(documents, f"tokenise {name}")
        vocab_size = max(tokenizer.get_vocab().values()) + 1  # not len(tokenizer): ids may have gaps
        return write_store(folder, documents, vocab_size=vocab_size, meta=meta)


def _check_policy(policy: TokenPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
    for wanted, token, key in (
        (policy.prepend_bos, tokenizer.bos_token_id, "prepend_bos"),
        (policy.append_eos, tokenizer.eos_token_id, "append_eos"),
    ):
        if wanted and token is None:
            raise ValueError(f"data.token_policy.{key}=true, but the tokenizer has no such token; set it to false")


def _not_empty(texts: Iterable[str], meta: dict[str, Any]) -> Iterator[str]:
    """The texts with more in them than whitespace; `meta` counts the others."""
    for text in texts:
        if text.strip():
            yield text
        else:
            meta["num_empty_documents"] += 1


def _tokenised(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy) -> Iterator[np.ndarray]:
    head = [tokenizer.bos_token_id] if policy.prepend_bos else []
    tail = [tokenizer.eos_token_id] if policy.append_eos else []
    for batch in _batches(texts):
        for ids in _encode([policy.separator + text for text in batch], tokenizer):
            yield np.asarray([*head, *ids, *tail])


def _encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # a tokenizer.json may bring its own, and transformers leaves the last call's behind
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _with_progress(documents: Iterable[np.ndarray], description: str) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    with tqdm(desc=description, unit="tok", unit_scale=True) as bar:
        for ids in documents:
            yield ids
            bar.update(len(ids))
