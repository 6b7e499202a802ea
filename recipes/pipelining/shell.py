"""What a stage will hand over, before it has been trained: the export's config.json and tokenizer, and no weights.

Whatever the next stage is asked before the first one starts (its length, its RoPE, how its corpora are tokenised) needs
nothing else. Cost: the base model's configuration and tokenizer are read; the alternative, asking once the export is
there, says a mistake in the words of the last stage after days of training the first.
"""

from __future__ import annotations

import copy
from pathlib import Path

from omegaconf import DictConfig

from lightning_modules.rope.config import write_rope
from lightning_modules.rope.patch import resolve_rope
from recipes.build import build_rope, build_source, build_tokenizer
from recipes.exporting.chat_template import asking, with_chat_template
from recipes.exporting.hugging_face import save_tokenizer, write_both_dialects
from recipes.exporting.inserted_tokens import exported_tokenizer


def write_shell(config: DictConfig, folder: Path) -> None:
    """Write what the export of a run of this configuration will say of itself.

    Args:
        config: Of the stage; valid.
        folder: New.

    Raises:
        ValueError: The model cannot be read, or not taken to the stage's context length.
    """
    model_config = copy.deepcopy(build_source(config).config())
    rope = resolve_rope(model_config, build_rope(config), config.context_length)
    write_rope(model_config, rope.rope_parameters, max_position_embeddings=rope.max_position_embeddings)
    tokenizer = exported_tokenizer(config)
    tokenizer = with_chat_template(tokenizer, asking(config, build_tokenizer(config)))
    folder.mkdir(parents=True)
    model_config.save_pretrained(folder)
    write_both_dialects(folder / "config.json")
    save_tokenizer(tokenizer, folder, context_length=config.context_length)
