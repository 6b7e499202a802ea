"""Steps of a fixed number of samples: a step holds the same conversations however they are laid out.

    samples     a b c d | e f g h           in the order in which the mixture deals them; two steps of four
    padded      a|b|c|d                     one a row
    best_fit    ac|bd|..|..                 two rows hold them; a step has as many rows as the fullest one, and rows
                                            that a step does not need are empty and cost nothing

So the gradient of a step depends neither on the layout nor on the number of ranks, and an ablation of the layout
compares runs of the same samples in the same steps. The alternative, a fixed number of rows, puts more samples into a
packed step than into a padded one: fewer steps of larger batches, which people have taken for a fault of packing.
"""

from __future__ import annotations

import math

import numpy as np

from datamodules.mixture import Mixture
from datamodules.packing.plan import RunPlan
from datamodules.packing.run import MOST_ROUNDS, RunRequest
from datamodules.packing.stream import DocumentStream

FOR_EVER = 1e300


def plan_sample_steps(request: RunRequest) -> RunPlan:
    """The rows of a run whose steps hold `request.samples_per_step` samples each; the last one may hold fewer.

    Args:
        request: `num_rows` counts samples, and `rows_per_step` those of a step.

    Raises:
        ValueError: A sample is longer than a row, or the sources hold too few samples.
    """
    sources, documents = dealt_samples(request)
    lengths = _lengths(request, sources, documents)
    if (longest := int(lengths.max(initial=0))) > request.packing.max_seqlen:
        raise ValueError(
            f"a sample of {longest} tokens is longer than packing.max_seqlen={request.packing.max_seqlen}; raise it, or"
            " set data.token_policy.too_long"
        )
    per_step = request.rows_per_step
    steps = [
        _rows_of_step(request, lengths[first : first + per_step], first) for first in range(0, len(lengths), per_step)
    ]
    most = max(len(rows) for rows, _ in steps)
    sizes = np.zeros((len(steps), most), dtype=np.int64)  # samples of each row
    for step, (rows, _) in enumerate(steps):
        sizes[step, : len(rows)] = rows
    order = np.concatenate([samples for _, samples in steps])
    return RunPlan.of(
        request.names,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        sources=sources[order],
        documents=documents[order],
        starts=np.zeros(len(order), dtype=np.int64),
        ends=lengths[order],
    )


