"""transformers 4.57, which knows nothing of `rope_parameters`, beside the model that was exported."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.readers import read_with_transformers
from benchmarks.readers.cases import DEMO_METHODS, TINY_CELLS, TINY_METHODS, Case, demo_case, tiny_case
from benchmarks.readers.read_with_transformers import STRIDE
from benchmarks.readers.report import Reading, relative_difference
from recipes.verifying.dialects import newer_dialect, without

REFUSED = [("tiny olmo2", name) for name in TINY_METHODS if name.startswith(("yarn", "longrope", "llama3"))]
"""OLMo-2 takes linear and dynamic alone there."""


def compare(python: str) -> tuple[str, list[Reading]]:
    """Exports every case, has the other Python read it, and compares logits.

    Args:
        python: The interpreter of an environment with transformers 4.57.

    Returns:
        What that environment calls itself, and a reading for every case.
    """
    with tempfile.TemporaryDirectory() as place:
        names = [("demo", method) for method in DEMO_METHODS] + TINY_CELLS
        folders = [Path(place) / f"{number}" for number in range(len(names))]
        cases = (demo_case(method) if family == "demo" else tiny_case(family, method) for family, method in names)
        described = [_write(case, folder) for case, folder in zip(cases, folders, strict=True)]
        version = _read(python, [*folders, *(folder / "planted" for folder in folders)])
        return version, [
            Reading(*who, _answer(folder), _answer(folder / "planted"), may_refuse=who in REFUSED)
            for who, folder in zip(described, folders, strict=True)
        ]


def without_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The planted fault: the config.json that transformers 5 writes by itself."""
    own = ("original_max_position_embeddings",) if config["model_type"] != "phi3" else ()
    return without(newer_dialect(config), *own)


@torch.no_grad()
def _write(case: Case, folder: Path) -> tuple[str, str]:
    """Exports a case twice, once with the fault, with tokens to read and the logits of the model in memory."""
    case.export(folder)
    tokens = torch.randint(0, case.model.config.vocab_size, (case.context_length,), generator=_generator())
    logits = case.model(input_ids=tokens[None], use_cache=False).logits[0, ::STRIDE]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    planted = folder / "planted"
    planted.mkdir()
    (planted / "config.json").write_text(json.dumps(without_older_keys(config)), encoding="utf-8")
    (planted / "model.safetensors").symlink_to(folder / "model.safetensors")
    for one in (folder, planted):
        np.save(one / "tokens.npy", tokens.numpy())
        np.save(one / "ours.npy", logits.numpy())
    return case.family, case.method


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _read(python: str, folders: Iterable[Path]) -> str:
    command = [python, "-P", str(read_with_transformers.__file__), *map(str, folders)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()


def _answer(folder: Path) -> float | str:
    """Largest difference of a logit, over the largest logit; or why the reader refused."""
    if (refusal := folder / "theirs.txt").exists():
        return refusal.read_text(encoding="utf-8")
    return relative_difference(np.load(folder / "ours.npy"), np.load(folder / "theirs.npy"))
