"""Tokens that a run's augmentation put in, in its export: by name in the tokenizer, and as a section of the model card.

Only rows that had no token are named. A tokenizer whose vocabulary is full stays as it is, and the card says which of
its tokens mean what: renaming a token of a vocabulary of bytes would break it.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from datamodules.augmentations.token_names import with_names
from recipes.build import build_augmentation, build_bare_augmentation, build_tokenizer


def exported_tokenizer(config: DictConfig) -> Any:
    """The tokenizer of a run that knows what was put in by name, where it can."""
    tokenizer = build_tokenizer(config)
    return with_names(tokenizer, _inserted(config, tokenizer))


def token_sections(config: DictConfig) -> tuple[str, ...]:
    """The section of the model card on what was put in; none where nothing was."""
    if not _inserts(config):
        return ()
    tokenizer = build_tokenizer(config)
    inserted = _inserted(config, tokenizer)
    vocabulary = with_names(tokenizer, inserted).get_vocab()
    called = {row: name for name, row in vocabulary.items()}
    named = all(name in vocabulary for name in inserted)
    lines = [
        "## Inserted tokens",
        "",
        "Training put these tokens between those of the texts; no text is tokenised into them.",
        "The tokenizer has them under these names, as special tokens."
        if named
        else "Where the tokenizer has no token of that name, it has the one in the last column, or none.",
        "",
        "| inserted | id | the tokenizer's |",
        "|:---------|---:|:----------------|",
        *(f"| `{_cell(name)}` | {row} | {_shown(called.get(row))} |" for name, row in inserted.items()),
    ]
    return ("\n".join(lines),)


def _inserts(config: DictConfig) -> bool:
    """Whether the augmentation has tokens of its own; loads no tokenizer, which the demo's would be trained for."""
    return hasattr(type(build_bare_augmentation(config)), "inserted_ids")


def _inserted(config: DictConfig, tokenizer: Any) -> dict[str, int]:
    """Name -> id of what the augmentation puts in."""
    augmentation: Any = build_augmentation(config, tokenizer) if _inserts(config) else None
    return {} if augmentation is None else augmentation.inserted_ids


def _shown(name: str | None) -> str:
    return "no token" if name is None else f"`{_cell(name)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
