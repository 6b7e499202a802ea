from __future__ import annotations

from benchmarks.loop_overhead import Times, is_reached
from tests.processes import finished


def test_trainer_loop_costs_at_most_a_millisecond_a_step_over_a_bare_loop() -> None:
    """CPU time of the process; a round of 60 steps shows it, up to five where much else runs."""
    done = finished("benchmarks.loop_overhead", "--briefly")
    assert done.returncode == 0, done.stderr
    rows = {line[:12].strip(): Times(*map(float, line[12:].split())) for line in done.stdout.splitlines()[1:]}
    assert list(rows) == ["bare loop", "our loop", "difference"]
    assert rows["bare loop"].cpu > 1  # it really trained
    assert is_reached(rows), done.stdout
