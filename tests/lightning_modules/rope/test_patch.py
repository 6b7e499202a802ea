from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, StableLmConfig, StableLmForCausalLM

from lightning_modules.rope.methods import AdjustedBase, LinearInterpolation, RopeMethod, Unchanged
from lightning_modules.rope.patch import (
    apply_rope_method,
    assert_rope,
    closed_form_inv_freq,
    current_rope_parameters,
    original_length,
    patch_rope,
)
from tests.lightning_modules.tiny_models import ARCHITECTURES, tiny_config, tiny_model

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
METHODS: dict[str, tuple[RopeMethod, int]] = {
    "unchanged": (Unchanged(), 64),
    "linear": (LinearInterpolation(), 400),
    "linear_given": (LinearInterpolation(factor=8), 400),
    "adjusted_base": (AdjustedBase(320000), 400),
}
INPUT_IDS = torch.arange(200)[None] % 64


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_patched_model_equals_one_built_with_that_config(architecture: str, name: str, tmp_path: Path):
    method, context_length = METHODS[name]
    model = tiny_model(architecture)
    before = logits(model)
    rope_parameters = apply_rope_method(model, method, context_length)
    covered = method.covered_length(64, context_length)

    built = tiny_model(architecture, seed=1, rope_parameters=rope_parameters, max_position_embeddings=covered)
    built.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(built))
    assert torch.equal(logits(model), before) == (name == "unchanged")

    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model), logits(reloaded))
    assert reloaded.config.max_position_embeddings == covered
    assert_rope(reloaded, rope_parameters, covered)


@pytest.mark.parametrize("head_dim", [64, 96, 120, 128])
@pytest.mark.parametrize("theta", [1e4, 3.2e5, 8e6, 3.58e9])
def test_closed_form_is_what_transformers_computes(head_dim: int, theta: float):
    for rope_parameters in (
        {"rope_type": "default", "rope_theta": theta},
        {"rope_type": "linear", "rope_theta": theta, "factor": 7.3},
    ):
        model = tiny_model("llama", head_dim=head_dim, num_hidden_layers=1, rope_parameters=dict(rope_parameters))
        live = model.model.rotary_emb.inv_freq
        torch.testing.assert_close(closed_form_inv_freq(rope_parameters, head_dim), live, rtol=3e-7, atol=0.0)


def test_closed_form_is_the_formula_of_the_paper():
    inv_freq = closed_form_inv_freq({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 8)
    assert inv_freq.dtype == torch.float32
    torch.testing.assert_close(inv_freq, torch.tensor([1.0, 0.1, 0.01, 0.001]) / 4, rtol=1e-6, atol=0.0)


def test_closed_form_refuses_other_types():
    with pytest.raises(ValueError, match="allowed are default, linear"):
        closed_form_inv_freq({"rope_type": "yarn", "rope_theta": 1e4}, 8)


def test_interpolated_positions_rotate_as_the_original_ones():
    """PI, eq. 4: position m of the extended model is position m L / L' of the base."""
    model = tiny_model("llama")
    x = torch.zeros(1)
    base = model.model.rotary_emb(x, torch.arange(64)[None])
    apply_rope_method(model, LinearInterpolation(), 512)
    extended = model.model.rotary_emb(x, torch.arange(0, 512, 8)[None])
    for ours, theirs in zip(extended, base, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_applying_twice_does_not_double_the_change():
    model = tiny_model("llama")
    first = apply_rope_method(model, LinearInterpolation(), 256)
    once = logits(model)
    assert apply_rope_method(copy.deepcopy(model), LinearInterpolation(), 256) == first
    assert apply_rope_method(model, LinearInterpolation(), 256) == first
    assert torch.equal(logits(model), once)


def test_another_method_replaces_the_first():
    model = tiny_model("llama")
    original = logits(model)
    apply_rope_method(model, LinearInterpolation(), 256)
    assert apply_rope_method(model, AdjustedBase(5e5), 256) == {"rope_type": "default", "rope_theta": 5e5}
    apply_rope_method(model, Unchanged(), 64)
    assert torch.equal(logits(model), original)


def test_a_wrapped_model_is_patched_once():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

    model = tiny_model("llama")
    parameters = apply_rope_method(Wrapper(model), LinearInterpolation(), 256)
    assert apply_rope_method(model, LinearInterpolation(), 256) == parameters


@pytest.mark.parametrize("name", METHODS)
def test_tables_are_fp32_after_a_conversion_to_bf16(name: str):
    method, context_length = METHODS[name]
    model = tiny_model("llama").to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.bfloat16  # the trap
    rope_parameters = apply_rope_method(model, method, context_length)
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(rotary.inv_freq, tiny_model("llama", rope_parameters=rope_parameters).model.rotary_emb.inv_freq)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_meta_model_is_patched_and_again_after_to_empty():
    with torch.device("meta"):
        model = tiny_model("llama")
    rope_parameters = apply_rope_method(model, LinearInterpolation(), 256)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.fill_(123.0)  # what to_empty leaves is anything
    with pytest.raises(RuntimeError, match="inv_freq does not hold"):
        assert_rope(model, rope_parameters, 256)
    apply_rope_method(model, LinearInterpolation(), 256)
    expected = tiny_model("llama", rope_parameters=rope_parameters, max_position_embeddings=256)
    model.load_state_dict(expected.state_dict())
    assert torch.equal(logits(model), logits(expected))


def test_changing_the_config_alone_changes_nothing():
    model = tiny_model("llama")
    before = logits(model)
    model.config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}
    model.config.max_position_embeddings = 512
    assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError, match=r"model\.rotary_emb\.inv_freq does not hold"):
        assert_rope(model, model.config.rope_parameters, 512)


