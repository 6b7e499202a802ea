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

from datamodules.packing.plan import RunPlan, take_rows
from datamodules.packing.run import RunRequest
from datamodules.packing.stream import DocumentStream


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
    steps = [_rows_of_step(request, lengths, first, per_step) for first in range(0, len(lengths), per_step)]
    most = max(len(rows) for rows in steps)
    sizes = np.zeros((len(steps), most), dtype=np.int64)
    for step, rows in enumerate(steps):
        sizes[step, : len(rows)] = [len(row) for row in rows]
    order = np.concatenate([row for rows in steps for row in rows])
    return RunPlan.of(
        request.names,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        sources=sources[order],
        documents=documents[order],
        starts=np.zeros(len(order), dtype=np.int64),
        ends=lengths[order],
    )


def _rows_of_step(request: RunRequest, lengths: np.ndarray, first: int, per_step: int) -> list[np.ndarray]:
    """The samples of each row of a step, as places in the order of the run."""
    packed = request.packing.rows(lengths[first : first + per_step], seed=request.seed, complete=True)
    places = np.arange(len(packed.offsets) - 1)
    if (arranged := getattr(request.packing, "arranged", None)) is not None:
        places = arranged(packed.num_tokens, seed=request.seed + first)
    offsets, items = take_rows(packed.offsets, places)
    held = first + np.asarray(packed.items)[items]
    assert len(held) == len(lengths[first : first + per_step]), "the packing cut a sample"
    return np.split(held, offsets[1:-1])


def dealt_samples(request: RunRequest) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a run in order: source and document of each, [num_samples].

    Raises:
        ValueError: The sources hold too few, and the run may not end with them.
    """
    streams = [request.stream(number) for number in range(len(request.names))]
    mixture, _ = request.mixture.exhausted(_available(request, streams))
    budget = float(request.num_rows)  # of samples or tokens, as the mixture counts
    while True:
        drawn = [_drawn(request, stream, share) for stream, share in zip(streams, mixture.given(budget), strict=True)]
        sources, numbers, whole = mixture.order(
            [_sizes(request, stream.lengths[found]) for stream, found in zip(streams, drawn, strict=True)],
            seed=request.seed,
        )
        if len(sources) >= request.num_rows or np.isinf(whole):
            break
        budget *= max(1.5, request.num_rows / max(len(sources), 1))
    sources, numbers = sources[: request.num_rows], numbers[: request.num_rows]
    if len(sources) < request.num_rows and not request.may_end:
        raise ValueError(
            f"corpus.sampling lets the sources be read for {len(sources):,} samples, but the run takes"
            f" {request.num_rows:,}; raise max_epochs or lower data.max_steps"
        )
    before = np.cumsum([0, *(len(found) for found in drawn)])
    return sources, np.concatenate(drawn)[before[sources] + numbers]


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
