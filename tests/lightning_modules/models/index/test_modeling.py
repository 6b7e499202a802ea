from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from lightning_modules.loading import ModelFromScratch, PretrainedModel
from lightning_modules.models.index.modeling import IndexForCausalLM, IndexModel, NormalisedHead, register_index
from lightning_modules.rope.closed_form import closed_form_inv_freq
from lightning_modules.rope.contract import assert_rope
from lightning_modules.rope.methods import AdjustedBase
from lightning_modules.rope.patch import apply_rope_method
from tests.lightning_modules.models.index.tiny_index import (
    MARKER,
    SETTINGS,
    original_checkpoint,
    reference_backbone,
    reference_logits,
    tiny_index,
)
from tests.lightning_modules.tiny_models import tiny_config

IDS = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))


def expected_logits(model: IndexForCausalLM) -> torch.Tensor:
    hidden = reference_backbone(model.state_dict())(IDS).last_hidden_state
    return reference_logits(hidden, model.lm_head.weight.detach())


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_products_with_rows_of_length_one(training: bool) -> None:
    model = tiny_index().train(training)
    logits = model(IDS).logits
    torch.testing.assert_close(logits, expected_logits(model), rtol=1e-5, atol=1e-5)
    unnormalised = F.linear(model.model(IDS).last_hidden_state, model.lm_head.weight)
    assert (logits - unnormalised).abs().max() > 1  # the tiny model would show it


def test_a_forward_leaves_the_weight_as_it_is() -> None:
    model = tiny_index()
    before = model.lm_head.weight.clone()
    with torch.no_grad():
        model(IDS)
    model.generate(IDS[:, :4], max_new_tokens=2, do_sample=False)
    assert torch.equal(model.lm_head.weight, before)


def test_a_bf16_head_has_rows_of_length_one_to_fp32_rounding() -> None:
    head = NormalisedHead(512, 64, bias=False).bfloat16()
    lengths = head.output_matrix().norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(64), rtol=1e-6, atol=0)
    assert head(torch.randn(3, 512).bfloat16()).dtype == torch.bfloat16


def test_without_norm_head_it_is_a_llama() -> None:
    model = tiny_index(norm_head=0)
    llama = LlamaForCausalLM(tiny_config("llama", num_key_value_heads=4)).eval()  # type: ignore[arg-type]
    llama.load_state_dict(model.state_dict())
    assert torch.equal(model(IDS).logits, llama(IDS).logits)


def test_greedy_generation_with_a_cache_matches_the_reference_without() -> None:
    model = tiny_index(eos_token_id=None)
    generated = model.generate(IDS[:, :6], max_new_tokens=8, do_sample=False, use_cache=True)
    backbone = reference_backbone(model.state_dict())
    ids = IDS[:, :6]
    for _ in range(8):
        logits = reference_logits(backbone(ids).last_hidden_state[:, -1], model.lm_head.weight.detach())
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, ids)


def test_a_resized_vocabulary_keeps_the_head_normalised() -> None:
    model = tiny_index()
    before = model(IDS).logits
    model.resize_token_embeddings(80)
    assert isinstance(model.get_output_embeddings(), NormalisedHead)
    assert model.lm_head.weight.shape == (80, 64)
    torch.testing.assert_close(model(IDS).logits[..., :64], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_a_checkpoint_in_the_original_layout_loads(weights: str, tmp_path: Path) -> None:
    state = original_checkpoint(tmp_path, weights=weights)
    model = PretrainedModel(str(tmp_path), attention="sdpa").load()
    assert type(model) is IndexForCausalLM
    assert model.state_dict().keys() == state.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state[name]), name
    hidden = reference_backbone(state)(IDS).last_hidden_state
    expected = reference_logits(hidden, state["lm_head.weight"])
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / MARKER).exists()


def test_original_names_are_all_the_model_has(tmp_path: Path) -> None:
    original_checkpoint(tmp_path)
    register_index()
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    _, info = loaded
    assert [info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [set(), set(), set()]


def test_code_beside_the_checkpoint_is_not_run_even_where_it_is_trusted(tmp_path: Path) -> None:
    original_checkpoint(tmp_path)
    register_index()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)) is IndexForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is IndexModel
    assert not (tmp_path / MARKER).exists()


def test_other_code_is_refused_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original_checkpoint(tmp_path, model_type="unheard_of")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether to run code"))
    with pytest.raises(ValueError, match=r"contains custom code.*set model\.source\.name_or_path"):
        PretrainedModel(str(tmp_path)).config()
    assert not (tmp_path / MARKER).exists()


def test_from_scratch_by_its_model_type() -> None:
    source = ModelFromScratch({"model_type": "index", **SETTINGS}, seed=4)
    model = source.load()
    assert isinstance(model.get_output_embeddings(), NormalisedHead)
    assert torch.equal(model.state_dict()["lm_head.weight"], source.load().state_dict()["lm_head.weight"])
    assert float(model.state_dict()["lm_head.weight"].std()) == pytest.approx(0.2, rel=0.05)


def test_rope_is_found_changed_and_equal_to_a_model_loaded_with_it(tmp_path: Path) -> None:
    original_checkpoint(tmp_path)
    model = PretrainedModel(str(tmp_path), attention="sdpa").load()
    parameters = apply_rope_method(model, AdjustedBase(rope_theta=320000.0), 512)
    assert parameters == {"rope_type": "default", "rope_theta": 320000.0}
    assert_rope(model, parameters, 512)
    assert isinstance(model, IndexForCausalLM)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, closed_form_inv_freq(parameters, 16))
    original_checkpoint(tmp_path, rope_theta=320000.0, max_position_embeddings=512)
    fresh = PretrainedModel(str(tmp_path), attention="sdpa").load()
    assert torch.equal(model(IDS).logits, fresh(IDS).logits)
