"""A tokenizer whose token i is one letter, so that text and tokens are the same thing in two alphabets."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

FIRST = 0x100
"""Token i is the letter chr(FIRST + i)."""


def letter_tokenizer(vocab_size: int = 64, *, eos: int | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {chr(FIRST + token): token for token in range(vocab_size)}
    inner = Tokenizer(models.BPE(vocabulary, merges=[]))
    inner.decoder = decoders.Fuse()  # type: ignore[assignment]
    special = {} if eos is None else {"eos_token": chr(FIRST + eos)}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def as_text(token_ids: Sequence[int]) -> str:
    return "".join(chr(FIRST + token) for token in token_ids)
