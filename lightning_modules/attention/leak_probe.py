"""Does a packed document see another? Change tokens of one and look at what moves elsewhere.

The loss falls all the same when documents leak, so nothing but this shows it. Every third document is changed at once,
from some token on, in three turns; what lies in an unchanged document, or before the change, may not move by a bit.
Only where something moves is the same input run twice, and what the kernels do not reproduce is forgiven.
Cost: four forwards of a short row, and a fifth where something moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from datamodules.batch import PADDING_DOCUMENT

# B rows, T tokens

TURNS = 3
"""Documents that lie side by side are changed in different turns, also where one lies inside another."""

NOISE_FACTOR = 8
"""A position has moved if it changed by more than so many times what two equal runs differ by."""


class Moved(NamedTuple):
    """How many of the positions that could have moved did, and the largest change of their output."""

    num_moved: int = 0
    num_positions: int = 0
    largest: float = 0.0

    def __add__(self, other: object) -> Moved:
        assert isinstance(other, Moved)
        return Moved(
            self.num_moved + other.num_moved,
            self.num_positions + other.num_positions,
            max(self.largest, other.largest),
        )


class LeakReport(NamedTuple):
    """What moved when tokens of some documents were changed.

    Attributes:
        others: Positions of other documents; none may move.
        before: Earlier positions of the changed documents; none may move.
        after: The changed tokens and what follows them in their documents; all should, or the probe sees nothing.
    """

    others: Moved
    before: Moved
    after: Moved

    @property
    def leaks(self) -> bool:
        return self.others.num_moved > 0

    @property
    def sees_the_future(self) -> bool:
        return self.before.num_moved > 0

    @property
    def blind(self) -> bool:
        """Nothing moved at all, so that a leak could not have been seen."""
        return self.after.num_moved == 0


def probe_leaks(
    outputs: Callable[[torch.Tensor], torch.Tensor],
    input_ids: torch.Tensor,
    document_ids: torch.Tensor,
    *,
    vocab_size: int,
    counted: torch.Tensor | None = None,
    single_token: bool = False,
    any_rank: Callable[[bool], bool] = bool,
) -> LeakReport:
    """Changes tokens of documents and reports what moved.

        document_ids  0 0 0 0 1 1 2 2 1 1      (1 and 2 interleave)
        first turn        x x                  x changes: nothing may move but x itself
        second turn                   x x
        third turn                  x        and what follows it in its document

    Args:
        outputs: From input_ids [B, T] to [B, T] or [B, T, V]; called up to five times, on every rank alike.
        input_ids: [B, T] int64.
        document_ids: [B, T] int64; padding is changed as a document is, and its own outputs do not matter.
        vocab_size: Changed tokens are others of as many.
        counted: [B, T] bool, positions whose output means something; all but padding if None.
        single_token: Change one token in the middle of a document and not its whole second half.
        any_rank: Whether something is true on any rank; only needed where `outputs` contains collectives.
    """
    counted = document_ids != PADDING_DOCUMENT if counted is None else counted
    before = outputs(input_ids)
    changes: list[tuple[torch.Tensor, torch.Tensor]] = []
    for places in _places(document_ids, single_token=single_token):
        if not any_rank(bool(places.any())):
            continue
        changed = torch.where(places, (input_ids + vocab_size // 2) % vocab_size, input_ids)
        changes.append((places, _distance(outputs(changed), before)))
    report = _total(changes, document_ids, counted, threshold=0.0)
    if any_rank(report.leaks or report.sees_the_future):
        noise = float(_distance(outputs(input_ids), before)[counted].max()) if counted.any() else 0.0
        report = _total(changes, document_ids, counted, threshold=NOISE_FACTOR * noise)
    return report


def around_edges(document_ids: torch.Tensor, *, num_tokens: int, num_edges: int = 4) -> torch.Tensor:
    """Columns of each row that lie nearest its first document edges, so that a few tokens stand for a long row.

    Args:
        document_ids: [B, T] int64.
        num_tokens: Columns to take of each row, at most.
        num_edges: Edges around which they lie; the beginning of the row where it has none.

    Returns:
        [B, min(T, num_tokens)] int64, ascending.
    """
    T = document_ids.shape[1]
    columns = torch.arange(T, device=document_ids.device)
    chosen = []
    for row in document_ids:
        edges = (row[1:] != row[:-1]).nonzero().flatten()[:num_edges] + 1
        distance = (columns[:, None] - edges).abs().amin(1) if len(edges) else columns
        chosen.append(distance.argsort(stable=True)[:num_tokens].sort().values)
    return torch.stack(chosen)


def _places(document_ids: torch.Tensor, *, single_token: bool) -> Sequence[torch.Tensor]:
    """Where tokens change in each turn, [B, T] bool: in documents that come first, fourth, … in a row, and so on."""
    places = torch.zeros(TURNS, *document_ids.shape, dtype=torch.bool, device=document_ids.device)
    for b, row in enumerate(document_ids):
        in_order = list(dict.fromkeys(row.tolist()))
        for number, document in enumerate(in_order):
            members = (row == document).nonzero().flatten()
            half = members[len(members) // 2 :]
            places[number % TURNS, b, half[:1] if single_token else half] = True
    return [*places]


def _distance(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """[B, T] fp32, the largest change of each position's output; what became or ceased to be a number is infinite."""
    change = (after.float() - before.float()).abs()
    change = torch.where(after == before, 0.0, change.nan_to_num(nan=float("inf")))
    change = torch.where(after.isnan() & before.isnan(), 0.0, change)
    return change.flatten(2).amax(2) if change.ndim == 3 else change


def _total(
    changes: list[tuple[torch.Tensor, torch.Tensor]],
    document_ids: torch.Tensor,
    counted: torch.Tensor,
    *,
    threshold: float,
) -> LeakReport:
    """What moved by more than a threshold, over all (places [B, T], distance [B, T])."""
    reports = [
        _sorted(places, distance, document_ids, counted, threshold) for places, distance in changes if places.any()
    ]
    return LeakReport(*(sum(parts, Moved()) for parts in zip(*reports, strict=True)))


def _sorted(
    places: torch.Tensor, distance: torch.Tensor, document_ids: torch.Tensor, counted: torch.Tensor, threshold: float
) -> LeakReport:
    """Sorts positions by what they are to the changed tokens."""
    is_own, is_before = torch.zeros_like(places), torch.zeros_like(places)
    for b, row in enumerate(document_ids):
        for document in row[places[b]].unique():
            members = row == document
            first = (places[b] & members).nonzero()[0]
            is_own[b] |= members
            is_before[b] |= members & (torch.arange(len(row), device=row.device) < first)

    def moved(positions: torch.Tensor) -> Moved:
        changes = distance[positions & counted]
        largest = float(changes.max()) if len(changes) else 0.0
        return Moved(int((changes > threshold).sum()), len(changes), largest)

    return LeakReport(others=moved(~is_own), before=moved(is_before), after=moved(is_own & ~is_before))
