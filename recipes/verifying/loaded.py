"""What the loaded model computes, beside the closed form of what its config.json says and beside a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from lightning_modules.rope.certificate import (
    RotaryTable,
    expected_tables,
    live_tables,
    relative_difference,
    rope_faults,
    same_table,
)
from recipes.verifying import reload
from recipes.verifying.certificate import OK, SKIPPED, VIOLATION, WARNING, Finding
from recipes.verifying.dialects import as_config, described, newer_dialect
from recipes.verifying.folder import Checkpoint, in_short
from recipes.verifying.reload import Opened, logits, rotary_buffers

SAME_LOGITS = 1e-3
"""Of the largest logit: what another order of summation may change, far below what another RoPE does."""


ONE_ROPE = "make rope_parameters, rope_theta and rope_scaling say one RoPE"


class FreshAnswer(NamedTuple):
    """What a process of its own computed, or why it could not."""

    tensors: dict[str, torch.Tensor]
    problem: str = ""


def reload_in_fresh_process(checkpoint: Checkpoint) -> FreshAnswer:
    """Opens the folder with transformers alone, in a Python that never imports this repository."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.safetensors"
        # -P keeps the folder of the script, which has modules of ours, off the path.
        command = [sys.executable, "-P", str(reload.__file__), str(checkpoint.folder.resolve())]
        command += [str(checkpoint.base.resolve()) if checkpoint.base else "", str(answer)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return FreshAnswer({}, in_short(done.stderr.strip().rpartition("\n")[2]))
        return FreshAnswer(load_file(answer))


def what_the_model_computes(checkpoint: Checkpoint, opened: Opened) -> Iterator[Finding]:
    """Every live table against the closed form of config.json, read apart from the model."""
    model = opened.model
    if opened.missing:
        yield Finding(VIOLATION, f"weights are not in the folder and were drawn at random: {_some(opened.missing)}")
    if opened.unexpected:
        yield Finding(WARNING, f"weights of the folder have no place in the model: {_some(opened.unexpected)}")
    try:
        live = live_tables(model)
    except ValueError as error:
        yield Finding(WARNING, f"its RoPE cannot be looked at: {error}")
        return
    faults = rope_faults(model)
    yield from (Finding(VIOLATION, fault) for fault in faults)
    text = checkpoint.text
    try:
        expected = expected_tables(as_config(newer_dialect(text) if text.get("rope_parameters") else text))
    except ValueError as error:
        yield Finding(SKIPPED, f"no closed form: {error}")
        return
    for kind, tables in live.items():
        for table in tables:
            if not same_table(table, expected[kind]):
                yield Finding(VIOLATION, _other_than_said(table, expected[kind]), ONE_ROPE)
            elif not faults:
                yield Finding(OK, _as_said(table, expected[kind]))


def _other_than_said(table: RotaryTable, expected: RotaryTable) -> str:
    difference = relative_difference(table.inv_freq, expected.inv_freq)
    return (
        f"{table.name} computes {described(table.rope_parameters)}, and config.json says in rope_parameters "
        f"{described(expected.rope_parameters)}: inv_freq differs by up to {difference:.2g} times its value, and the "
        f"attention factor is {table.attention_factor:g} for {expected.attention_factor:g}"
    )


def _as_said(table: RotaryTable, expected: RotaryTable) -> str:
    difference = relative_difference(table.inv_freq, expected.inv_freq)
    closeness = f"within {difference:.0e}" if difference else "to the bit"
    return (
        f"{table.name}: {len(table.inv_freq)} frequencies in fp32, {closeness} of the closed form of config.json; "
        f"attention factor {table.attention_factor:g}"
    )


def what_a_fresh_process_reloads(opened: Opened, fresh: FreshAnswer, *, ours_alone: bool) -> Iterator[Finding]:
    """Tables and logits of the same random tokens, there and here.

    Args:
        opened: The model here, not used yet.
        fresh: What the other process computed.
        ours_alone: Whether the architecture is one that only this repository knows.
    """
    if fresh.problem:
        if ours_alone:
            words = "transformers alone does not know this architecture; readers need this repository"
            yield Finding(WARNING, words, "export it with export.layout=portable")
        else:
            yield Finding(VIOLATION, f"transformers alone cannot open the folder: {fresh.problem}")
        return
    tables = rotary_buffers(opened.model)
    differing = [name for name, table in tables.items() if not _equal(fresh.tensors.get(f"buffer {name}"), table)]
    if differing:
        yield Finding(VIOLATION, f"other frequencies: {_some(differing)}")
    else:
        yield Finding(OK, "the same frequencies, bit for bit")
    here, there = logits(opened.model), fresh.tensors["logits"]
    difference = float((here.float() - there.float()).abs().max()) if here.shape == there.shape else float("inf")
    if torch.equal(here, there):
        yield Finding(OK, f"the same logits of {reload.NUM_TOKENS} random tokens, bit for bit")
    elif difference <= SAME_LOGITS * float(there.float().abs().max()):
        yield Finding(OK, f"the same logits of {reload.NUM_TOKENS} random tokens but for rounding ({difference:.1e})")
    else:
        yield Finding(VIOLATION, f"other logits of {reload.NUM_TOKENS} random tokens, by up to {difference:.2g}")


def _equal(ours: torch.Tensor | None, theirs: torch.Tensor) -> bool:
    return ours is not None and ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
