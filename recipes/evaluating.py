"""Measuring a model: perplexity by length and needle recall, on the recipe's held-out text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.evaluation import NeedleGrid, tail_windows
from datamodules.tokens.store import TokenStore
from datamodules.tokens.tokenise import TokenPolicy, prepare_store
from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.checkpointing import load_weights
from lightning_modules.evaluation.scoring import needle_recall, perplexity_by_length
from lightning_modules.loading import ModelFromScratch
from lightning_modules.peft.merging import merge_adapter
from lightning_modules.peft.record import record_of
from lightning_modules.rope.patch import apply_rope_method
from recipes.build import COMPUTE_DTYPES, build, build_adapter, build_rope, build_source, build_tokenizer
from recipes.reporting.figures import plot_needles, plot_perplexity
from recipes.reporting.tables import VariantScores, comparison_table, write_scores
from recipes.run_folder import RunFolder

BASE, UNTRAINED, TRAINED = "base as it is", "RoPE changed, untrained", "after training"


StartingScores = Callable[[DictConfig, "Evaluation"], list[VariantScores]]
"""How a run comes by the scores of what it started from; `starting_scores` measures them."""


class Evaluation:
    """The inputs of one evaluation, made once and scored on several models.

    Args:
        config: The recipe; its `evaluation` node says what is measured.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        settings = config.evaluation
        if settings.corpus is None:
            raise ValueError("evaluation.corpus has no value; name held-out text, as corpus.validation does")
        policy = TokenPolicy(append_eos=False)
        options = {"policy": policy, "cache_dir": Path(config.cache_dir), "name": "evaluation"}
        store = prepare_store(build(settings.corpus), tokenizer, **options)
        self.settings = settings
        self.dtype = None if config.precision == "fp32" else COMPUTE_DTYPES[config.precision]
        self.device = torch.device(
            "cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu"
        )
        self.windows = tail_windows(
            store.tokens,
            store.offsets,
            lengths=list(settings.lengths),
            num_windows=settings.perplexity.num_windows,
            tail_tokens=settings.perplexity.tail_tokens,
            seed=settings.seed,
        )
        self.needles = None if not settings.needle.num_samples else self._needles(store, tokenizer)

    def _needles(self, store: TokenStore, tokenizer: PreTrainedTokenizerBase) -> NeedleGrid:
        settings = self.settings
        return NeedleGrid(
            tokenizer=tokenizer,  # type: ignore[arg-type]  # encode() of transformers takes more than ours asks for
            haystack_tokens=store.tokens,
            haystack_offsets=store.offsets,
            lengths=list(settings.lengths),
            depths=list(settings.needle.depths),
            num_samples=settings.needle.num_samples,
            seed=settings.seed,
        )

    def scores(self, model: PreTrainedModel, name: str) -> VariantScores:
        """Measure one model."""
        print(f"evaluating: {name} …", file=sys.stderr, flush=True)
        model.to(self.device)  # type: ignore[arg-type]
        options: dict[str, Any] = {
            "batch_tokens": self.settings.batch_tokens,
            "dtype": self.dtype,
            "attention_kwargs": _attention_facts,
        }
        tail_tokens = self.settings.perplexity.tail_tokens
        perplexity = perplexity_by_length(model, self.windows, tail_tokens=tail_tokens, **options)
        needles = None if self.needles is None else needle_recall(model, self.needles, **options)
        return VariantScores(name, perplexity, needles)


def _attention_facts(document_ids: torch.Tensor) -> dict[str, Any]:
    return {"document_ids": document_ids, "document_layout": DocumentLayout.from_document_ids(document_ids)}


def base_model(config: DictConfig) -> PreTrainedModel:
    """The model that the recipe starts from."""
    return build_source(config).load()


def untrained_model(config: DictConfig) -> PreTrainedModel:
    """The starting model with the recipe's RoPE and nothing trained."""
    model = base_model(config)
    apply_rope_method(model, build_rope(config), config.context_length)
    return model


def evaluate_run(config: DictConfig, run: RunFolder, *, starting: StartingScores) -> str:
    """Measure a run's checkpoint beside what it started from, write that into its folder and return the table."""
    assert run.checkpoint is not None
    evaluation = Evaluation(config, build_tokenizer(config))
    variants = starting(config, evaluation)
    variants.append(evaluation.scores(trained_model(config, run.checkpoint), TRAINED))
    return report(config, variants, run.path)


def measured(config: DictConfig) -> dict[str, Any]:
    """Everything that scores depend on beside the model."""
    settings = OmegaConf.to_container(config.evaluation, resolve=True)
    return {"evaluation": settings, "precision": config.precision, "attention": config.attention.name}


def starting_scores(config: DictConfig, evaluation: Evaluation) -> list[VariantScores]:
    """The base model as it is, and with the recipe's RoPE untrained; nothing where the recipe starts from scratch."""
    if isinstance(build_source(config), ModelFromScratch):
        return []
    return [
        evaluation.scores(base_model(config), BASE),
        evaluation.scores(untrained_model(config), UNTRAINED),
    ]


def trained_model(config: DictConfig, checkpoint: Path) -> PreTrainedModel:
    """The model of a training checkpoint, with the recipe's RoPE; an adapter is added into the weights."""
    model = adapted_model(config, checkpoint)
    if record_of(model) is not None:
        merge_adapter(model)
    return model


def adapted_model(config: DictConfig, checkpoint: Path) -> PreTrainedModel:
    """The model of a training checkpoint as it trained: an adapter stands beside the weights."""
    model = untrained_model(config)
    if (adapter := build_adapter(config)) is not None:
        adapter.put_into(model)
    load_weights(checkpoint, model)
    return model


def report(config: DictConfig, variants: Sequence[VariantScores], folder: Path) -> str:
    """Write the numbers and the pictures of an evaluation into a run's folder and return the table."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    write_scores(variants, json_path=folder / "scores.json", csv_path=folder / "scores.csv")
    RunFolder(folder).update(measured=measured(config))
    original = config.model.original_context_length
    series = {variant.name: variant.perplexity for variant in variants}
    plot_perplexity(series, trained_length=original, path=figures / "perplexity.png")
    needles = {variant.name: variant.needles for variant in variants if variant.needles}
    if needles:
        plot_needles(needles, original_length=original, path=figures / "needle.png")
    return comparison_table(variants)
