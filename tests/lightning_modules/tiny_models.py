"""Models of a few thousand parameters, of the architectures that the recipes train."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM

ARCHITECTURES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def tiny_config(architecture: str, **overrides: Any) -> PreTrainedConfig:
    options = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": 0.2,  # large enough that attention matters to the logits
        "use_cache": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return ARCHITECTURES[architecture][0](**{**options, **overrides})


def tiny_model(architecture: str, *, attention: str = "sdpa", seed: int = 0, **overrides: Any) -> Any:
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture][1](tiny_config(architecture, **overrides))
    model.set_attn_implementation(attention)
    return model
