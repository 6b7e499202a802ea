from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, StableLmConfig, StableLmForCausalLM

from lightning_modules.rope.methods import AdjustedBase, LinearInterpolation, NTKAware, Unchanged
from lightning_modules.rope.patch import (
    apply_rope_method,
    assert_rope,
    current_rope_parameters,
    extend_rope,
    original_length,
    patch_rope,
)
from tests.lightning_modules.rope import shapes
from tests.lightning_modules.rope.shapes import CASES, shaped_model
from tests.lightning_modules.tiny_models import tiny_config, tiny_model

DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
INPUT_IDS = torch.arange(200)[None] % 64


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


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


@pytest.mark.parametrize("name", CASES)
def test_tables_are_fp32_after_a_conversion_to_bf16(name: str):
    method, context_length = CASES[name][:2]
    model = tiny_model("llama").to(torch.bfloat16)
    assert model.model.rotary_emb.inv_freq.dtype == torch.bfloat16  # the trap
    rope_parameters = apply_rope_method(model, method, context_length)
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    assert torch.equal(
        rotary.inv_freq, tiny_model("llama", rope_parameters=dict(rope_parameters)).model.rotary_emb.inv_freq
    )
    assert_rope(model, rope_parameters, model.config.max_position_embeddings)
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


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21 on transformers 5.23
@pytest.mark.parametrize("name", CASES)
def test_peft_before_and_after(name: str):
    """A wrapped model, patched, equals a patched model, wrapped; patching that again changes nothing."""
    method, context_length = CASES[name][:2]
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    first, last = shaped_model("llama"), shaped_model("llama")
    apply_rope_method(first, method, context_length)
    torch.manual_seed(1)
    patched_then_wrapped: Any = get_peft_model(first, lora)
    torch.manual_seed(1)
    wrapped_then_patched: Any = get_peft_model(last, lora)
    parameters = apply_rope_method(wrapped_then_patched, method, context_length)
    for length in (200, 40):
        expected = shapes.logits(patched_then_wrapped, length)
        assert torch.equal(shapes.logits(wrapped_then_patched, length), expected)
        assert apply_rope_method(patched_then_wrapped, method, context_length) == parameters
        assert torch.equal(shapes.logits(patched_then_wrapped, length), expected)


@pytest.mark.parametrize("name", CASES)
def test_meta_models_of_every_method_are_real_after_the_second_call(name: str):
    method, context_length = CASES[name][:2]
    with torch.device("meta"):
        model = shaped_model("llama")
    apply_rope_method(model, method, context_length)
    model = model.to_empty(device="cpu")
    model.load_state_dict(shaped_model("llama").state_dict())
    apply_rope_method(model, method, context_length)
    expected = shaped_model("llama")
    apply_rope_method(expected, method, context_length)
    assert torch.equal(shapes.logits(model, 200), shapes.logits(expected, 200))


