"""Scores of what the cells of a grid start from, each measured once.

All cells of one base model share the base's scores, and those with the same RoPE change share its untrained ones. They
are kept on disk, under a key of everything that they depend on, so that a killed grid does not measure them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from lightning_modules.loading import ModelFromScratch
from recipes.build import build_source
from recipes.evaluating import BASE, UNTRAINED, Evaluation, base_model, measured, untrained_model
from recipes.reporting.tables import VariantScores, read_scores, write_scores
from recipes.run_folder import base_fingerprint


class SharedStartingScores:
    """What `starting_scores` measures, without measuring anything twice.

    Args:
        folder: Where scores are kept; below it each has a folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, config: DictConfig, evaluation: Evaluation) -> list[VariantScores]:
        """The base model as it is, and with the recipe's RoPE untrained; none where the recipe starts from scratch."""
        if isinstance(build_source(config), ModelFromScratch):
            return []
        return [self.base(config, evaluation), self.untrained(config, evaluation)]

    def base(self, config: DictConfig, evaluation: Evaluation) -> VariantScores:
        """The base model as it is."""
        return self._kept(config, evaluation, BASE, base_model, {})

    def untrained(self, config: DictConfig, evaluation: Evaluation) -> VariantScores:
        """The base model with the recipe's RoPE, not trained."""
        rope = {"rope": OmegaConf.to_container(config.rope, resolve=True), "context_length": config.context_length}
        return self._kept(config, evaluation, UNTRAINED, untrained_model, rope)

    def _kept(
        self,
        config: DictConfig,
        evaluation: Evaluation,
        name: str,
        model: Callable[[DictConfig], PreTrainedModel],
        change: dict[str, Any],
    ) -> VariantScores:
        model_node = OmegaConf.to_container(config.model, resolve=True)
        key = {"model": model_node, "fingerprint": base_fingerprint(config), **change, **measured(config)}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        file = self.folder / digest / "scores.json"
        if not file.exists():
            scores = evaluation.scores(model(config), name)
            write_scores([scores], json_path=file, csv_path=file.with_suffix(".csv"))
        return read_scores(file)[0]
