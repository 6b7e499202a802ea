from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_trainer_loop_costs_at_most_a_millisecond_a_step_over_a_bare_loop() -> None:
    """CPU time of the process, medians of steps taken in turns: what else runs on the machine hardly matters."""
    command = [sys.executable, "-m", "benchmarks.loop_overhead"]
    table = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = {line[:12].strip(): [float(word) for word in line[12:].split()] for line in table.splitlines()[1:]}
    assert list(rows) == ["bare loop", "our loop", "difference"]
    cpu_ms = 1
    assert rows["bare loop"][cpu_ms] > 1  # it really trained
    assert rows["difference"][cpu_ms] <= 1.0, table
