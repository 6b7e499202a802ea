"""RoPE follows the length schedule where the recipe says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from lightning_modules.callbacks.rope_patching import RotaryPatching
from recipes.build import build_trainer
from recipes.compose import compose
from tests.recipes.words import replaced


def rotary_patching(config: DictConfig, folder: Path) -> RotaryPatching:
    callbacks = build_trainer(config, folder, max_steps=config.data.max_steps).callbacks  # type: ignore[attr-defined]
    (found,) = (callback for callback in callbacks if isinstance(callback, RotaryPatching))
    return found


@pytest.mark.parametrize("mechanism", ["cut", "window"])
def test_rope_is_set_for_the_length_of_each_step(mechanism: str, tiny: list[str], tmp_path: Path) -> None:
    words = ["length_schedule=linear", f"length_schedule.mechanism={mechanism}", "data.max_steps=9"]
    config = compose(replaced(tiny, *words, "length_schedule.rope_follows=true")).config
    length_at = rotary_patching(config, tmp_path).length_at
    assert length_at is not None
    found = [length_at(step) for step in range(9)]
    assert (found[0], found[-1]) == (128, 1024)
    assert found == sorted(found)


@pytest.mark.parametrize("option", ["constant", "linear", "sort", "decomposition"])
def test_rope_is_the_finished_models_at_every_step_by_default(option: str, tiny: list[str], tmp_path: Path) -> None:
    config = compose(replaced(tiny, f"length_schedule={option}")).config
    assert rotary_patching(config, tmp_path).length_at is None
