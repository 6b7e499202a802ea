"""Say what a recipe will take before anything starts: memory by cause, the longest context, hours, cost and disk.

hardware=h100_80gb            of conf/hardware; needed
devices=8 nodes=1             devices of a node, and nodes; default: the recipe's trainer.devices
price=2.5                     of a GPU-hour, in your currency
calibrate=true                three real steps on this machine, beside what is predicted; later plans read the result
calibration=null              plan without it; or the path of another one
format=json                   for programs"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recipes.cli import exit_status, help_printed

if TYPE_CHECKING:
    from recipes.compose import Composed
    from recipes.planning.calibration import Calibration
    from recipes.planning.hardware import Hardware

OWN = ("hardware", "devices", "nodes", "price", "calibrate", "calibration", "format")


class Asked(NamedTuple):
    """The words of a plan, and those of the recipe."""

    own: dict[str, str]
    recipe: list[str]


def plan(words: Sequence[str]) -> str:
    """What to print for these words.

    Raises:
        ConfigError: A word is wrong, or something that a plan needs is missing; one sentence each.
    """
    from recipes.compose import compose
    from recipes.planning.hardware import read_hardware
    from recipes.planning.plan import plan_run
    from recipes.planning.report import report

    asked = parted(words)
    hardware = read_hardware(asked.own["hardware"])
    if (price := _number(asked.own, "price")) is not None:
        hardware = replace(hardware, price_per_hour=price)
    composed = compose(asked.recipe)
    heading = ""
    if asked.own.get("calibrate", "false") == "true":
        heading, calibration = _calibrated(asked, composed, hardware)
    else:
        calibration = _known_calibration(asked, composed, hardware)
    found = plan_run(composed, hardware, calibration=calibration)
    if asked.own.get("format", "text") == "json":
        return json.dumps(found.as_dict(), indent=2)
    return "\n\n".join(filter(None, [heading, report(found)]))


def parted(words: Sequence[str]) -> Asked:
    """The words of a plan apart from those of the recipe.

    Raises:
        ConfigError: There is no hardware, or a word of the plan is given twice or cannot be.
    """
    from recipes.compose import ConfigError, options

    own: dict[str, str] = {}
    recipe = []
    for word in words:
        name, _, value = word.partition("=")
        if name not in OWN:
            recipe.append(word)
        elif name in own:
            raise ConfigError(f"{name} is given twice; keep one")
        else:
            own[name] = value
    if not own.get("hardware"):
        raise ConfigError(f"no hardware given; add hardware=<name>, one of: {', '.join(options('hardware'))}")
    for name, allowed in (("calibrate", ("true", "false")), ("format", ("text", "json"))):
        if own.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"{name}={own[name]} is not known; allowed are {', '.join(allowed)}")
    for name, key in (("devices", "trainer.devices"), ("nodes", "trainer.num_nodes")):
        if name in own:
            if not own[name].isdigit() or own[name] == "0":
                raise ConfigError(f"{name}={own[name]} must be a whole number of at least 1")
            recipe.append(f"{key}={own[name]}")
    return Asked(own, recipe)


def _number(own: dict[str, str], name: str) -> float | None:
    from recipes.compose import ConfigError

    try:
        value = float(own[name]) if name in own else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value < float("inf"):
        raise ConfigError(f"{name}={own[name]} must be a number of at least 0")
    return value


def _known_calibration(asked: Asked, composed: Composed, hardware: Hardware) -> Calibration | None:
    """What an earlier calibration of this hardware and model found, or the one that is named."""
    from recipes.planning.calibration import calibration_file, read_calibration
    from recipes.planning.reading import model_dimensions

    named = asked.own.get("calibration")
    if named is not None:
        return None if named == "null" else read_calibration(Path(named))
    model, _ = model_dimensions(composed)
    file = calibration_file(str(composed.config.cache_dir), hardware=hardware.name, model=model)
    return read_calibration(file) if file.is_file() else None


def _calibrated(asked: Asked, composed: Composed, hardware: Hardware) -> tuple[str, Calibration]:
    """Three steps on this machine: predicted beside measured, and what is kept of it."""
    from recipes.planning.calibration import Calibration, calibration_file, measured_steps, write_calibration
    from recipes.planning.fitting import GIB
    from recipes.planning.plan import hardware_flops, plan_run

    _refuse_another_machine(composed, hardware)
    measured = measured_steps(asked.recipe)
    before = plan_run(composed, hardware)  # behind the steps, for which the data was prepared
    counted = measured["seconds"]
    work = hardware_flops(before)
    factor = measured["peak_bytes"] / GIB / before.need.tensors
    file = calibration_file(str(composed.config.cache_dir), hardware=hardware.name, model=before.run.job.model)
    made = Calibration(
        machine=measured["machine"],
        memory_factor=factor,
        least_flops=work / max(counted),
        most_flops=work / min(counted),
    )
    predicted = "not known" if before.seconds is None else f"{before.seconds.least:.3g} to {before.seconds.most:.3g} s"
    lines = [
        f"three steps on this machine, {measured['machine']}",
        f"  {'':<12}{'predicted':>16}{'measured':>16}",
        f"  {'memory':<12}{before.need.tensors * 1024:>12.0f} MiB{measured['peak_bytes'] / 2**20:>12.0f} MiB"
        f"   x {factor:.2f}",
        f"  {'a step':<12}{predicted:>16}{sum(counted) / len(counted):>14.3g} s",
        f"kept in {file}",
    ]
    return "\n".join(lines), write_calibration(made, file)


def _refuse_another_machine(composed: Composed, hardware: Hardware) -> None:
    """Refuse to keep what a CPU took as what a GPU takes, or the other way round: later plans would believe it."""
    import torch

    from recipes.compose import ConfigError

    on_gpu = torch.cuda.is_available() and composed.config.trainer.accelerator != "cpu"
    if on_gpu != hardware.on_gpu:
        where, remedy = ("a GPU", "trainer.accelerator=cpu") if on_gpu else ("a CPU", "hardware=cpu")
        raise ConfigError(
            f"calibrate=true measures steps on {where} here, which says nothing of hardware={hardware.name}; add"
            f" {remedy}, or leave calibrate=true out"
        )


if __name__ == "__main__":
    if not help_printed("plan", sys.argv[1:], doc=__doc__ or ""):
        sys.exit(exit_status(lambda: print(plan(sys.argv[1:]))))