def _rows_of_step(request: RunRequest, lengths: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """How many samples each row of a step holds, and these, as places in the order of the run.

    Args:
        request: Of the run.
        lengths: Tokens of the step's samples.
        first: Place of the first of them.
    """
    packing, samples = request.packing, np.arange(first, first + len(lengths))
    if (arranged := getattr(packing, "arranged", None)) is not None:
        return np.ones(len(lengths), np.int64), first + arranged(lengths, seed=request.seed + first)
    if packing.one_piece_a_row:
        return np.ones(len(lengths), np.int64), samples
    if lengths.sum() <= packing.max_seqlen:  # one row; asking the packing takes fifty times as long
        return np.array([len(lengths)]), samples
    packed = packing.rows(lengths, seed=request.seed, complete=True)
    assert len(packed.items) == len(lengths), "the packing cut a sample"
    return np.diff(packed.offsets), samples[packed.items]


def dealt_samples(request: RunRequest) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a run in order: source and document of each, [num_samples].

    Raises:
        ValueError: The sources hold too few, and the run may not end with them.
    """
    streams = [request.stream(number) for number in range(len(request.names))]
    available = _available(request, streams)
    mixture, ended = request.mixture.exhausted(available)
    budget = float(request.num_rows)  # of samples or tokens, as the mixture counts
    for _ in range(MOST_ROUNDS):
        drawn = [_drawn(request, stream, share) for stream, share in zip(streams, mixture.given(budget), strict=True)]
        sizes = [_sizes(request, stream.lengths[found]) for stream, found in zip(streams, drawn, strict=True)]
        places, is_all = _ordered(request, mixture, sizes, list(available.values()))
        if len(places) >= request.num_rows or is_all:
            break
        budget *= max(1.5, request.num_rows / max(len(places), 1))
    else:
        raise AssertionError("the budget grows and no sample comes of it")
    if len(places) < request.num_rows and not request.may_end:
        raise ValueError(
            f"corpus.sampling lets the sources be read for {len(places):,} samples, but the run takes"
            f" {request.num_rows:,}; raise max_epochs or lower data.max_steps"
        )
    places = places[: request.num_rows]
    sources = np.repeat(np.arange(len(drawn)), [len(found) for found in drawn])[places]
    documents = np.concatenate(drawn)[places]
    if request.at_exhaustion == "error" and not request.may_end:
        _refuse_exhaustion(request, ended, sizes=np.concatenate(sizes)[places])
    return sources, documents


def _ordered(
    request: RunRequest, mixture: Mixture, sizes: list[np.ndarray], available: list[int | None]
) -> tuple[np.ndarray, bool]:
    """The samples drawn so far in the order of the run, as far as it is certain, and whether these are all.

    A source that has given all it has leaves nothing open. Its end by the mixture says the same, but for rounding.
    """
    _, times, _ = mixture.places(sizes, seed=request.seed)
    asked = request.mixture.given(FOR_EVER) > 0
    open_ends = [
        float(mixture.times(number, np.array([float(own.sum())]))[0])
        for number, (own, most) in enumerate(zip(sizes, available, strict=True))
        if asked[number] and own.sum() != most
    ]
    places = np.argsort(times, kind="stable")
    if not open_ends:
        return places, True
    certain = min(*open_ends, np.finfo(np.float64).max)  # what never has its turn stays out
    return places[: np.count_nonzero(times <= certain)], math.isinf(min(open_ends))


def _refuse_exhaustion(request: RunRequest, ended: list[tuple[str, float]], *, sizes: np.ndarray) -> None:
    """Raises where a source ends more than a sample before the run does."""
    total = int(sizes.sum())
    for name, time in ended:
        if time < total - int(sizes.max()):
            raise ValueError(
                f"corpus.sampling.{name}.max_epochs={request.sampling[name].max_epochs} ends the source after"
                f" {time / total:.0%} of the run's {total:,} {request.mix_by}; raise it, lower its share in"
                " corpus.mixture or data.max_steps, or set corpus.at_exhaustion=renormalise"
            )


def ends_of_sources(request: RunRequest) -> list[tuple[str, float]]:
    """The sources that end, and after how many of the run's samples or tokens, as the mixture counts; in order."""
    streams = [request.stream(number) for number in range(len(request.names))]
    return request.mixture.exhausted(_available(request, streams))[1]


def _available(request: RunRequest, streams: list[DocumentStream]) -> dict[str, int | None]:
    """What each source holds for the run, as the mixture counts; None where it never ends."""
    tokens = {name: stream.available for name, stream in zip(request.names, streams, strict=True)}
    if request.mix_by == "tokens":
        return tokens
    return {
        name: None if tokens[name] is None else len(stream.drawn(1 << 62))
        for name, stream in zip(request.names, streams, strict=True)
    }


def _drawn(request: RunRequest, stream: DocumentStream, share: float) -> np.ndarray:
    """The documents that a source gives for its share of samples or tokens, and one more."""
    if not share:
        return stream.first(0)
    if request.mix_by == "samples":
        return stream.first(math.ceil(share) + 1)
    return stream.drawn(math.ceil(share) + int(stream.lengths.max()))


def _sizes(request: RunRequest, lengths: np.ndarray) -> np.ndarray:
    return lengths if request.mix_by == "tokens" else np.ones(len(lengths), dtype=np.int64)


def _lengths(request: RunRequest, sources: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Tokens of each sample, [num_samples] int64."""
    lengths = np.zeros(len(sources), dtype=np.int64)
    for number, name in enumerate(request.names):
        own = sources == number
        lengths[own] = np.asarray(request.lengths[name])[documents[own]]
    return lengths
