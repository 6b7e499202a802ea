from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from lightning_modules.rope.certificate import live_tables, relative_difference, rope_faults
from tests.lightning_modules.tiny_models import tiny_model

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + k / 8 for k in range(8)],
        "long_factor": [2.0 + k for k in range(8)],
    },
}


def model_of(rope_type: str) -> Any:
    return tiny_model("llama", rope_parameters={"rope_type": rope_type, "rope_theta": 5e5, **ROPES[rope_type]})


@pytest.mark.parametrize("rope_type", ROPES)
def test_what_transformers_builds_has_no_fault_before_and_after_it_read_beyond_its_length(rope_type: str):
    model = model_of(rope_type)
    assert rope_faults(model) == []
    model(torch.zeros(1, 100, dtype=torch.long))
    assert rope_faults(model) == []


@pytest.mark.parametrize("rope_type", ROPES)
def test_one_frequency_that_is_off_by_a_thousandth_is_a_fault(rope_type: str):
    model = model_of(rope_type)
    follows_length = rope_type in ("dynamic", "longrope")
    table = getattr(model.model.rotary_emb, f"{'original_' if follows_length else ''}inv_freq")
    table[3] *= 1.001
    (fault,) = rope_faults(model)
    assert fault.startswith("model.rotary_emb.inv_freq is not that of config.rope_parameters=")
    assert "1.0e-03" in fault


def test_an_attention_factor_that_is_not_the_configs_is_a_fault():
    model = model_of("yarn")
    model.model.rotary_emb.attention_scaling = 1.0
    (fault,) = rope_faults(model)
    assert "multiplies cos and sin by 1, not by 1.20794 as" in fault


def test_each_layer_kind_of_gemma_is_judged_by_its_own_rope():
    parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    }
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    config = Gemma3TextConfig(
        **sizes, num_key_value_heads=1, num_hidden_layers=6, max_position_embeddings=64, rope_parameters=parameters
    )
    model = Gemma3ForCausalLM(config)
    assert rope_faults(model) == []
    assert live_tables(model).keys() == {"sliding_attention", "full_attention"}
    rotary: Any = model.model.rotary_emb
    rotary.full_attention_inv_freq *= 2
    (fault,) = rope_faults(model)
    assert fault.startswith("model.rotary_emb.full_attention.inv_freq is not that of")


def test_tables_of_other_sizes_or_without_numbers_are_infinitely_apart():
    ones = torch.ones(4)
    assert relative_difference(ones, torch.ones(5)) == float("inf")
    assert relative_difference(torch.full((4,), float("nan")), ones) == float("inf")
    assert relative_difference(torch.zeros(4), torch.zeros(4)) == 0.0
    assert relative_difference(ones * 1.5, ones) == 0.5
