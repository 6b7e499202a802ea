r"""Few-shot packing: as many whole examples of one task as fit into a row.

    documents   D D | a a | b b b | c c | d d        a task's definition, then its examples; 11 tokens
    row of 11   D D . c c . b b b                    shuffled, a separator in front of each; `a` and `d` have no room

Each example is predicted from the definition and all the examples before it, so the row is one document and all its
tokens are learned. Separators take room: what they push out is dropped and counted (`num_pushed_out`; the run's ledger
tells its share), and a row may end up to an example short of `max_seqlen`. Cost: one pass over the row.

Rows have to hold one task each, the definition first: the packing plan and the source see to that. From raw records of
many tasks the corpus `FewShotCorpus` makes documents that are such rows already, and drops nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from datamodules.augmentations.base import TrainingSequence
from datamodules.augmentations.chunks import as_one_document, check_probability, joined
from datamodules.augmentations.knot_tokens import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FewShotPacking:
    r"""Shuffles the examples of a row and joins those that fit.

    Args:
        probability: Share of the rows; the others stay as they are, as one document too.
        separator: Text in front of each example. With a token that ends every document (`data.token_policy.append_eos`)
            it comes after that one.
        definition_first: The row's first document stays in front; otherwise it is an example like the others.

    Raises:
        ValueError: A setting is not in its range.

    Reference:
        Our design. Together trained on few-shot records of NI and P3 (Long-Data-Collections) that were already joined,
        by code that was not published; learning all tokens, prompts included, is what OpenChatKit does.
    """

    probability: float = 1.0
    separator: str = "\n\n"
    definition_first: bool = True
    separator_ids: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_probability(self.probability)

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> FewShotPacking:
        """The same with the separator's tokens, which a call needs; it pickles.

        Args:
            tokenizer: Made the tokens of the documents.
            vocab_size: Rows of the model's embedding; no token is added, so it is not used.
        """
        made = replace(self)
        ids = tuple(TextEncoder.of(tokenizer)(self.separator)) if self.separator else ()
        object.__setattr__(made, "separator_ids", ids)
        return made

    def __call__(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> TrainingSequence:
        """As in the module's header; where no example has room for its separator, the row stays as it is."""
        row = list(documents)
        kept = self._kept(row, max_seqlen, generator)
        input_ids = joined(self._separated([row[i] for i in kept]) if kept else row)[:max_seqlen]
        return as_one_document(input_ids, np.ones(len(input_ids), dtype=bool))

    def num_pushed_out(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> int:
        """How many tokens of the documents do not fit the row any more, at the same call with the same generator."""
        kept = self._kept(documents, max_seqlen, generator)
        held = sum(len(documents[i]) for i in kept) if kept else max_seqlen
        return max(0, sum(map(len, documents)) - held)

    def _kept(self, row: Sequence[np.ndarray], max_seqlen: int, generator: np.random.Generator) -> list[int]:
        """Which documents the new row holds, in its order; none where the row stays as it is."""
        if generator.random() >= self.probability:
            return []
        assert self.separator_ids is not None, "with_tokenizer comes first"
        kept = list(range(len(row)))[: int(self.definition_first)]
        num_before = len(kept)
        room = max_seqlen - sum(len(row[i]) for i in kept)
        for i in (num_before + generator.permutation(len(row) - num_before)).tolist():
            needed = len(row[i]) + (len(self.separator_ids) if kept else 0)  # none in front of what begins the row
            if needed <= room:
                kept.append(i)
                room -= needed
        return kept if len(kept) > num_before else []

    def _separated(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The pieces with a separator in front of each but the first."""
        separator = np.array(self.separator_ids, dtype=np.int64)
        return [part for piece in pieces for part in (separator, piece)][1:]
