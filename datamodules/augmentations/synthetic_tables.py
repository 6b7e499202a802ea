"""Synthetic tables (SynL): a row becomes one long table with a question, and only the answer is learned.

    documents     d d d d d d | e e e e e e e e e e e e e e e           as packing put them into the row
    input_ids     t t t t t t t t t t t t t t t q q q a a . d d         table, question, answer, end of the document
    loss_mask     0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 0 0
    document_ids  0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1         with a document mask

The table is as large as the row has room for: 96 percent of it from 4K tokens on, less in shorter rows, where one line
more counts. What stays free holds the beginning of the row's documents, not learned, so that the row is as long as
without. The rest of the documents is not seen, and counted (`num_pushed_out`): to add tables to a mixture without
taking from other sources, use the corpus `SyntheticTablesCorpus`.

Cost: rows of 128K tokens are made at 6 million tokens a second and core while the tokenizer meets most numbers for the
first time, and at 15 million later; short rows cost about 1.5 ms each. Their tokens are put together of the tokens of
cells (`table_tokens.py`), equal to those of the text. A tokenizer of which it is not known that its texts can be cut at
cells is given the whole text, and then makes less than a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from datamodules.augmentations.base import TrainingSequence
from datamodules.augmentations.chunks import check_probability, joined
from datamodules.augmentations.knot_tokens import TextEncoder
from datamodules.augmentations.row_facts import make_document_ids, make_position_ids
from datamodules.augmentations.table_tokens import Measured, TableTokens, table_tokens
from datamodules.tasks.table_formats import FORMATS, Format
from datamodules.tasks.table_questions import FAMILIES, Family
from datamodules.tasks.tables import (
    MIN_CHARACTERS,
    SAMPLE_ROWS,
    check_choices,
    columns_for,
    draft_problem,
    rows_for,
)
from datamodules.tokens.policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION_TOKENS = 330
"""Kept free for question and answer at first; in short rows as much as they turn out to need."""

MIN_ROWS = 2
TARGET_FILL = 0.99
"""Of the row is aimed at, so that most tables fit at the first attempt; `GOOD_FILL` is not improved any more."""

GOOD_FILL = 0.97
ROUNDS = 5
ATTEMPTS = 16


@dataclass(frozen=True)
class SyntheticTables:
    """Replaces a share of the rows by table problems.

    Args:
        probability: Share of the rows.
        formats: Of markdown, csv and json.
        families: Of retrieval, chain_of_thought and global.
        token_policy: What stands around a problem, as around a document.
        document_mask: As in packing: whether the rest of a row sees its table, and the documents of the other rows one
            another.
        reset_positions: As in packing.

    Raises:
        ValueError: A setting is not in its range.

    Reference:
        LongSkywork, arXiv:2406.00605, whose body was not read. Known of its SynL, second-hand: tables of 2K to 100K
        tokens; retrieval, chain-of-thought and global tasks; mixed into a long SFT stage. All else is our design:
        columns, formats, wording, ratios, and a table that is always as large as the row.
    """

    probability: float
    formats: Sequence[Format] = FORMATS
    families: Sequence[Family] = FAMILIES
    token_policy: TokenPolicy = field(default_factory=TokenPolicy)
    document_mask: bool = True
    reset_positions: bool = False
    encoder: _ProblemEncoder | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        check_choices(self.formats, FORMATS, "augmentation.formats")
        check_choices(self.families, FAMILIES, "augmentation.families")

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> SyntheticTables:
        """The same with a tokenizer, which a call needs; it pickles.

        Args:
            tokenizer: Made the tokens of the documents.
            vocab_size: Rows of the model's embedding; no token is added, so it is not used.
        """
        policy, special = self.token_policy, cast(Any, tokenizer)
        made = replace(self)
        encoder = _ProblemEncoder(
            encode=TextEncoder.of(tokenizer),
            tables=table_tokens(tokenizer),
            separator=policy.separator,
            before=(special.bos_token_id,) if policy.prepend_bos else (),
            after=(special.eos_token_id,) if policy.append_eos else (),
        )
        object.__setattr__(made, "encoder", encoder)
        return made

    def __call__(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> TrainingSequence:
        """As in the module's header; see `Augmentation`.

        Raises:
            ValueError: The row has no room for a table.
        """
        if generator.random() >= self.probability:
            return self._packed(documents)
        problem, num_learned = self._problem(max_seqlen, generator)
        rest = joined(list(documents))[: max_seqlen - len(problem)]
        row = self._packed([problem, rest] if len(rest) else [problem])
        loss_mask = np.zeros(len(row.input_ids), dtype=bool)
        loss_mask[len(problem) - num_learned : len(problem)] = True
        return row._replace(loss_mask=loss_mask)

    def num_pushed_out(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> int:
        """How many tokens of the documents have no place beside the table, at the same call with the same generator."""
        if generator.random() >= self.probability:
            return 0
        problem, _ = self._problem(max_seqlen, generator)
        return max(0, sum(map(len, documents)) - (max_seqlen - len(problem)))

    def _packed(self, documents: Sequence[np.ndarray]) -> TrainingSequence:
        """The documents one after the other, all learned."""
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        return TrainingSequence(
            input_ids=joined(list(documents)),
            loss_mask=np.ones(lengths.sum(), dtype=bool),
            document_ids=make_document_ids(lengths, document_mask=self.document_mask),
            position_ids=make_position_ids(lengths, reset_positions=self.reset_positions),
        )

    def _problem(self, max_seqlen: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
        """Tokens of a problem that fills a row, [n] int64, and how many of its last ones are learned."""
        assert self.encoder is not None, "with_tokenizer comes first"
        for _ in range(ATTEMPTS):  # more than one only where hardly the smallest table has room
            found = self._fitted(int(generator.integers(1 << 63)), max_seqlen)
            if found is not None:
                return found
        raise ValueError(
            f"max_seqlen={max_seqlen} has no room for a table and its question ({MIN_CHARACTERS} characters); raise"
            " context_length or set augmentation.probability=0"
        )

    def _fitted(self, seed: int, max_seqlen: int) -> tuple[np.ndarray, int] | None:
        """The largest problem of a seed that was found to fit; None where not even a small one does."""
        assert self.encoder is not None, "with_tokenizer comes first"
        draft = draft_problem(
            (seed,), max_columns=columns_for(max_seqlen), formats=self.formats, families=self.families
        )
        sample = self.encoder.tables.measure(draft.sample, draft.format, draft.sample)
        most_rows = rows_for(max_seqlen, row_size=sample.ends[-1] / SAMPLE_ROWS)
        table = draft.draw(most_rows)
        rows = self.encoder.tables.measure(table, draft.format, draft.sample)
        best, room = None, max_seqlen - QUESTION_TOKENS
        for _ in range(ROUNDS):
            num_rows = max(MIN_ROWS, int(np.searchsorted(rows.ends, room, side="right")))
            question = draft.ask(table.head(num_rows))
            tokens = self.encoder(rows, num_rows, draft.around(question), question.answer)
            if len(tokens) <= max_seqlen and (best is None or len(tokens) > len(best[0])):
                best = tokens, self.encoder.num_learned(question.answer)
                if len(tokens) >= GOOD_FILL * max_seqlen:
                    break
            elif num_rows == MIN_ROWS:
                break
            room += int(TARGET_FILL * max_seqlen) - len(tokens)
        return best


@dataclass(frozen=True)
class _ProblemEncoder:
    """A problem's tokens."""

    encode: TextEncoder
    tables: TableTokens
    separator: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __call__(self, rows: Measured, num_rows: int, around: tuple[str, str], answer: str) -> np.ndarray:
        """[n] int64"""
        opening, closing = around
        tokens = rows.problem(self.separator + opening, num_rows, f"{closing} {answer}")
        return np.concatenate([np.array(self.before, np.int64), tokens, np.array(self.after, np.int64)])

    def num_learned(self, answer: str) -> int:
        """Tokens of the answer and what ends the document.

        The text is tokenised as a whole, as a reader's would be; the answer's share is found from the prompt's end.
        """
        return len(self.encode(f"Answer: {answer}")) - len(self.encode("Answer:")) + len(self.after)