def tamper_table(model: Any) -> None:
    model.model.rotary_emb.inv_freq[3] *= 1 + 1e-5


def tamper_dtype(model: Any) -> None:
    model.to(torch.bfloat16)


def tamper_scaling(model: Any) -> None:
    model.model.rotary_emb.attention_scaling = 1.1


def tamper_config(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] = 2e4


def tamper_length(model: Any) -> None:
    vars(model.config)["max_position_embeddings"] = 64.0  # past transformers' own check of assignments


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (tamper_table, r"model\.rotary_emb\.inv_freq does not hold"),
        (tamper_dtype, r"model\.rotary_emb\.inv_freq is torch\.bfloat16"),
        (tamper_scaling, r"model\.rotary_emb\.attention_scaling is 1\.1"),
        (tamper_config, r"config\.rope_parameters is"),
        (tamper_length, r"config\.max_position_embeddings is 64\.0, not 64"),
    ],
)
def test_a_broken_contract_names_what_broke_it(tamper: Any, message: str):
    model = tiny_model("llama")
    assert_rope(model, DEFAULT, 64)
    tamper(model)
    with pytest.raises(RuntimeError, match=message):
        assert_rope(model, DEFAULT, 64)


def test_partial_rotary_factor_carries_over():
    torch.manual_seed(0)
    config = StableLmConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        rope_parameters={**DEFAULT, "partial_rotary_factor": 0.5},
    )
    model = StableLmForCausalLM(config)
    assert apply_rope_method(model, LinearInterpolation(), 128)["partial_rotary_factor"] == 0.5
    assert model.model.rotary_emb.inv_freq.shape == (4,)  # head_dim 16, half of it rotated


def test_unchanged_accepts_a_llama3_base_beyond_its_pretraining_length():
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = tiny_model("llama", rope_parameters=dict(scaled), max_position_embeddings=512)
    before = model.model.rotary_emb.inv_freq.clone()
    assert apply_rope_method(model, Unchanged(), 512) == scaled
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    model.model.rotary_emb.inv_freq *= 2
    with pytest.raises(RuntimeError, match="inv_freq does not hold"):
        assert_rope(model, scaled, 512)


def test_original_length_is_an_integer_or_refused():
    config = tiny_config("llama")
    vars(config)["max_position_embeddings"] = 32768.0  # past transformers' own check of assignments
    assert type(original_length(config)) is int
    for wrong in (None, 0, 32.5, math.nan):
        vars(config)["max_position_embeddings"] = wrong
        with pytest.raises(ValueError, match="is not a positive integer"):
            original_length(config)


def test_incomplete_parameters_and_models_without_rope_are_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="lacks rope_theta"):
        patch_rope(model, {"rope_type": "default"}, max_position_embeddings=64)
    del model.model.rotary_emb
    with pytest.raises(ValueError, match="no rotary module"):
        patch_rope(model, DEFAULT, max_position_embeddings=128)
    assert model.config.max_position_embeddings == 64  # refused before anything was written
    with pytest.raises(ValueError, match="not one RoPE for all layers"):
        current_rope_parameters(Gemma3TextConfig())
