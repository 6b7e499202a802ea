"""Tiny models of the seven families that the RoPE contract is proven on, and the methods that it is proven for."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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

ORIGINAL_LENGTH = 64
HEAD_DIM = 16
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2")

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = {"rope_type": "default", "rope_theta": 1000.0}
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": HEAD_DIM},
    "mistral": {"head_dim": HEAD_DIM, "sliding_window": None},
    "gemma3_text": {
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 48,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": SLIDING, "full_attention": DEFAULT},
    },
    "phi3": {"original_max_position_embeddings": ORIGINAL_LENGTH},
}

LONG_FACTOR = [1.0 + 0.9 * k for k in range(HEAD_DIM // 2)]
SHORT_FACTOR = [1.0 + 0.05 * k for k in range(HEAD_DIM // 2)]


class Case(NamedTuple):
    method: RopeMethod
    context_length: int
    changes: dict[str, Any]  # of rope_parameters, worked out by hand
    max_position_embeddings: int


def case(method: RopeMethod, context_length: int, covered: int | None = None, **changes: Any) -> Case:
    return Case(method, context_length, changes, covered or context_length)


LENGTHS_BEFORE: dict[str, Any] = {"original_max_position_embeddings": ORIGINAL_LENGTH}
RAMP: dict[str, Any] = {"beta_fast": 32.0, "beta_slow": 1.0}
TURNS: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = {
    "unchanged": case(Unchanged(), 64),
    "linear": case(LinearInterpolation(), 400, rope_type="linear", factor=6.25),
    "linear_given": case(LinearInterpolation(factor=8), 400, 512, rope_type="linear", factor=8.0),
    "adjusted_base": case(AdjustedBase(320000), 400, rope_theta=320000.0),
    "ntk_aware": case(NTKAware(), 512, rope_theta=10000.0 * 8 ** (16 / 14)),
    "dynamic_ntk": case(DynamicNTK(), 512, 64, rope_type="dynamic", factor=8.0),
    "yarn": case(YaRN(), 400, rope_type="yarn", factor=6.25, **LENGTHS_BEFORE, **RAMP),
    "yarn_options": case(
        YaRN(factor=8, beta_fast=4, beta_slow=0.5, attention_factor=1.3, truncate=False),
        *(500, 512),
        **{"rope_type": "yarn", "factor": 8.0, **LENGTHS_BEFORE, "beta_fast": 4.0, "beta_slow": 0.5},
        attention_factor=1.3,
        truncate=False,
    ),
    "longrope": case(
        LongRoPE(LONG_FACTOR, SHORT_FACTOR),
        512,
        **{"rope_type": "longrope", "factor": 8.0, **LENGTHS_BEFORE},
        long_factor=LONG_FACTOR,
        short_factor=SHORT_FACTOR,
    ),
    "llama3": case(Llama3(factor=8), 512, rope_type="llama3", factor=8.0, **LENGTHS_BEFORE, **TURNS),
    "progressive_base": case(ProgressiveBase([[128, 4e4], [512, 9e5]]), 400, rope_theta=9e5),
}

OF_DEFAULT_OR_LONGROPE = ("unchanged", "adjusted_base", "ntk_aware", "longrope", "progressive_base")
CELLS = [
    (family, name)
    for family in FAMILIES
    for name in CASES
    if (family != "phi3" or name in OF_DEFAULT_OR_LONGROPE)  # transformers' Phi-3 takes these two types alone
    and (family != "gemma3_text" or name != "yarn_options")  # transformers does not read truncate in nested parameters
]


def settings(family: str, **overrides: Any) -> dict[str, Any]:
    """Arguments of the family's config."""
    return {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": ORIGINAL_LENGTH,
        "rope_parameters": DEFAULT,
        "initializer_range": 0.2,  # large enough that attention matters to the logits
        "use_cache": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **OWN_SETTINGS.get(family, {}),
        **overrides,
    }


def shaped_config(family: str, **overrides: Any) -> Any:
    return AutoConfig.for_model(family, **copy.deepcopy(settings(family, **overrides)))


def shaped_model(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(shaped_config(family, **overrides)).eval()


def logits(model: Any, length: int) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(length)[None] * 7 % 64).logits
