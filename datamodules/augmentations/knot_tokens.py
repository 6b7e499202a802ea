"""The tokens that Untie the Knots puts in: chunk ids between tags, knots at the cuts, the order of a document's chunks.

    <D> id </D>                    in front of a chunk; the id is six random letters and digits, tokenised as text
    <t1> <h2> <t2> <h3> …          knots: <t1> ends a document's first chunk and <h2> begins its second, and so on
    <S> id <s> id </S>             a document's ids in its order

With chunks of a fixed length there may be any number, and a knot is the chunk's number, from 0, between two tokens:
`<t 0 t>` and `<h 1 h>`.

Ids are ours (section 3.2 of the paper gives none, and the ids in a comment of the code are ordinary tokens of Qwen2):
names of the tokenizer's that the user gives, or rows of the vocabulary that no text reaches. Where such a row had no
name, an exported tokenizer calls it `<|utk:<h2>|>`, by which the next stage finds it; a token `<h2>` or `<s>` would be
cut out of every page of HTML.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.augmentations.free_rows import free_rows
from datamodules.augmentations.token_names import known_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ID_TAGS = ("<D>", "</D>")
BACKTRACING_TAGS = ("<S>", "<s>", "</S>")
NUMBERED_KNOTS = ("<t", "t>", "<h", "h>")

# What an inserted token does to the loss, as flags; a document's own token has none.
INSERTED = 1
NOT_LEARNED = 2  # nobody predicts it
PREDICTS_NOTHING = 4  # the token after it is not learned
BOTH = NOT_LEARNED | PREDICTS_NOTHING


class Piece(NamedTuple):
    """Tokens with the flags of each."""

    tokens: Sequence[int] | np.ndarray
    flags: bytes  # one of each


def exported_name(name: str) -> str:
    """What an exported tokenizer calls an inserted token: something that no text holds."""
    return f"<|utk:{name}|>"


def knot_names(max_chunks: int) -> tuple[str, ...]:
    """What the knots of documents of up to so many chunks are called: <t1> <h2> <t2> <h3> …"""
    return tuple(f"<{kind}>" for cut in range(1, max_chunks) for kind in (f"t{cut}", f"h{cut + 1}"))


@dataclass(frozen=True)
class KnotTokens:
    """The inserted tokens of one tokenizer; pickled to loader workers.

    Args:
        ids: Name, as in the module's header -> token id.
        encode: Text -> token ids.
        max_chunks: Chunks of a document at most, each cut with knots of its own; None where knots are numbers.
    """

    ids: dict[str, int]
    encode: TextEncoder
    max_chunks: int | None

    def tagged(self, chunk_id: list[int]) -> Piece:
        """<D> id </D>"""
        tokens = [self.ids["<D>"], *chunk_id, self.ids["</D>"]]
        return _piece(tokens, [BOTH] + [PREDICTS_NOTHING] * (len(tokens) - 1))

    def head(self, number: int) -> Piece:
        """The knot in front of the chunk of this number, from 0; the first has none."""
        return self._knot("h", number)

    def tail(self, number: int) -> Piece:
        """The knot behind the chunk of this number, from 0; the document's last has none."""
        return self._knot("t", number)

    def order(self, chunk_ids: Sequence[list[int]]) -> Piece:
        """<S> id <s> id </S>"""
        tokens = [self.ids["<S>"]]
        for number, chunk_id in enumerate(chunk_ids):
            tokens += [self.ids["<s>"], *chunk_id] if number else chunk_id
        tokens.append(self.ids["</S>"])
        return _piece(tokens, [NOT_LEARNED] + [0] * (len(tokens) - 2) + [PREDICTS_NOTHING])

    def _knot(self, kind: str, number: int) -> Piece:
        if self.max_chunks is not None:
            return _piece([self.ids[f"<{kind}{number + 1}>"]], [BOTH])
        digits = self.encode(str(number))
        return _piece([self.ids[f"<{kind}"], *digits, self.ids[f"{kind}>"]], [BOTH] + [0] * len(digits) + [BOTH])


def _piece(tokens: list[int], flags: list[int]) -> Piece:
    return Piece(tokens, bytes(flag | INSERTED for flag in flags))


@dataclass(frozen=True)
class TextEncoder:
    """Text -> token ids, without special tokens; a copy, so that no setting of the tokenizer's reaches it."""

    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
        """The encoder of a tokenizer, without truncation and padding."""
        backend = copy.deepcopy(getattr(tokenizer, "backend_tokenizer", None))
        if backend is None:
            return cls(copy.deepcopy(tokenizer))
        backend.no_truncation()
        backend.no_padding()
        return cls(backend)

    def __call__(self, text: str) -> list[int]:
        # One text a call: `encode_batch` would start threads, which do not survive the fork of a loader worker.
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return found if isinstance(found, list) else found.ids


def resolved_ids(
    needed: Sequence[str], names: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int
) -> dict[str, int]:
    """The token id of each inserted token.

    Args:
        needed: What is inserted, in order.
        names: The tokenizer's own names for these, in the same order; None takes those that an export named, and else
            rows that no text reaches.
        tokenizer: Knows the names.
        vocab_size: Rows of the model's embedding.

    Raises:
        ValueError: A name is not one of the tokenizer's, their number is not right, or there are not enough rows.
    """
    if names is None:
        vocabulary = tokenizer.get_vocab()
        exported = {name: vocabulary.get(exported_name(name), vocab_size) for name in needed}
        found = {name: row for name, row in exported.items() if row < vocab_size}
        rows = free_rows(tokenizer, vocab_size=vocab_size) if len(found) < len(needed) else []
        if len(rows) + len(found) < len(needed):
            raise ValueError(
                f"augmentation.special_tokens=null needs {len(needed)} rows that no text reaches"
                f" ({' '.join(needed)}), but the model's vocabulary of {vocab_size} has {len(rows) + len(found)}; list"
                f" {len(needed)} tokens of the tokenizer there"
            )
        missing = [name for name in needed if name not in found]
        found |= dict(zip(missing, rows, strict=False))
        return {name: found[name] for name in needed}
    if len(names) != len(needed):
        given = f"{len(names)} token{'' if len(names) == 1 else 's'}"
        raise ValueError(
            f"augmentation.special_tokens lists {given}, but {len(needed)} are inserted"
            f" ({' '.join(needed)}); list as many, or set it to null"
        )
    ids = known_ids(names, tokenizer, key="special_tokens")
    for name, token in zip(names, ids, strict=True):
        if token >= vocab_size:
            raise ValueError(
                f"augmentation.special_tokens lists {name}, token {token}, which the model's vocabulary of {vocab_size}"
                " has no row for; list another, or set it to null"
            )
    return dict(zip(needed, ids, strict=True))
