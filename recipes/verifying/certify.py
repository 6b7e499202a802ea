"""The whole certificate: files, loaded model, fresh process, older readers, packed documents."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from lightning_modules.models.registry import register_models
from recipes.verifying.certificate import SKIPPED, VIOLATION, Certificate, Finding, Section
from recipes.verifying.dialects import what_older_readers_compute
from recipes.verifying.documents import whether_documents_leak
from recipes.verifying.files import what_the_files_say
from recipes.verifying.folder import Checkpoint, find_checkpoint, in_short
from recipes.verifying.loaded import (
    reload_in_fresh_process,
    what_a_fresh_process_reloads,
    what_the_model_computes,
)
from recipes.verifying.reload import Opened, open_folder

OURS_ALONE = ("index",)
"""Values of model_type that no other program knows."""


def certify(path: Path) -> Certificate:
    """Look at a checkpoint from all sides. Cost: the model is loaded twice, one after the other.

    Args:
        path: A Hugging Face folder, an adapter's folder, or a run's.

    Raises:
        ValueError: There is no checkpoint, or part of it is not on this disk.
    """
    started = time.perf_counter()
    checkpoint = find_checkpoint(path)
    register_models()
    fresh = reload_in_fresh_process(checkpoint)  # first, so that two copies of a large model are never alive together
    opened, problem = _opened(checkpoint)
    sections = [
        Section("what the files say", [*what_the_files_say(checkpoint)]),
        _section("what the loaded model computes", opened, problem, lambda it: what_the_model_computes(checkpoint, it)),
        _section(
            "what a fresh process reloads, with transformers alone",
            opened,
            "",
            lambda it: what_a_fresh_process_reloads(
                it, fresh, ours_alone=checkpoint.config.get("model_type") in OURS_ALONE
            ),
        ),
        Section("what readers of the older keys compute", [*what_older_readers_compute(checkpoint.text)]),
        _section("three documents packed in one row, one of them inside another", opened, "", _documents),
    ]
    return Certificate(str(path), _subject(checkpoint, opened), sections, time.perf_counter() - started)


def card_section(certificate: Certificate) -> str:
    """The certificate as a section of a model card, without the path that the folder has on this machine."""
    named = dataclasses.replace(certificate, checkpoint=Path(certificate.checkpoint).name)
    return f"## Certificate\n\n```\n{named.text()}\n```\n"


def _opened(checkpoint: Checkpoint) -> tuple[Opened | None, str]:
    """The model, or why it cannot be had."""
    try:
        return open_folder(checkpoint.folder, checkpoint.base), ""
    except Exception as error:  # anybody's folder may break a library anywhere, which is a finding
        return None, in_short(error)


def _section(title: str, opened: Opened | None, problem: str, look: Callable[[Opened], Iterator[Finding]]) -> Section:
    if opened is not None:
        return Section(title, [*look(opened)])
    if problem:
        return Section(title, [Finding(VIOLATION, f"it does not load: {problem}")])
    return Section(title, [Finding(SKIPPED, "the model does not load")])


def _documents(opened: Opened) -> Iterator[Finding]:
    if torch.cuda.is_available():
        opened.model.to("cuda")
    yield from whether_documents_leak(opened.model)


def _subject(checkpoint: Checkpoint, opened: Opened | None) -> str:
    parts = [", ".join(checkpoint.config.get("architectures") or ["unknown architecture"])]
    if opened is not None:
        model: Any = opened.model
        parts.append(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3g} M parameters")
        parts.append(str(model.dtype).removeprefix("torch."))
    parts += [f"adapter on {checkpoint.base}, merged"] if checkpoint.base else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{', '.join(parts)}; transformers {transformers.__version__}, torch {torch.__version__}, {device}"
