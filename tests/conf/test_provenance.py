"""Every number of every preset and variant says where it comes from, and planted faults are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import compose as composing
from recipes.provenance.grammar import KINDS
from recipes.provenance.reading import preset_file, provenance_faults, stated_numbers

CONF = composing.conf_folder()
FILES = sorted(path for group in ("recipe", "variant") for path in (CONF / group).rglob("*.yaml"))
NAMES = [path.relative_to(CONF).with_suffix("").as_posix() for path in FILES]
NUM_PRESETS = 6


def test_presets_and_variants_are_all_found() -> None:
    assert len([name for name in NAMES if name.startswith("recipe/")]) == len(composing.presets()) >= NUM_PRESETS
    assert "variant/none" in NAMES


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_every_number_says_where_it_comes_from(file: Path) -> None:
    assert provenance_faults(file) == []
    stated = stated_numbers(file)
    assert all(number.kind in KINDS and number.text for number in stated)
    if file.parts[-3:] != (*CONF.parts[-1:], "variant", "none.yaml"):
        assert len(stated) >= (10 if "recipe" in file.parts else 1)


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        (
            "rope_theta: 320000.0 # published",
            "rope_theta: 320000.0 # publishd",
            "rope.rope_theta has the comment '# publishd",
        ),
        ("lr: 1.0e-3 # our choice", "lr: 1.0e-3 # guessed", "optimizer.lr has the comment '# guessed"),
        (
            "context_length: 4096 #",
            "context_length: 4096\nresume: null #",
            "context_length does not say where it comes from",
        ),
        (
            "warmup_steps: 5 # our choice",
            "warmup_steps: 5 # our choice: -\n#",
            "lr_schedule.warmup_steps is 'our choice'",
        ),
        (
            "extension_factor: 8.0",
            "extension_factor: 7.0",
            "extension_factor is 7.0, but 'context_length / 512' gives 8;",
        ),
        ("about:", "precision: bf16\nabout:", "precision does not say"),
        ("  lr: 1.0e-3", "  lr: 1.0e-3 # our choice: once\n  lr: 1.0e-3", "optimizer.lr stands twice, first in line"),
    ],
)
def test_fault_planted_in_a_preset_is_named_with_its_line(
    right: str, wrong: str, sentence: str, tmp_path: Path
) -> None:
    text = preset_file("demo/extend").read_text(encoding="utf-8")
    assert text.count(right) == 1
    file = tmp_path / "planted.yaml"
    file.write_text(text.replace(right, wrong), encoding="utf-8")
    (fault,) = provenance_faults(file)
    assert sentence in fault
    line = int(fault.split("line ")[1].split(":")[0])
    assert sentence.split()[0].split(".")[-1] in file.read_text(encoding="utf-8").splitlines()[line - 1]
