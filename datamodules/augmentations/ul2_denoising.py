"""UL2's denoising on tokens: spans are hidden behind sentinels, and told after the text.

    document       a b c d e f g h i j          rate 0.4 in spans of 2
    hidden               d e       i j
    sequence       [R] a b c <0> f g h <1> <0> d e <1> i j
    learned                                 ^  ^ ^  ^  ^ ^

Documents are cut into segments of at most `segment_length` tokens. Each segment draws one denoiser of the mixture: R
hides little in short spans, X hides much or in long spans, S hides the end of the segment in one span, so that it is a
prefix and what goes on from it. A model learns to look back from an answer to the gap, and over the whole segment.

Inserted tokens make a row longer, so the end of a row that was full gives way to them: 8 % of the tokens under the
paper's mixture (`num_pushed_out` counts them), more where documents are of a few tokens. The segment at the edge is
made shorter and is whole in itself: no answer is ever cut off.

Cost: a few sorts and copies of the row, vectorised over segments. The alternative without new tokens, with sentinels in
words and a dialogue, is `datamodules/corpora/ul2_oscar.py`, which works on text and is tokenised once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from datamodules.augmentations.base import TrainingSequence
from datamodules.augmentations.chunks import check_probability, joined
from datamodules.augmentations.denoiser import Denoiser
from datamodules.augmentations.row_facts import make_document_ids, make_position_ids
from datamodules.augmentations.token_names import known_or_free_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# D documents, S segments, B spans of all segments, n tokens of the documents, T tokens of the sequence

PAPER_MIXTURE = (
    Denoiser("R", rate=0.15, mean_span_length=3),
    Denoiser("R", rate=0.15, mean_span_length=8),
    Denoiser("S", rate=0.25),
    Denoiser("X", rate=0.5, mean_span_length=3),
    Denoiser("X", rate=0.5, mean_span_length=8),
    Denoiser("X", rate=0.15, mean_span_length=64),
    Denoiser("X", rate=0.5, mean_span_length=64),
)
MODES = ("R", "X", "S")
LEARNED = ("answers", "all")


class _Segments(NamedTuple):
    """What becomes of each segment, each field [S] int64."""

    documents: np.ndarray  # which of the row
    lengths: np.ndarray  # tokens taken from it
    hidden: np.ndarray  # how many of these are hidden
    spans: np.ndarray  # in how many spans; 0: the segment stays plain text
    modes: np.ndarray  # id of the token in front; -1: none

    @property
    def sizes(self) -> np.ndarray:
        """Tokens in the sequence: two sentinels a span, and the mode."""
        return self.lengths + 2 * self.spans + (self.modes >= 0)


@dataclass(frozen=True)
class UL2Denoising:
    """A mixture of denoisers with sentinels in T5's manner.

    Spans are those of T5: a segment of n tokens has round(n * rate) hidden ones in round(hidden / mean_span_length)
    spans of at least one token, every partition equally likely, and so have the stretches between them; the first
    stretch is visible and the last one hidden. Segments of fewer than two tokens stay as they are.

    Args:
        denoisers: The mixture: for each of them `mode` (R, X or S), `rate`, `mean_span_length` (null: one span at the
            end) and `weight`; null is the paper's seven.
        segment_length: Tokens of a segment at most; a longer document is cut into nearly equal ones.
        sentinel: Name of the sentinels in the tokenizer, {} standing for their number from 0.
        num_sentinels: How many there are: as many spans a segment can have. Names that the tokenizer does not have
            take rows of the vocabulary that no text reaches.
        mode_tokens: Mode -> name of the token in front of a segment; null puts none there.
        learned: `answers`: the answers alone, with their sentinels. `all`: the visible text as well, but neither modes
            nor the sentinels in the text, since nobody can know where a gap comes. Plain text is always learned.
        probability: Share of the rows that are denoised; the others are left as packing makes them.
        document_mask: Documents of a row do not see one another, as in `packing`.
        reset_positions: Positions begin at 0 in each document of a row, as in `packing`.

    Raises:
        ValueError: A value is out of its range, or a segment can have more spans than there are sentinels.

    Reference:
        Tay et al. 2022, arXiv:2205.05131 (UL2): the mixture (R: mean 3 and 8 at 15 %; S: 25 % at the end; X: mean 3 and
        8 at 50 %, mean 64 at 15 % and 50 %), in equal weights on sequences of 512 tokens; all these are second-hand.
        It draws the lengths of spans around their mean; here they are T5's partition, of the same mean.
        Raffel et al. 2020, arXiv:1910.10683 (T5): how spans are drawn, and 100 sentinels <extra_id_0> and so on. Ours:
        text and answers stand one behind the other for a decoder, the order of T5's input and target; segments of
        long documents; what `learned=all` leaves out; the names of the modes, [R] [X] [S].
    """

    denoisers: Sequence[Denoiser | Mapping[str, object]] | None = None
    segment_length: int = 512
    sentinel: str = "<extra_id_{}>"
    num_sentinels: int = 100
    mode_tokens: Mapping[str, str] | None = field(default_factory=lambda: {mode: f"[{mode}]" for mode in MODES})
    learned: str = "answers"
    probability: float = 1.0
    document_mask: bool = False
    reset_positions: bool = False
    sentinel_ids: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    mode_ids: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)  # of each denoiser

    def __post_init__(self) -> None:
        check_probability(self.probability)
        if self.learned not in LEARNED:
            raise ValueError(f"augmentation.learned={self.learned} is not known; allowed are {', '.join(LEARNED)}")
        if self.segment_length < 2:
            raise ValueError(f"augmentation.segment_length={self.segment_length} must be at least 2, to hide one token")
        if self.sentinel.format(0) == self.sentinel.format(1):
            raise ValueError(f"augmentation.sentinel={self.sentinel} has no {{}} for the number of the sentinel")
        given = PAPER_MIXTURE if self.denoisers is None else self.denoisers
        if not given:
            raise ValueError("augmentation.denoisers is empty; list at least one, or set it to null")
        made = tuple(one if isinstance(one, Denoiser) else Denoiser.of(one) for one in given)
        object.__setattr__(self, "denoisers", made)
        if self.mode_tokens is not None and (missing := {one.mode for one in made} - set(self.mode_tokens)):
            raise ValueError(f"augmentation.mode_tokens has no token for {min(missing)}; name one, or set it to null")
        most = max(int(one.spans(np.arange(self.segment_length + 1)).max()) for one in made)
        if most > self.num_sentinels:
            raise ValueError(
                f"augmentation.num_sentinels={self.num_sentinels} is less than the {most} spans that a segment of"
                f" augmentation.segment_length={self.segment_length} can have; raise the one, lower the other, or"
                " take denoisers of longer spans"
            )

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> UL2Denoising:
        """The same with token ids, which a call needs; it pickles.

        Args:
            tokenizer: Made the tokens of the documents.
            vocab_size: Rows of the model's embedding.

        Raises:
            ValueError: The tokenizer lacks names, and the vocabulary has too few rows that no text reaches.
        """
        modes = [] if self.mode_tokens is None else [self.mode_tokens[one.mode] for one in self._mixture]
        names = [*dict.fromkeys(modes), *(self.sentinel.format(number) for number in range(self.num_sentinels))]
        keys = "augmentation.sentinel and augmentation.mode_tokens"
        ids = known_or_free_ids(names, tokenizer, vocab_size=vocab_size, keys=keys)
        found, made = dict(zip(names, ids, strict=True)), replace(self)
        object.__setattr__(made, "sentinel_ids", tuple(found[name] for name in names[-self.num_sentinels :]))
        object.__setattr__(made, "mode_ids", tuple(found[name] for name in modes) or (-1,) * len(self._mixture))
        return made

    @property
    def inserted_ids(self) -> dict[str, int]:
        """The token ids of sentinels and mode tokens, by the names that an exported tokenizer gives them."""
        assert self.sentinel_ids, "with_tokenizer comes first"
        found = {self.sentinel.format(number): row for number, row in enumerate(self.sentinel_ids)}
        for one, row in zip(self._mixture, self.mode_ids, strict=True):
            if self.mode_tokens is not None:
                found[self.mode_tokens[one.mode]] = row
        return found

    def __call__(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> TrainingSequence:
        """As in the module's header; see `Augmentation`."""
        tokens = joined(list(documents))
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        if generator.random() < self.probability:
            segments = self._segments(lengths, max_seqlen, generator)
            input_ids, loss_mask = self._laid_out(tokens, segments, generator)
            lengths = np.bincount(segments.documents, segments.sizes, minlength=len(lengths)).astype(np.int64)
        else:
            input_ids, loss_mask = tokens, np.ones(len(tokens), dtype=bool)
        return TrainingSequence(
            input_ids=input_ids,
            loss_mask=loss_mask,
            document_ids=make_document_ids(lengths, document_mask=self.document_mask),
            position_ids=make_position_ids(lengths, reset_positions=self.reset_positions),
        )

    def num_pushed_out(
        self, documents: Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> int:
        """How many tokens of the documents do not fit the row any more, at the same call with the same generator."""
        lengths = np.array([len(document) for document in documents], dtype=np.int64)
        if generator.random() >= self.probability:
            return 0
        return int(lengths.sum() - self._segments(lengths, max_seqlen, generator).lengths.sum())

    @property
    def _mixture(self) -> tuple[Denoiser, ...]:
        return cast(tuple[Denoiser, ...], self.denoisers)  # `__post_init__` made them

    def _segments(self, lengths: np.ndarray, max_seqlen: int, generator: np.random.Generator) -> _Segments:
        """Cuts documents into segments and draws their denoisers, as many as fit into the row."""
        assert self.sentinel_ids, "with_tokenizer comes first"
        counts = -(-lengths // self.segment_length)  # [D]
        documents = np.repeat(np.arange(len(lengths)), counts)  # [S]
        number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        short, longer = np.divmod(lengths[documents], counts[documents])
        taken = short + (number < longer)

        weights = np.array([one.weight for one in self._mixture])
        kinds = generator.choice(len(weights), len(taken), p=weights / weights.sum())
        hidden, spans = np.zeros_like(taken), np.zeros_like(taken)
        for kind, one in enumerate(self._mixture):
            hidden[kinds == kind], spans[kinds == kind] = (
                one.hidden(taken[kinds == kind]),
                one.spans(taken[kinds == kind]),
            )
        modes = np.where(spans > 0, np.array(self.mode_ids)[kinds], -1)
        segments = _Segments(documents, taken, hidden, spans, modes)

        ends = np.cumsum(segments.sizes)
        whole = int(np.searchsorted(ends, max_seqlen, side="right"))
        room = max_seqlen - (int(ends[whole - 1]) if whole else 0)
        while room and whole < len(taken):  # twice where a short last segment leaves room for a token of the next
            room -= _shortened(segments, whole, self._mixture[kinds[whole]], room)
            whole += 1
        return _Segments(*(array[:whole] for array in segments))

    def _laid_out(
        self, tokens: np.ndarray, segments: _Segments, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The sequence and what of it is learned, each [T]."""
        ids, total = np.array(self.sentinel_ids), int(segments.sizes.sum())
        out, learned = np.full(total, -1, dtype=np.int64), np.zeros(total, dtype=bool)
        sources, targets = _exclusive_sum(segments.lengths), _exclusive_sum(segments.sizes)  # [S]

        plain = segments.spans == 0
        where = _ranges(targets[plain], segments.lengths[plain])
        out[where], learned[where] = tokens[_ranges(sources[plain], segments.lengths[plain])], True
        with_mode = segments.modes >= 0
        out[targets[with_mode]] = segments.modes[with_mode]

        spans = segments.spans  # arrays over spans, [B], are in order of segments
        hidden = random_parts(segments.hidden, spans, generator)
        visible = random_parts(np.where(plain, 0, segments.lengths - segments.hidden), spans, generator)
        sentinels = ids[np.arange(len(hidden)) - np.repeat(_exclusive_sum(spans), spans)]
        text = targets + with_mode
        answers = text + segments.lengths - segments.hidden + spans

        source = np.repeat(sources, spans) + _sum_before(visible + hidden, spans)
        place = np.repeat(text, spans) + _sum_before(visible + 1, spans)
        where = _ranges(place, visible)
        out[where], learned[where] = tokens[_ranges(source, visible)], self.learned == "all"
        out[place + visible] = sentinels

        place = np.repeat(answers, spans) + _sum_before(hidden + 1, spans)
        where = _ranges(place + 1, hidden)
        out[where], learned[where] = tokens[_ranges(source + visible, hidden)], True
        out[place], learned[place] = sentinels, True
        return out, learned


def random_parts(totals: np.ndarray, num_parts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Cuts each total into parts of at least 1, every way of doing so equally likely.

        totals [5, 2], num_parts [3, 1]   ->   [2, 1, 2,  2]

    Args:
        totals: [S] int64.
        num_parts: [S] int64, at most the totals; a total of no part is left out.
        generator: Draws one number for each place at which a total can be cut.

    Returns:
        [sum(num_parts)] int64.
    """
    totals, num_parts = totals[num_parts > 0], num_parts[num_parts > 0]
    gaps = totals - 1
    owners = np.repeat(np.arange(len(gaps)), gaps)
    order = np.argsort(owners + generator.random(len(owners)))  # within each total, its gaps in a random order
    rank = np.arange(len(owners)) - np.repeat(_exclusive_sum(gaps), gaps)
    cuts = np.sort(order[rank < np.repeat(num_parts - 1, gaps)])
    ends = cuts + owners[cuts] + 1  # gap g of a total lies behind its token g; each total before has one gap less
    return np.diff(np.sort(np.concatenate([ends, np.cumsum(totals)])), prepend=0)


def _shortened(segments: _Segments, number: int, denoiser: Denoiser, room: int) -> int:
    """Makes one segment fit into a room that is too small for it, in place, and returns its new size."""
    lengths = np.arange(int(segments.lengths[number]) + 1)
    has_mode = int(segments.modes[number] >= 0)
    spans = denoiser.spans(lengths)
    fits = int(np.searchsorted(lengths + 2 * spans + has_mode, room, side="right")) - 1
    kept = int(spans[max(fits, 0)])
    # Where one token more would bring a span more, the tokens come without the span.
    length = min(room - 2 * kept - has_mode, len(lengths) - 1) if kept else min(room, len(lengths) - 1)
    segments.lengths[number], segments.spans[number] = length, kept
    segments.hidden[number] = np.clip(denoiser.hidden(np.array(length)), kept, length - kept) if kept else 0
    segments.modes[number] = segments.modes[number] if kept else -1
    return int(segments.sizes[number])


def _exclusive_sum(counts: np.ndarray) -> np.ndarray:
    """[3, 1, 2] -> [0, 3, 4]"""
    return np.cumsum(counts) - counts


def _sum_before(values: np.ndarray, group_sizes: np.ndarray) -> np.ndarray:
    """What stands before each value in its own group: [3, 1, 2, 5] in groups of [2, 2] -> [0, 3, 0, 2]"""
    before = _exclusive_sum(values)
    firsts = _exclusive_sum(group_sizes)[group_sizes > 0]
    return before - np.repeat(before[firsts], group_sizes[group_sizes > 0])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts [4, 9], lengths [3, 2] -> [4, 5, 6, 9, 10]"""
    return np.repeat(starts - _exclusive_sum(lengths), lengths) + np.arange(lengths.sum())
