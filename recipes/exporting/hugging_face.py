"""A trained model as a Hugging Face folder that other programs open.

`config.json` carries the RoPE in both dialects: transformers 5 reads `rope_parameters`, older readers `rope_theta` and
`rope_scaling`. With only one of them the other side falls back to the default RoPE without an error.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from recipes.verifying.dialects import older_keys
from recipes.verifying.folder import text_part


def export_hugging_face(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    context_length: int,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | None = None,
    stop_ids: Sequence[int] = (),
) -> Path:
    """Write model and tokenizer, with its chat template, to a folder, whole or not at all.

    Args:
        model: The model, its RoPE already patched; an adapter of it already merged.
        tokenizer: Its tokenizer.
        folder: Final place; an earlier export there is replaced.
        context_length: Tokens that the model reads, written into the tokenizer too.
        dtype: Precision of the weights on disk.
        max_shard_size: Largest file of weights, such as 5GB, in units of 1000; one file if None.
        stop_ids: What ends an answer, besides what the model has for it.
    """
    converted: dict[Any, torch.Tensor] = {}  # tied weights stay one tensor, which is written once
    state = {
        name: converted.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().to(dtype))
        for name, tensor in model.state_dict().items()
    }
    num_bytes = sum(tensor.nbytes for tensor in state.values())
    with torch.device("meta"):
        shell = type(model)(copy.deepcopy(model.config))
        shell.to(dtype=dtype)  # pyright: ignore[reportCallIssue]  # save_pretrained writes the shell's dtype
    shell.config.use_cache = True
    shell.generation_config = _for_generating(model.generation_config, context_length, stop_ids)
    with replaced_whole(folder) as partial:
        shell.save_pretrained(partial, state_dict=state, max_shard_size=max_shard_size or num_bytes + 1)
        save_tokenizer(tokenizer, partial, context_length=context_length)
        write_both_dialects(partial / "config.json")
    return folder


@contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the final one's place only once everything is written."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, *, context_length: int) -> None:
    """Write the tokenizer, which from then on says how far the model reads."""
    tokenizer.model_max_length = context_length
    tokenizer.save_pretrained(folder)


def write_both_dialects(file: Path) -> None:
    """Add the keys of transformers 4 to a `config.json` of transformers 5, and make its length an integer.

    They stand where the language model's other keys are: at the top, or in the `text_config` of a multimodal model.
    """
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    text = text_part(config)
    if parameters := text.get("rope_parameters"):
        text.update(older_keys(parameters, model_type=text["model_type"]))
    if (length := text.get("max_position_embeddings")) is not None:
        text["max_position_embeddings"] = int(length)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _for_generating(settings: GenerationConfig, context_length: int, stop_ids: Sequence[int]) -> GenerationConfig:
    """The base model's own settings, without what would slow generation down or end it at the base model's length.

    Whoever generates stops at the tokens named here, which for a base model is EOS alone.
    """
    settings = copy.deepcopy(settings)
    settings.use_cache = True
    if settings.max_length is not None:
        settings.max_length = max(settings.max_length, context_length)
    own = settings.eos_token_id
    ends = dict.fromkeys([*(own if isinstance(own, list) else [] if own is None else [own]), *stop_ids])
    if len(ends) > 1 or own is None:
        settings.eos_token_id = [*ends] if len(ends) > 1 else next(iter(ends), None)
    return settings