def test_every_rotary_module_is_found():
    """Older remote designs give each layer a module of its own."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = copy.deepcopy(model.model.rotary_emb)
        layer.self_attn.rotary_emb.config = model.config
    apply_rope_method(model, LinearInterpolation(), 256)
    assert len({id(layer.self_attn.rotary_emb) for layer in model.model.layers}) == 2
    for layer in model.model.layers:
        assert torch.equal(layer.self_attn.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    model.model.layers[1].self_attn.rotary_emb.inv_freq *= 2
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn\.rotary_emb\.inv_freq does not hold"):
        assert_rope(model, model.config.rope_parameters, 256)


def test_a_rotary_module_with_a_config_of_its_own_is_refused():
    model = tiny_model("llama")
    model.model.rotary_emb.config = copy.deepcopy(model.config)
    with pytest.raises(ValueError, match=r"model\.rotary_emb is built from a config of its own"):
        apply_rope_method(model, LinearInterpolation(), 256)


def test_a_float_length_becomes_an_integer():
    model = tiny_model("llama")
    patch_rope(model, DEFAULT, max_position_embeddings=32768.0)  # type: ignore[arg-type]
    assert type(model.config.max_position_embeddings) is int


def test_phi3_writes_the_original_length_where_phi3_looks_for_it():
    """Its config has a default of 4096 there, which transformers puts in place of that in rope_parameters."""
    model = shaped_model("phi3", original_max_position_embeddings=4096)
    rope = extend_rope(model, CASES["longrope"].method, 512)
    assert rope.rope_parameters["original_max_position_embeddings"] == 64
    assert model.config.original_max_position_embeddings == 64


def test_second_theta_follows_the_first():
    model = tiny_model("llama")
    model.config.rope_theta = 777.0
    apply_rope_method(model, AdjustedBase(5e5), 256)
    assert model.config.rope_theta == 5e5


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


def tamper_second_theta(model: Any) -> None:
    model.config.rope_theta = 1e6  # what looks like changing RoPE, and changes nothing but the saved file


def tamper_original_table(model: Any) -> None:
    model.model.rotary_emb.original_inv_freq *= 2


def tamper_cached_length(model: Any) -> None:
    model.model.rotary_emb.max_seq_len_cached = 200  # the live table is of 64


def tamper_original_length(model: Any) -> None:
    model.model.rotary_emb.original_max_seq_len = 32


def tamper_long_table(model: Any) -> None:
    model.model.rotary_emb.long_inv_freq = model.model.rotary_emb.inv_freq * 2


def tamper_phi3_length(model: Any) -> None:
    model.config.original_max_position_embeddings = 32


def tamper_sliding_table(model: Any) -> None:
    model.model.rotary_emb.sliding_attention_inv_freq *= 2


def tamper_full_scaling(model: Any) -> None:
    model.model.rotary_emb.full_attention_attention_scaling = 1.1


FAULTS: list[tuple[str, str, Any, str]] = [
    ("llama", "unchanged", tamper_table, r"model\.rotary_emb\.inv_freq does not hold"),
    ("llama", "unchanged", tamper_dtype, r"model\.rotary_emb\.inv_freq is torch\.bfloat16"),
    ("llama", "unchanged", tamper_scaling, r"model\.rotary_emb\.attention_scaling is 1\.1"),
    ("llama", "unchanged", tamper_config, r"config\.rope_parameters is"),
    ("llama", "unchanged", tamper_length, r"config\.max_position_embeddings is 64\.0, not 64"),
    ("llama", "unchanged", tamper_second_theta, r"config\.rope_theta is 1000000\.0, a second theta beside"),
    ("llama", "yarn", tamper_table, r"inv_freq does not hold"),
    ("llama", "yarn", tamper_scaling, r"attention_scaling is 1\.1, not 1\.18"),
    ("llama", "llama3", tamper_table, r"inv_freq does not hold"),
    ("llama", "dynamic_ntk", tamper_table, r"inv_freq does not hold"),
    ("llama", "dynamic_ntk", tamper_dtype, r"inv_freq is torch\.bfloat16"),
    ("llama", "dynamic_ntk", tamper_original_table, r"rotary_emb\.original_inv_freq does not hold"),
    ("llama", "dynamic_ntk", tamper_cached_length, r"rotary_emb\.inv_freq does not hold"),
    ("llama", "dynamic_ntk", tamper_original_length, r"original_max_seq_len is 32, not 64"),
    ("llama", "longrope", tamper_table, r"inv_freq does not hold"),
    ("llama", "longrope", tamper_original_table, r"rotary_emb\.original_inv_freq does not hold"),
    ("llama", "longrope", tamper_long_table, r"rotary_emb\.long_inv_freq does not hold"),
    ("phi3", "longrope", tamper_phi3_length, r"config\.original_max_position_embeddings is 32, not 64"),
    ("gemma3_text", "linear", tamper_sliding_table, r"rotary_emb\.sliding_attention_inv_freq does not hold"),
    ("gemma3_text", "linear", tamper_full_scaling, r"full_attention_attention_scaling is 1\.1, not 1\.0"),
    ("gemma3_text", "dynamic_ntk", tamper_dtype, r"_attention_inv_freq is torch\.bfloat16"),
]


@pytest.mark.parametrize(("family", "name", "tamper", "message"), FAULTS)
def test_a_broken_contract_names_what_broke_it(family: str, name: str, tamper: Any, message: str):
    model = shaped_model(family)
    rope = extend_rope(model, CASES[name].method, CASES[name].context_length)
    tamper(model)
    with pytest.raises(RuntimeError, match=message):
        assert_rope(model, rope.rope_parameters, rope.max_position_embeddings)


@pytest.mark.parametrize("name", ["dynamic_ntk", "longrope"])
def test_tables_that_follow_the_length_are_right_at_every_length(name: str):
    model = shaped_model("llama")
    rope = extend_rope(model, CASES[name].method, 512)
    for length in (65, 300, 100, 20, 64, 66):
        shapes.logits(model, length)
        assert_rope(model, rope.rope_parameters, rope.max_position_embeddings)


def test_a_base_changed_under_a_dynamic_table_leaves_a_stale_cache():
    """Writing the config and the table that one sees is not enough: short inputs bring the old table back."""
    model = shaped_model("llama")
    extend_rope(model, CASES["dynamic_ntk"].method, 512)
    model.config.rope_parameters["rope_theta"] = 5e5
    exponents = torch.arange(0, 16, 2) / 16
    model.model.rotary_emb.inv_freq = 5e5**-exponents
    with pytest.raises(RuntimeError, match=r"rotary_emb\.original_inv_freq does not hold"):
        assert_rope(model, model.config.rope_parameters, 64)


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
    assert apply_rope_method(model, NTKAware(), 512)["rope_theta"] == 10000.0 * 8 ** (8 / 6)


def test_a_model_that_leaves_partial_rotary_factor_unread_is_caught():
    """transformers' Llama rotates whole heads whatever the key says."""
    model = tiny_model("llama", rope_parameters={**DEFAULT, "partial_rotary_factor": 0.5})
    with pytest.raises(RuntimeError, match=r"inv_freq has 8 frequencies on cpu, not 4 of a real device"):
        apply_rope_method(model, AdjustedBase(5e5), 64)


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
    with pytest.raises(ValueError, match="lack rope_theta"):
        patch_rope(model, {"rope_type": "default"}, max_position_embeddings=64)
    del model.model.rotary_emb
    with pytest.raises(ValueError, match="no rotary module"):
        patch_rope(model, DEFAULT, max_position_embeddings=128)
    assert model.config.max_position_embeddings == 64  # refused before anything was written
    model, nested = shaped_model("gemma3_text"), {"sliding_attention": DEFAULT, "full_attention": {"rope_type": "yarn"}}
    with pytest.raises(ValueError, match="of full_attention lack rope_theta"):
        patch_rope(model, nested, max_position_embeddings=64)
    with pytest.raises(ValueError, match="lack rope_type"):
        current_rope_parameters(GPT2Config())
