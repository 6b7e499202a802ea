from __future__ import annotations

from tests.processes import finished


def test_trainer_loop_costs_at_most_a_millisecond_a_step_over_a_bare_loop() -> None:
    """CPU time of the process, medians of steps taken in turns.

    What else runs on the machine takes its caches, which adds to the time: the best of five counts.
    """
    tables = []
    for _ in range(5):
        tables.append(measured())
        if tables[-1]["difference"] <= 1.0:
            break
    assert min(table["difference"] for table in tables) <= 1.0, tables


def measured() -> dict[str, float]:
    """CPU milliseconds a step."""
    done = finished("benchmarks.loop_overhead")
    assert done.returncode == 0, done.stderr
    cpu_ms = 1
    rows = {line[:12].strip(): float(line[12:].split()[cpu_ms]) for line in done.stdout.splitlines()[1:]}
    assert list(rows) == ["bare loop", "our loop", "difference"]
    assert rows["bare loop"] > 1  # it really trained
    return rows
