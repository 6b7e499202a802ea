"""The rows of a run: the mixture's sources, each in its own order, packed and dealt.

    mix_at=sequence     each source is packed alone; the mixture deals rows          aaaa bbbb aaaa aaaa
    mix_at=document     the mixture deals documents, and these are packed together   aabb bbaa abbb aaab

Either way the shares are of tokens, and a row is known from (document lengths, configuration, seed) alone. Cost: a sort
of the rows or documents of the run, and what the packing costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from datamodules.mixture import EXHAUSTION, Mixture
from datamodules.packing.dealt_rows import by_document, by_sequence, first_budget
from datamodules.packing.plan import Packing, RunPlan, source_seed
from datamodules.packing.stream import DocumentStream, Sampling

MIX_AT = ("sequence", "document")
MIX_BY = ("tokens", "samples")
MOST_ROUNDS = 40
"""Each draws half as many tokens again as the one before; from a first guess, one or two are enough."""


@dataclass(frozen=True)
class RunRequest:
    """What rows a run asks for.

    Args:
        mixture: Shares of the sources over the tokens of the run.
        lengths: Source -> tokens of its documents, [num_documents] int64.
        packing: How documents fill a row.
        num_rows: Rows of the run: whole steps.
        rows_per_step: Rows of one optimizer step, over all micro-batches and ranks.
        seed: Orders documents and rows.
        mix_at: `sequence`: a row is of one source (Together's LLaMA-2-7B-32K); `document`: documents of all sources
            share rows; those longer than a row are dealt in pieces of a row.
        at_exhaustion: What happens when a source has been read as often as it may: `error`, or `renormalise`: the
            others share the rest of the run by their ratios.
        sampling: Source -> its length rules and epochs.
        by_samples: A step is `rows_per_step` samples, however many rows they fill (`sample_steps.py`), and `num_rows`
            counts samples.
        mix_by: With `by_samples`, what the shares of the mixture are of: `tokens` or `samples`.
        may_end: The run ends with its sources; fewer rows are fine.

    Raises:
        ValueError: A name is not known.
    """

    mixture: Mixture
    lengths: Mapping[str, np.ndarray]
    packing: Packing
    num_rows: int
    rows_per_step: int = 1
    seed: int = 0
    mix_at: str = "sequence"
    at_exhaustion: str = "error"
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    by_samples: bool = False
    mix_by: str = "tokens"
    may_end: bool = False

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("mix_at", self.mix_at, MIX_AT),
            ("mix_by", self.mix_by, MIX_BY),
            ("at_exhaustion", self.at_exhaustion, EXHAUSTION),
        ):
            if value not in allowed:
                raise ValueError(f"corpus.{key}={value} is not known; allowed are {', '.join(allowed)}")

    @property
    def names(self) -> list[str]:
        """The sources."""
        return self.mixture.sources

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.num_rows // self.rows_per_step

    def stream(self, number: int) -> DocumentStream:
        """The documents of a source, given by its place in `names`, in the order of the run."""
        name = self.names[number]
        return DocumentStream(self.lengths[name], seed=source_seed(self.seed, number), sampling=self.sampling.get(name))


def plan_run(request: RunRequest, *, may_end: bool = False) -> RunPlan:
    """The rows of a run, in order.

    Args:
        request: What the run asks for.
        may_end: Fewer rows are fine, where the sources hold no more.

    Raises:
        ValueError: The sources end before the run does, or one does that may not.
    """
    if request.by_samples:
        from datamodules.packing.sample_steps import plan_sample_steps  # which needs what is here

        return plan_sample_steps(request)
    may_end = may_end or request.may_end
    streams = [request.stream(number) for number in range(len(request.names))]
    available = {name: stream.available for name, stream in zip(request.names, streams, strict=True)}
    mixture, ended = request.mixture.exhausted(available)
    plan = _first_rows(request, mixture, streams)
    if len(plan) < request.num_rows and not may_end:
        raise ValueError(
            f"corpus.sampling lets the sources be read for {len(plan):,} rows, but the run takes {request.num_rows:,};"
            " raise max_epochs or lower data.max_steps"
        )
    if not may_end:
        _refuse_exhaustion(request, ended, num_tokens=plan.num_tokens)
    return plan.whole_steps(request.rows_per_step) if request.may_end else plan


def _first_rows(request: RunRequest, mixture: Mixture, streams: list[DocumentStream]) -> RunPlan:
    """The rows of a run, or all there are, from as few tokens as it takes."""
    make = by_sequence if request.mix_at == "sequence" or request.packing.one_piece_a_row else by_document
    budget = first_budget(request, streams)
    for _ in range(MOST_ROUNDS):
        if (plan := make(request, mixture, streams, budget)) is not None:
            return plan
        budget += max(budget // 2, 2 * request.packing.max_seqlen)
    raise AssertionError("the budget grows and no row comes of it")


def exhaustions(request: RunRequest, *, num_tokens: int) -> list[tuple[str, int]]:
    """The sources that end within so many tokens of the run, and at which token, in order."""
    available = {name: request.stream(number).available for number, name in enumerate(request.names)}
    _, ended = request.mixture.exhausted(available)
    return [(name, int(time)) for name, time in ended if time < num_tokens]


def _refuse_exhaustion(request: RunRequest, ended: list[tuple[str, float]], *, num_tokens: int) -> None:
    if request.at_exhaustion != "error":
        return
    for name, time in ended:
        if time < num_tokens - request.packing.max_seqlen:
            epochs = request.sampling[name].max_epochs
            raise ValueError(
                f"corpus.sampling.{name}.max_epochs={epochs} ends the source after {time / num_tokens:.0%} of the"
                f" run's {num_tokens:,} tokens; raise it, lower its share in corpus.mixture or data.max_steps, or set"
                " corpus.at_exhaustion=renormalise"
            )


def steps_to_the_end(request: RunRequest) -> int:
    """Optimizer steps until every source has been read as often as it may; the last may hold less than the others.

    Args:
        request: Of a run whose sources all end; its `num_rows` plays no part.
    """
    streams = [request.stream(number) for number in range(len(request.names))]
    num_samples = sum(len(stream.first(1 << 62)) for stream in streams)
    if request.by_samples:
        return math.ceil(num_samples / request.rows_per_step)
    available = sum(stream.available or 0 for stream in streams)
    most = num_samples + available // request.packing.max_seqlen + 1  # a row holds a part of a sample at least
    return len(plan_run(replace(request, num_rows=most))) // request.rows_per_step
