"""Untie the Knots (UtK): documents cut into chunks, the chunks shuffled over the row, and their order told at the end.

    documents  a a a a . | b b . | c c c c
    cut in two a|a a a . | b|b . | c c c c                   c drew one chunk; probability=1, seed 13, max_seqlen=52
    row        <D> F ob V y q </D> b <t1>                    one random id a chunk; <t1> <h2> are the knots of the cut
    learned    -   - -  - - - -    - -
    row        <D> m w A z 4 I </D> a <t1>
    learned    -   - - - - - - -    - -
    row        <D> 9 0 R d y 3 </D> <h2> a a a .
    learned    -   - - - - - - -    -    - + + +
    row        <S> m w A z 4 I <s> 9 0 R d y 3 </S>          backtracing: the ids of a, in a's order
    learned    -   + + + + + + +   + + + + + + +
    row        <D> Z 2 g 0                                   what is put in pushes the tail out: 6 of the 12 tokens
    learned    -   - - - -                                   of the documents are not in the row

To go on after a knot, the model has to look back past other documents for the chunk before; to tell the order, for all
of a document's chunks. So it needs attention over the whole row and positions that run through. The last chunk of the
last document stays last, as packing has usually cut it there. `+` is a token that is learned:

    not learned    <D>, ids behind it, </D>, knots, <S>, and the token after </D>, after a knot and after </S>
    learned        the document's other tokens; ids, <s> and </S> behind <S>

That is the published mask, which marks positions by their label: a position there is learned here as the token one to
its right. Cost: one pass over the row, and per chunk an id to tokenise and a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.augmentations.base import TrainingSequence
from datamodules.augmentations.chunks import as_one_document, check_probability, joined, random_cuts
from datamodules.augmentations.knot_tokens import (
    BACKTRACING_TAGS,
    CHUNK_ID_TAGS,
    INSERTED,
    NOT_LEARNED,
    NUMBERED_KNOTS,
    PREDICTS_NOTHING,
    KnotTokens,
    Piece,
    TextEncoder,
    exported_name,
    knot_names,
    resolved_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLIT_POINTS = ("random", "even")
FOLLOW = ("code", "paper")
CHUNK_ID_CHARACTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", dtype=np.uint8)
CHUNK_ID_LENGTH = 6
MIN_SPLIT_LENGTH = {"code": 1, "paper": 64}


class _Chunk(NamedTuple):
    document: int  # which of the row
    number: int  # which of the document, from 0
    num_chunks: int  # of the document
    tokens: np.ndarray


@dataclass(frozen=True)
class UntieTheKnots:
    """Rearranges the documents of a row; call `with_tokenizer` first.

    Args:
        probability: Share of the rows that are augmented; the others stay as they are.
        chunk_count_probabilities: How likely a document has one chunk, two, three and so on; adds up to 1.
        split_points: `random`, every set of cuts equally likely, or `even`, where the last chunk takes the rest.
        chunk_length: Tokens of a chunk; documents of more than one chunk are then cut after every so many. None cuts
            at `split_points`.
        min_split_length: Tokens of the shortest document that is cut. None: 64 with `follow=paper`, none with `code`. A
            document of fewer tokens than chunks is never cut.
        partial_order: The chunks of a document keep their order in the row.
        chunk_ids: An id stands in front of every chunk of a document that was cut.
        backtracing: A document's ids follow its chunks.
        pin_last_chunk: The last chunk of the last document stays at the end.
        mask_inserted: Leaves out of the loss what the module's header says; False learns every token.
        special_tokens: Names of the tokenizer's for what is inserted, in the order of `inserted_tokens`. None takes
            rows that no text reaches (see `free_rows`).
        follow: Where the paper and its code differ, `code` or `paper`.

            | | code | paper |
            |---|---|---|
            | ids in front of documents that were not cut | no | yes (algorithm 1) |
            | backtracing after | the chunk that comes last in the row | the document's own last chunk |
            | `min_split_length=null` | one token a chunk | 64: there is one, but its value was not published |

            The second is the same while `partial_order` holds.

    Raises:
        ValueError: A setting is not in its range.

    Reference:
        Tian et al., ACL 2025, arXiv:2409.04774, algorithm 1 and appendix B; `denoise_text_multi_hop` in the code,
        rgtjf/Untie-the-Knots at 21736a5. Where the paper contradicts itself, `paper` does as the code: h chunks have
        h - 1 cuts, and the probability is of sequences, not of documents. So it does where the paper says nothing: the
        pinned chunk, the tail that is cut, the backtracing behind a document's EOS. One difference to both: a row that
        is not augmented keeps its documents in order, which the code permutes; chance brought them together already.
        Ours, as not published: 2 and 3 chunks equally likely (these were best, and a mixture of them better still), and
        how the knots of fixed-length chunks are written (see `knot_tokens`).
    """

    probability: float = 0.8
    chunk_count_probabilities: Sequence[float] = (0.0, 0.5, 0.5)
    split_points: str = "random"
    chunk_length: int | None = None
    min_split_length: int | None = None
    partial_order: bool = True
    chunk_ids: bool = True
    backtracing: bool = True
    pin_last_chunk: bool = True
    mask_inserted: bool = True
    special_tokens: Sequence[str] | None = None
    follow: str = "code"
    knot_tokens: KnotTokens | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_probability(self.probability)
        for key, allowed in (("split_points", SPLIT_POINTS), ("follow", FOLLOW)):
            if (value := getattr(self, key)) not in allowed:
                raise ValueError(f"augmentation.{key}={value} is not known; allowed are {', '.join(allowed)}")
        for key in ("chunk_length", "min_split_length"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"augmentation.{key}={value} must be a whole number of at least 1, or null")
        if self.backtracing and not self.chunk_ids:
            raise ValueError(
                "augmentation.backtracing=true tells the order of chunk ids, which augmentation.chunk_ids=false leaves"
                " out; set both to false"
            )
        object.__setattr__(self, "chunk_count_probabilities", _shares(self.chunk_count_probabilities))
        if self.special_tokens is not None:
            object.__setattr__(self, "special_tokens", _names(self.special_tokens))

    @property
    def max_chunks(self) -> int | None:
        """Chunks of a document at most; None with chunks of a fixed length."""
        return None if self.chunk_length is not None else len(self.chunk_count_probabilities)

    @property
    def inserted_tokens(self) -> tuple[str, ...]:
        """What is put in, in the order of `special_tokens`."""
        tags = (CHUNK_ID_TAGS if self.chunk_ids else ()) + (BACKTRACING_TAGS if self.backtracing else ())
        return tags + (NUMBERED_KNOTS if self.max_chunks is None else knot_names(self.max_chunks))

    @property
    def inserted_ids(self) -> dict[str, int]:
        """The token ids of what is put in, by the names that an exported tokenizer gives them."""
        if self.knot_tokens is None:
            raise RuntimeError("call with_tokenizer first, and use what it returns")
        return {exported_name(name): row for name, row in self.knot_tokens.ids.items()}

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> UntieTheKnots:
        """The same with token ids, which a call needs; it pickles.

        Args:
            tokenizer: Made the tokens of the documents.
            vocab_size: Rows of the model's embedding.

        Raises:
            ValueError: A name of `special_tokens` is not one of the tokenizer's, or, without names, the vocabulary has
                too few rows that no text reaches.
        """
        ids = resolved_ids(self.inserted_tokens, self.special_tokens, tokenizer, vocab_size=vocab_size)
        made = replace(self)
        tokens = KnotTokens(ids=ids, encode=TextEncoder.of(tokenizer), max_chunks=self.max_chunks)
        object.__setattr__(made, "knot_tokens", tokens)
        return made

    def __call__(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> TrainingSequence:
        """As in the module's header; see `Augmentation`."""
        tokens, flags = self._row(documents, max_seqlen, generator)
        learned = np.ones(len(tokens), dtype=bool)
        if self.mask_inserted:
            learned = flags & NOT_LEARNED == 0
            learned[1:] &= flags[:-1] & PREDICTS_NOTHING == 0
        return as_one_document(tokens, learned)

    def num_pushed_out(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> int:
        """How many tokens of the documents do not fit the row any more, at the same call with the same generator."""
        _, flags = self._row(documents, max_seqlen, generator)
        return sum(map(len, documents)) - int(np.count_nonzero(flags & INSERTED == 0))

    def _row(
        self, documents: Sequence[np.ndarray], max_seqlen: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and flags of the row, each [T]."""
        whole = [document for document in documents if len(document)]
        if generator.random() >= self.probability or not whole:
            tokens = joined(whole)[:max_seqlen]
            return tokens, np.zeros(len(tokens), dtype=np.uint8)
        chunks = self._chunks(whole, generator)
        order = self._order(chunks, generator)
        pieces, room = [], max_seqlen
        for piece in self._pieces(chunks, order, generator):
            pieces.append(piece)
            room -= len(piece.flags)
            if room <= 0:
                break
        tokens = np.concatenate([piece.tokens for piece in pieces], dtype=np.int64)
        flags = np.frombuffer(b"".join(piece.flags for piece in pieces), dtype=np.uint8)
        return tokens[:max_seqlen], flags[:max_seqlen]

    def _chunks(self, documents: Sequence[np.ndarray], generator: np.random.Generator) -> list[_Chunk]:
        """The chunks of all documents, in the order of documents and within these."""
        shares = np.array(self.chunk_count_probabilities)
        counts = 1 + generator.choice(len(shares), size=len(documents), p=shares / shares.sum())
        chunks = []
        for number, (document, count) in enumerate(zip(documents, counts.tolist(), strict=True)):
            parts = np.split(document, self._cuts(len(document), count, generator))
            chunks += [_Chunk(number, place, len(parts), part) for place, part in enumerate(parts)]
        return chunks

    def _cuts(self, length: int, num_chunks: int, generator: np.random.Generator) -> Sequence[int] | np.ndarray:
        """Where a document is cut; nowhere if it is too short."""
        shortest = self.min_split_length or MIN_SPLIT_LENGTH[self.follow]
        if num_chunks == 1 or length < shortest:
            return []
        if self.chunk_length is not None:
            return range(self.chunk_length, length, self.chunk_length)
        if length < num_chunks:
            return []
        if self.split_points == "even":
            return [length // num_chunks * cut for cut in range(1, num_chunks)]  # the rest goes to the last chunk
        return random_cuts(length, num_chunks, generator=generator)

    def _order(self, chunks: Sequence[_Chunk], generator: np.random.Generator) -> np.ndarray:
        """Which chunk stands at each place of the row, [num_chunks]."""
        order = np.arange(len(chunks))
        num_free = len(chunks) - self.pin_last_chunk
        order[:num_free] = generator.permutation(num_free)
        if self.partial_order:
            documents = np.array([chunk.document for chunk in chunks])
            # The places of each document, from left to right; its chunks follow one another in `chunks`.
            order[np.argsort(documents[order], kind="stable")] = np.arange(len(chunks))
        return order

    def _pieces(self, chunks: Sequence[_Chunk], order: np.ndarray, generator: np.random.Generator) -> Iterator[Piece]:
        """The row from left to right: the chunks and what stands around each."""
        if self.knot_tokens is None:
            raise RuntimeError("call with_tokenizer before the first row, and use what it returns")
        put, texts = self.knot_tokens, _chunk_id_texts(len(chunks), generator)
        chunk_id = cache(lambda index: put.encode(texts[index]))  # only of those that the row still holds
        tellers = self._tellers(chunks, order)
        for index in order.tolist():
            chunk = chunks[index]
            if self.chunk_ids and (chunk.num_chunks > 1 or self.follow == "paper"):
                yield put.tagged(chunk_id(index))
            if chunk.number > 0:
                yield put.head(chunk.number)
            yield Piece(chunk.tokens, bytes(len(chunk.tokens)))
            if chunk.number < chunk.num_chunks - 1:
                yield put.tail(chunk.number)
            if index in tellers:
                first = index - chunk.number
                yield put.order([chunk_id(first + number) for number in range(chunk.num_chunks)])

    def _tellers(self, chunks: Sequence[_Chunk], order: np.ndarray) -> set[int]:
        """The chunks that are followed by the order of their document's ids: one of each document that was cut."""
        if not self.backtracing:
            return set()
        if self.follow == "paper":
            return {index for index, chunk in enumerate(chunks) if 0 < chunk.number == chunk.num_chunks - 1}
        rightmost = {chunks[index].document: index for index in order.tolist() if chunks[index].num_chunks > 1}
        return set(rightmost.values())


def _chunk_id_texts(count: int, generator: np.random.Generator) -> list[str]:
    drawn = CHUNK_ID_CHARACTERS[generator.integers(len(CHUNK_ID_CHARACTERS), size=count * CHUNK_ID_LENGTH)]
    text = drawn.tobytes().decode()
    return [text[start : start + CHUNK_ID_LENGTH] for start in range(0, len(text), CHUNK_ID_LENGTH)]


def _shares(given: Any) -> tuple[float, ...]:
    """The chunk-count distribution, without the zeros at its end."""
    key = "augmentation.chunk_count_probabilities"
    if not _is_list(given, int | float) or not all(0 <= share <= 1 for share in given):
        raise ValueError(
            f"{key}={given} must list numbers from 0 to 1, for one chunk, for two, and so on: [0, 0.5, 0.5]"
        )
    if abs(sum(given) - 1) > 1e-6:
        raise ValueError(f"{key}={list(given)} add up to {sum(given):g}; make them 1")
    highest = max(place for place, share in enumerate(given) if share)
    return tuple(float(share) for share in given[: highest + 1])


def _names(given: Any) -> tuple[str, ...]:
    key = "augmentation.special_tokens"
    if not _is_list(given, str):
        raise ValueError(f"{key}={given} must list names of the tokenizer's tokens, or be null")
    if repeated := [name for place, name in enumerate(given) if name in given[:place]]:
        raise ValueError(f"{key} lists {repeated[0]} twice; name another token")
    return tuple(given)


def _is_list(value: Any, kind: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
    )
