import re
import time
from dataclasses import dataclass
from typing import Any

import pytest

from datamodules.prepare import progress
from datamodules.prepare.parts import Unit
from datamodules.prepare.progress import Progress


@dataclass(frozen=True)
class Sized:
    num_bytes: int | None
    name: str = "shard"
    num_documents: int | None = None

    def documents(self, quarantine: Any) -> Any:
        raise NotImplementedError


def units(*sizes: int | None) -> list[Unit]:
    return [Unit(index, Sized(size)) for index, size in enumerate(sizes)]


def test_bar_counts_bytes_and_shows_tokens_a_second_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
    own = units(1_000_000, 3_000_000)
    with Progress(own, description="tokenise book") as bar:
        bar.advance(50_000, 400_000)
        bar.advance(50_000, 300_000)
        bar.finish(own[0])
        bar.advance(100_000, 9_000_000)  # more characters than the shard said
    shown = re.split("[\r\n]", capsys.readouterr().err)
    numbers = [re.search(r"\| ([\d.]+)([kM]?)/4.00M", line) for line in shown]
    read = [float(n[1]) * {"k": 1e3, "M": 1e6, "": 1}[n[2]] for n in numbers if n]
    assert read == sorted(read)
    assert {400_000, 700_000, 1_000_000, 4_000_000} <= set(read)
    assert any(re.search(r"tokenise book: .*<.*200 K tokens, .* tokens/s", line) for line in shown)
    assert bar.num_tokens == 200_000


def shown_counts(shown: str) -> list[tuple[int, int]]:
    """What the bar says in turn: documents, and of how many; 0 where it does not know."""
    found = [re.search(r"(?:\| (\d+)/(\d+)|: (\d+) documents) \[", line) for line in re.split("[\r\n]", shown)]
    return [(int(n[1] or n[3]), int(n[2] or 0)) for n in found if n]


def test_bar_counts_documents_where_bytes_are_unknown_but_they_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", -1)
    own = [Unit(0, Sized(None, num_documents=4)), Unit(1, Sized(5, num_documents=3))]
    with Progress(own, description="tokenise book") as bar:
        for _ in range(3):  # one of the four was dropped
            bar.advance(10, 100)
        bar.finish(own[0])
        bar.advance(10, 100)
        bar.advance(10, 0)  # another sample of the same document
        bar.finish(own[1])
    shown = shown_counts(capsys.readouterr().err)
    assert list(dict.fromkeys(count for count, _ in shown)) == [0, 1, 2, 3, 4, 5, 7]
    assert {total for _, total in shown} == {7}


def test_total_is_estimated_from_the_shards_that_were_made_where_no_size_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", -1)
    own = units(None, 5, None, None, None)
    with Progress(own, description="tokenise book") as bar:
        bar.finish(own[0])  # made earlier: nobody knows how much that was
        for _ in range(30):
            bar.advance(10, 10)
        before = capsys.readouterr().err
        bar.finish(own[1])
        first = capsys.readouterr().err
        bar.advance(100, 0, num_documents=10)  # a whole shard at once, as a cluster tells it
        bar.finish(own[2])
        second = capsys.readouterr().err
        for _ in range(100):
            bar.advance(10, 10)
        more = capsys.readouterr().err
        bar.finish(own[3])
        bar.finish(own[4])
    assert shown_counts(before)[-1] == (30, 0)
    assert "shard 2 of 5" in before
    assert "?" not in before.rpartition("\r")[2].partition("tokens/s")[2]
    assert shown_counts(first)[-1] == (30, 30 + 3 * 30)
    assert shown_counts(second)[-1] == (40, 40 + 2 * 20)
    assert shown_counts(more)[-1] == (140, 140), "more documents than were likely"
    last = capsys.readouterr().err
    assert shown_counts(last)[-1] == (140, 140)
    assert "shard 5 of 5" in last


def test_time_left_follows_what_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A quarter of the documents in 10 seconds: 30 are left."""
    monkeypatch.setattr(progress, "REFRESH_SECONDS", -1)
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    own = [Unit(0, Sized(None, num_documents=40))]
    with Progress(own, description="tokenise book") as bar:
        for _ in range(10):
            clock[0] += 1
            bar.advance(1000, 10)
        shown = re.split("[\r\n]", capsys.readouterr().err)[-1]
    assert "10/40 [00:10<00:30" in shown
    assert "10 K tokens, 1 K tokens/s" in shown


def test_no_bar_where_none_is_wanted(capsys: pytest.CaptureFixture[str]):
    own = units(5)
    with Progress(own, description="x", shown=False) as bar:
        bar.advance(10, 10)
        bar.finish(own[0])
    assert capsys.readouterr().err == ""
    assert bar.num_tokens == 10
