"""Plans that are kept, and what a user is told of them."""

import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from datamodules import row_planning
from datamodules.length_schedules.rows import Rows
from datamodules.length_schedules.shapes import constant
from datamodules.mixture import Mixture, Phase
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.plan import ARRAYS
from datamodules.packing.run import RunRequest, plan_run
from datamodules.row_planning import DocumentLengths, RowPlanner, validation_note
from tests.datamodules.toy import make_store

L = 64
LENGTHS = {"a": np.arange(1, 200), "b": np.full(50, 300)}


def planner(folder: Path) -> RowPlanner:
    return RowPlanner(packing=ConcatChunk(L), length_schedule=constant(max_seqlen=L), cache_dir=folder)


def request(*phases: Phase, num_rows: int = 100) -> RunRequest:
    return RunRequest(
        mixture=Mixture({"a": 0.5, "b": 0.5}, phases=phases), lengths=LENGTHS, packing=ConcatChunk(L), num_rows=num_rows
    )


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([], None),
        ([50 * L], None),
        ([99 * L], None),
        ([100 * L], "corpus.phases last for 6,400 tokens and the run for 6,400: it ends in phase 1 of 1, and"),
        (
            [40 * L, 40 * L, 40 * L],
            "corpus.phases last for 7,680 tokens and the run for 6,400: it ends in phase 3 of 3",
        ),
        ([150 * L, 40 * L], "corpus.phases last for 12,160 tokens and the run for 6,400: it ends in phase 1 of 2"),
    ],
)
def test_run_that_ends_before_its_phases_says_so_once(tmp_path: Path, phases: list[int], told: str | None):
    asked = request(*(Phase(tokens, {"a": 1.0}) for tokens in phases))
    for _ in range(2):  # planned, and opened
        notes = planner(tmp_path).rows(asked, {}).notes
        assert len(notes) == (told is not None)
        assert told is None or notes[0].startswith(told)


def test_validation_of_fewer_rows_than_asked_for_says_so():
    assert validation_note(8, asked=8) == []
    (note,) = validation_note(3, asked=8)
    assert note.startswith("validation reads 3 sequences and not the 8 of data.validation_sequences")


def test_lengths_are_those_of_the_stores_and_nobody_keeps_them(tmp_path: Path):
    stores = {name: make_store(tmp_path / name, [5, 0, 7, *range(1, k)]) for name, k in (("a", 4), ("b", 9))}
    lengths = DocumentLengths(stores)
    assert list(lengths) == ["a", "b"]
    assert {name: own.tolist() for name, own in lengths.items()} == {
        "a": [5, 0, 7, 1, 2, 3],
        "b": [5, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8],
    }
    assert lengths["a"] is not lengths["a"]
    held = [value for value in vars(lengths).values() if isinstance(value, np.ndarray)]
    assert held == []


def test_two_planners_without_a_lock_leave_one_whole_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both see that there is no plan, both make it, and both open the one that was there first."""
    both_begin, found = threading.Barrier(2), []
    plan = RowPlanner._planned

    def planned_together(self: RowPlanner, asked: RunRequest) -> Rows:
        both_begin.wait(timeout=30)
        return plan(self, asked)

    monkeypatch.setattr(RowPlanner, "_planned", planned_together)
    monkeypatch.setattr(
        row_planning, "locked", lambda path: nullcontext(path.parent.mkdir(parents=True, exist_ok=True))
    )
    threads = [
        threading.Thread(target=lambda: found.append(planner(tmp_path).rows(request(num_rows=5000), {})))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = plan_run(request(num_rows=5000))
    assert len(found) == 2
    for rows in found:
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(rows.plan, name), getattr(expected, name))
    assert len(list((tmp_path / "plans").iterdir())) == 1
