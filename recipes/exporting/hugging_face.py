"""A trained model as a Hugging Face folder that other programs open.

`config.json` carries the RoPE in both dialects: transformers 5 reads `rope_parameters`, older readers `rope_theta` and
`rope_scaling`. With only one of them the other side falls back to the default RoPE without an error.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_hugging_face(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    context_length: int,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write model and tokenizer to a folder, whole or not at all.

    Args:
        model: The model, its RoPE already patched.
        tokenizer: Its tokenizer.
        folder: Final place; an earlier export there is replaced.
        context_length: Tokens that the model reads, written into the tokenizer too.
        dtype: Precision of the weights on disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    converted: dict[Any, torch.Tensor] = {}  # tied weights stay one tensor, which is written once
    state = {
        name: converted.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().to(dtype))
        for name, tensor in model.state_dict().items()
    }
    with torch.device("meta"):
        shell = type(model)(copy.deepcopy(model.config))
        shell.to(dtype=dtype)  # pyright: ignore[reportCallIssue]  # save_pretrained writes the shell's dtype
    shell.config.use_cache = True
    shell.generation_config = model.generation_config
    shell.save_pretrained(partial, state_dict=state)
    tokenizer.model_max_length = context_length
    tokenizer.save_pretrained(partial)
    write_both_dialects(partial / "config.json")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def write_both_dialects(file: Path) -> None:
    """Add `rope_theta` and `rope_scaling`, the keys of transformers 4, to a `config.json` of transformers 5."""
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    parameters = config.get("rope_parameters")
    if not parameters or "rope_theta" not in parameters:
        return  # several rope types per layer kind have no older dialect
    config["rope_theta"] = parameters["rope_theta"]
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    config["max_position_embeddings"] = int(config["max_position_embeddings"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_card(*, recipe: str, about: dict[str, Any], table: str, facts: dict[str, Any]) -> str:
    """The README.md of an exported model: recipe, numbers, versions."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        f"# {recipe}",
        "",
        f"Trained by `python -m recipes.run recipe={recipe}` of long-context-recipes.",
        f"Paper: {about['paper']}. Extends: {about['extends']}.",
        "",
        table.strip(),
        "",
        "Perplexity is of the same last tokens of held-out windows at every length; needle recall is teacher-forced"
        " exact match, mean over depths.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"
