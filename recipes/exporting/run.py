"""The export of one run: weights of its checkpoint, RoPE of its recipe, numbers of its evaluation."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from recipes.build import build_tokenizer
from recipes.evaluating import trained_model
from recipes.exporting.hugging_face import export_hugging_face, model_card
from recipes.reporting.tables import comparison_table, read_scores
from recipes.run_folder import RunFolder


def export_run(config: DictConfig, run: RunFolder) -> Path:
    """Export a run into its own `export/` folder, with a model card."""
    assert run.checkpoint is not None
    folder = export_hugging_face(
        trained_model(config, run.checkpoint),
        build_tokenizer(config),
        run.export,
        context_length=config.context_length,
        dtype=getattr(torch, config.export.dtype),
    )
    write_card(config, run)
    return folder


def write_card(config: DictConfig, run: RunFolder) -> None:
    """The model card of a run's export, with the scores that the run has by now."""
    scores = run.path / "scores.json"
    info = run.info()
    about = OmegaConf.to_container(config.about)
    assert isinstance(about, dict)
    card = model_card(
        recipe=config.recipe_name,
        about={str(key): value for key, value in about.items()},
        table=comparison_table(read_scores(scores)) if scores.exists() else "Not evaluated yet.",
        facts={
            "steps": info.get("steps"),
            "trained in": f"{info.get('seconds', 0) / 60:.1f} minutes on {info.get('hardware', 'unknown')}",
            "tokens": info["mechanism"]["data.tokens_per_step"] * info.get("steps", 0),
            "context length": config.context_length,
            "versions": ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
            "commit": info["commit"],
        },
    )
    (run.export / "README.md").write_text(card, encoding="utf-8")
