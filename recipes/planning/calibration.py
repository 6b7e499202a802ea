"""Three real steps on this machine, and what they say of the formulas: factors that later plans of it read.

    <cache_dir>/calibrations/<hardware>-<sizes of the model>.json

Memory is CUDA's peak of allocated bytes, or on a CPU the peak of the resident set of a child process above what it has
for itself (three_steps.py). Time is that of the last steps of three.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.compose import ConfigError
from recipes.planning.dimensions import Dimensions


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured against what was predicted.

    Attributes:
        machine: What the steps ran on.
        memory_factor: Measured over predicted peak of tensors.
        least_flops: FLOPs a second of a rank, recomputation included, of the slowest step that counts.
        most_flops: Of the fastest.
        file: Where it is kept.
    """

    machine: str
    memory_factor: float
    least_flops: float
    most_flops: float
    file: str = ""


def calibration_file(cache_dir: str, *, hardware: str, model: Dimensions) -> Path:
    """Where the calibration of a kind of device and of a model's sizes is kept."""
    sizes = hashlib.sha256(json.dumps(asdict(model), sort_keys=True).encode()).hexdigest()[:12]
    return Path(cache_dir) / "calibrations" / f"{hardware}-{sizes}.json"


def read_calibration(file: Path) -> Calibration:
    """A calibration that an earlier `calibrate=true` wrote.

    Raises:
        ConfigError: The file is none.
    """
    try:
        found = Calibration(**{**json.loads(file.read_text(encoding="utf-8")), "file": str(file)})
        if not all(0 < value < math.inf for value in (found.memory_factor, found.least_flops, found.most_flops)):
            raise ValueError("its factors must be above 0")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"calibration={file} cannot be read ({error}); make one with calibrate=true, or set calibration=null"
        ) from error


def write_calibration(found: Calibration, file: Path) -> Calibration:
    """Keep a calibration, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps({**asdict(found), "file": ""}, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)
    return read_calibration(file)


def measured_steps(words: Sequence[str]) -> dict[str, Any]:
    """Run three steps of a recipe in a child process.

    Args:
        words: Of the recipe, without those of the plan.

    Returns:
        `machine`, `peak_bytes` and `seconds` of each step that is timed.

    Raises:
        ConfigError: The steps cannot be run; the child's own sentence.
    """
    command = [sys.executable, "-m", "recipes.planning.three_steps", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise ConfigError("\n".join(said) or f"calibrate=true could not run three steps of the recipe ({last})")
    return json.loads(lines[-1])
