"""Where a model comes from: a Hugging Face folder or name, or a configuration and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lightning_modules.attention.registry import register_attention_functions
from lightning_modules.models.registry import register_models

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PretrainedModel:
    """A decoder of the Hugging Face hub or of a folder.

    Code inside a checkpoint is never run, nor does transformers ask whether it may; Index-1.9B has code of ours, and
    Skywork-13B is read as the Llama that it is.

    Args:
        name_or_path: Hub name or folder.
        revision: Branch, tag or commit of a hub name.
        attention: Name of one of our attention functions.
        dtype: Of the weights: float32, or bfloat16 for a frozen base model, which then takes half the memory. RoPE
            tables are fp32 either way.

    Raises:
        ValueError: `dtype` is another.
    """

    name_or_path: str
    revision: str | None = None
    attention: str = "lcr_per_document"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"model.source.dtype={self.dtype} is not known; allowed are {', '.join(DTYPES)}")

    def config(self) -> PretrainedConfig:
        """The model's configuration, without its weights.

        Raises:
            ValueError: There is no such model, or it cannot be read.
        """
        register_models()
        try:
            return AutoConfig.from_pretrained(self.name_or_path, revision=self.revision, trust_remote_code=False)
        except (OSError, ValueError, StrictDataclassError) as error:  # the last: a length of 32768.0, for one
            raise ValueError(self._unreadable(error)) from error

    def load(self) -> PreTrainedModel:
        """The model. Lower precision of the computing is the trainer's business; RoPE tables are fp32 either way."""
        register_attention_functions()
        register_models()
        try:
            return AutoModelForCausalLM.from_pretrained(
                self.name_or_path,
                revision=self.revision,
                dtype=DTYPES[self.dtype],
                attn_implementation=self.attention,
                trust_remote_code=False,
            )
        except OSError as error:
            raise ValueError(self._unreadable(error)) from error

    def _unreadable(self, error: Exception) -> str:
        lines = [line.strip() for line in str(error).strip().splitlines()]
        reason = " ".join(lines) if isinstance(error, StrictDataclassError) else lines[0]
        return f"model {self.name_or_path} cannot be read ({reason}); set model.source.name_or_path"


@dataclass(frozen=True)
class ModelFromScratch:
    """A decoder with freshly drawn weights.

    Args:
        settings: transformers configuration, with `model_type`.
        seed: Draws the weights.
        attention: Name of one of our attention functions.
    """

    settings: Mapping[str, Any]
    seed: int
    attention: str = "lcr_per_document"

    def config(self) -> PretrainedConfig:
        register_models()
        return AutoConfig.for_model(**dict(self.settings))

    def load(self) -> PreTrainedModel:
        register_attention_functions()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(self.config(), attn_implementation=self.attention)
