"""The models that are exported and read: the demo model, and a tiny one of each family, with each RoPE method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lightning_modules.rope.methods import (
    AdjustedBase,
    DynamicNTK,
    LinearInterpolation,
    Llama3,
    LongRoPE,
    NTKAware,
    ProgressiveBase,
    RopeMethod,
    Unchanged,
    YaRN,
)
from lightning_modules.rope.patch import extend_rope
from recipes.exporting.hugging_face import export_hugging_face

DEMO = Path(__file__).parents[2] / "lightning_modules/models/demo"
EXTENSION = 4
"""Nothing is trained here: a reader need not read well to agree."""

DEFAULT_OR_LONGROPE = ("phi3",)
"""Families of which transformers 5 itself takes these two types alone."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 48,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "phi3": {"original_max_position_embeddings": 64},
    "olmo2": {},
}


class Case(NamedTuple):
    """A model whose RoPE was changed as a recipe changes it, in memory."""

    family: str
    method: str
    model: Any
    tokenizer: Any
    context_length: int

    def export(self, folder: Path) -> Path:
        return export_hugging_face(self.model, self.tokenizer, folder, context_length=self.context_length)


def methods(*, original_length: int, head_dim: int) -> dict[str, RopeMethod]:
    """Every RoPE method, and those that have options with some of them."""
    length = EXTENSION * original_length
    return {
        "unchanged": Unchanged(),
        "linear": LinearInterpolation(),
        "adjusted_base": AdjustedBase(320000.0),
        "ntk_aware": NTKAware(),
        "dynamic_ntk": DynamicNTK(),
        "yarn": YaRN(),
        "yarn, betas 16 and 2": YaRN(beta_fast=16.0, beta_slow=2.0),
        "yarn, attention factor 1.3": YaRN(attention_factor=1.3),
        "yarn, truncate false": YaRN(truncate=False),
        "longrope": LongRoPE([1.0 + 0.1 * k for k in range(head_dim // 2)]),
        "llama3": Llama3(),
        "progressive_base": ProgressiveBase([[length // 2, 4e4], [length, 9e4]]),
    }


DEMO_METHODS = methods(original_length=512, head_dim=64)
TINY_METHODS = methods(original_length=64, head_dim=16)
TINY_CELLS = [
    (family, name)
    for family in FAMILIES
    for name, method in TINY_METHODS.items()
    if not (family in DEFAULT_OR_LONGROPE and isinstance(method, LinearInterpolation | DynamicNTK | YaRN | Llama3))
    and not (family == "gemma3_text" and name == "yarn, truncate false")  # transformers 5 does not read it there
]


def demo_case(name: str) -> Case:
    """The demo model, from 512 tokens to 2048."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="sdpa")
    return _extended(
        model, AutoTokenizer.from_pretrained(DEMO), f"demo ({model.config.model_type})", name, DEMO_METHODS
    )


def tiny_case(family: str, name: str) -> Case:
    """A model with drawn weights, from 64 tokens to 256."""
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "initializer_range": 0.2,  # large enough that attention matters to the logits
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            **copy.deepcopy(FAMILIES[family]),
        },
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    return _extended(model, tokenizer, f"tiny {family}", name, TINY_METHODS)


def _extended(model: Any, tokenizer: Any, family: str, name: str, known: dict[str, RopeMethod]) -> Case:
    length = model.config.max_position_embeddings * (1 if name == "unchanged" else EXTENSION)
    extend_rope(model, known[name], length)
    return Case(family, name, model.eval(), tokenizer, length)
