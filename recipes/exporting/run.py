"""The export of one run: weights of its checkpoint, RoPE of its recipe, numbers of its evaluation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.models.index.plain_llama import plain_llama
from lightning_modules.peft.merging import merge_adapter
from lightning_modules.peft.record import record_of
from recipes.build import build_adapter
from recipes.evaluating import adapted_model, trained_model
from recipes.exporting.adapter import export_adapter, export_trained_adapter, merged, wrapped
from recipes.exporting.card import adapter_section, model_card
from recipes.exporting.chat_template import asking, chat_sections, with_chat_template
from recipes.exporting.clients import client_section
from recipes.exporting.gguf import export_gguf, refuse_gguf
from recipes.exporting.hugging_face import export_hugging_face
from recipes.exporting.inserted_tokens import exported_tokenizer, token_sections
from recipes.exporting.lineage import lineage_section, starting_model
from recipes.exporting.settings import export_faults
from recipes.reporting.tables import comparison_table, read_scores
from recipes.run_folder import RunFolder
from recipes.verifying.certify import card_section, certify
from recipes.verifying.folder import read_json

ADAPTER_FOLDER = "export-adapter"
"""Of a run, where its adapter is exported alone."""


def export_run(config: DictConfig, run: RunFolder) -> Path:
    """Export a run into its own `export/` folder, with a model card and its certificate.

    Raises:
        ValueError: If the format cannot be written here, or not with this RoPE; nothing has been written then.
    """
    assert run.checkpoint is not None
    settings = config.export
    for fault in export_faults(settings, has_adapter=build_adapter(config) is not None):
        raise ValueError(fault)
    tokenizer = exported_tokenizer(config)
    how = asking(config, tokenizer)
    tokenizer = with_chat_template(tokenizer, how)
    trained = _trained(config, run, tokenizer)
    if trained is None:
        write_card(config, run)
        return run.path / ADAPTER_FOLDER
    model = portable(trained) if settings.layout == "portable" else trained
    if settings.format == "gguf":
        refuse_gguf(model.config.to_dict())
    folder = export_hugging_face(
        model,
        tokenizer,
        run.export,
        context_length=config.context_length,
        dtype=getattr(torch, settings.dtype),
        max_shard_size=settings.max_shard_size,
        stop_ids=how.stop_ids if how else (),
    )
    del model, trained  # the certificate loads the folder anew
    certificate = certify(folder)
    (run.path / "certificate.md").write_text(card_section(certificate), encoding="utf-8")
    if not certificate.clean:
        print(certificate.text(), file=sys.stderr)
    write_card(config, run)
    if settings.format == "gguf":  # last, for the folder is whole without it
        export_gguf(folder, dtype=settings.dtype)
        write_card(config, run)
    return folder


def _trained(config: DictConfig, run: RunFolder, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | None:
    """The whole model to export; its adapter is written on the way where `export.adapter_as` wants that.

    Returns:
        None where the adapter is all that is wanted.
    """
    assert run.checkpoint is not None
    settings, folder = config.export, run.path / ADAPTER_FOLDER
    alone = settings.adapter_as in ("adapter", "both")
    options: dict[str, Any] = {"context_length": config.context_length}
    if settings.adapter is None:
        trained = adapted_model(config, run.checkpoint)
        if record_of(trained) is None:
            return trained
        if alone:
            export_trained_adapter(trained, tokenizer, folder, **options)
        if settings.adapter_as == "adapter":
            return None
        merge_adapter(trained)
        return trained
    adapted = wrapped(trained_model(config, run.checkpoint), Path(settings.adapter).expanduser(), trained_on=run.export)
    if alone:
        export_adapter(adapted, tokenizer, folder, **options)
    return None if settings.adapter_as == "adapter" else merged(adapted)


def portable(model: PreTrainedModel) -> PreTrainedModel:
    """The model in an architecture that programs without our code know, giving the same logits."""
    return plain_llama(model) if isinstance(model, IndexForCausalLM) else model


def write_card(config: DictConfig, run: RunFolder) -> None:
    """The model cards of a run's exports, with the scores that the run has by now: of the model, and of its adapter."""
    shared = (*lineage_section(run), *chat_sections(config), *token_sections(config))
    if run.export.is_dir():
        sections = (*_sections(run, context_length=config.context_length), *shared)
        facts = {"adapter": _adapter_in_words(config)} if has_adapter(config) else {}
        _write_card(config, run, run.export, sections=sections, facts=facts)
    alone = run.path / ADAPTER_FOLDER
    if alone.is_dir():
        settings = read_json(alone / "adapter_config.json")
        name = settings["base_model_name_or_path"]
        base = None if name is None or Path(name).expanduser().exists() else name
        sections = (adapter_section(settings, read_json(alone / "config.json")), *shared)
        _write_card(config, run, alone, sections=sections, library="peft", base=base)


def has_adapter(config: DictConfig) -> bool:
    """Whether an adapter belongs to what a run exports, its own or one that was trained on it."""
    return config.export.adapter is not None or build_adapter(config) is not None


def _adapter_in_words(config: DictConfig) -> str:
    if config.export.adapter is not None:
        return f"{config.export.adapter}, merged into the weights"
    kind = type(build_adapter(config)).__name__
    return f"{kind} of rank {config.peft.r} and alpha {config.peft.alpha:g}, merged into the weights"


def _write_card(
    config: DictConfig,
    run: RunFolder,
    folder: Path,
    *,
    sections: tuple[str, ...],
    facts: Mapping[str, Any] | None = None,
    library: str = "transformers",
    base: str | None = None,
) -> None:
    scores = run.path / "scores.json"
    info = run.info()
    about = OmegaConf.to_container(config.about)
    assert isinstance(about, dict)
    card = model_card(
        recipe=config.recipe_name,
        about={str(key): value for key, value in about.items()},
        starts_from=starting_model(config),
        table=comparison_table(read_scores(scores)) if scores.exists() else "Not evaluated yet.",
        facts={
            "steps": info.get("steps"),
            "trained in": f"{info.get('seconds', 0) / 60:.1f} minutes on {info.get('hardware', 'unknown')}",
            "tokens": run.tokens,
            "context length": config.context_length,
            **(facts or {}),
            "versions": ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
            "commit": info["commit"],
        },
        sections=sections,
        library=library,
        base=base,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _sections(run: RunFolder, *, context_length: int) -> tuple[str, ...]:
    """Which programs read the export, and its certificate."""
    gguf = next((file.name for file in sorted(run.export.glob("*.gguf"))), "")
    programs = client_section(read_json(run.export / "config.json"), context_length=context_length, gguf=gguf)
    certificate = run.path / "certificate.md"
    return (programs, *([certificate.read_text(encoding="utf-8")] if certificate.exists() else []))
