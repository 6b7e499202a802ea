from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_modules.peft.long_lora import LongLora
from lightning_modules.peft.lora import Lora
from lightning_modules.peft.merging import merge_adapter
from lightning_modules.peft.record import record_of
from tests.lightning_modules.models.index.tiny_index import tiny_index
from tests.lightning_modules.peft.adapted import adapted_model, base_model, logits, randomise

ADAPTERS = {"lora": Lora(r=3, rslora=True), "longlora": LongLora(r=3)}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_logits_are_the_adapted_models(name: str, tied: bool, architecture: str) -> None:
    model = adapted_model(ADAPTERS[name], architecture, tie_word_embeddings=tied)
    expected = logits(model)
    plain = base_model(architecture, tie_word_embeddings=tied)
    assert (logits(plain) - expected).abs().max() > 0.1, "the adapter does something"
    merge_adapter(model)
    largest = float(expected.abs().max())
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=5e-6 * largest)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert record_of(model) is None
    assert not hasattr(model, "peft_config")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_bf16_base_is_merged_in_fp32() -> None:
    """The reference: the same values held in fp32 from the beginning."""
    model = adapted_model(Lora(r=3), dtype=torch.bfloat16)
    exact = base_model(dtype=torch.bfloat16).float()
    Lora(r=3).apply(exact)
    randomise(exact)
    merge_adapter(model)
    torch.testing.assert_close(logits(model), logits(exact), rtol=1e-5, atol=1e-5)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_model_with_a_head_of_ours_merges() -> None:
    model: Any = tiny_index()
    Lora(r=2).apply(model)
    randomise(model)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, use_cache=False).logits
        merge_adapter(model)
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, expected, rtol=1e-5, atol=1e-5)


def test_sum_that_is_not_finite_is_refused() -> None:
    model = adapted_model(Lora(r=3))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.lora_A["default"].weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="up_proj with its adapter is not finite"):
        merge_adapter(model)
