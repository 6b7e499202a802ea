from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.peft.linear import LoraLinear
from lightning_modules.peft.long_lora import LongLora
from lightning_modules.peft.lora import Lora
from lightning_modules.peft.lora_plus import LoraPlus
from tests.lightning_modules.models.index.tiny_index import tiny_index
from tests.lightning_modules.peft.adapted import adapted_model, base_model, digest, frozen, logits

HIDDEN, MLP, KV, VOCAB, LAYERS = 64, 96, 32, 64, 2
ENDS = {
    "q_proj": HIDDEN + HIDDEN,
    "k_proj": HIDDEN + KV,
    "v_proj": HIDDEN + KV,
    "o_proj": HIDDEN + HIDDEN,
    "gate_proj": HIDDEN + MLP,
    "up_proj": HIDDEN + MLP,
    "down_proj": MLP + HIDDEN,
}
"""Inputs and outputs of the linear layers of the tiny model."""


def num_trained(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
def test_trained_are_r_times_inputs_and_outputs_of_each_layer(architecture: str, targets: Any) -> None:
    model = base_model(architecture)
    Lora(r=3, target_modules=targets).apply(model)
    names = list(ENDS) if targets == "all-linear" else targets
    assert num_trained(model) == LAYERS * 3 * sum(ENDS[name] for name in names)
    assert isinstance(model, PreTrainedModel)
    assert model.get_decoder() is model.model


def test_longlora_trains_embeddings_and_norms_besides() -> None:
    model = base_model(tie_word_embeddings=False)
    LongLora(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]).apply(model)
    attention = sum(ENDS[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    norms = (2 * LAYERS + 1) * HIDDEN
    assert num_trained(model) == LAYERS * 8 * attention + norms + VOCAB * HIDDEN
    only_norms = base_model()
    LongLora(r=8, target_modules=["q_proj"], train_embeddings=False).apply(only_norms)
    assert num_trained(only_norms) == LAYERS * 8 * ENDS["q_proj"] + norms


def test_adapter_begins_as_the_base_model_and_its_seed_draws_it() -> None:
    plain = base_model()
    torch.manual_seed(123)
    models = []
    for seed in (0, 0, 1):
        model = base_model()
        torch.manual_seed(7)
        Lora(seed=seed).apply(model)
        assert int(torch.randint(0, 2**31, (1,))) == int(torch.randint(0, 2**31, (1,), generator=_generator(7)))
        models.append(model)
        assert torch.equal(logits(model), logits(plain))
    a = [dict(model.named_parameters())["model.layers.0.mlp.up_proj.lora_A.default.weight"] for model in models]
    assert torch.equal(a[0], a[1])
    assert not torch.equal(a[0], a[2])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_scaling_is_alpha_over_r_or_over_its_root() -> None:
    for rslora, expected in ((False, 8 / 4), (True, 8 / 2)):
        model = base_model()
        Lora(r=4, alpha=8, rslora=rslora).apply(model)
        layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
        assert [layer.scaling["default"] for layer in layers] == [expected] * 14


def test_adapter_is_fp32_on_a_bf16_base_and_the_same_draw() -> None:
    drawn = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = base_model(dtype=dtype)
        Lora().apply(model)
        drawn[dtype] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in drawn[dtype].values()} == {torch.float32}
        assert {p.dtype for p in frozen(model).values()} == {dtype}
    assert digest(drawn[torch.float32]) == digest(drawn[torch.bfloat16])


def test_base_weights_are_the_same_bytes_after_steps() -> None:
    expected = digest(dict(base_model().named_parameters()))
    model = adapted_model(Lora(dropout=0.1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = digest({name: p for name, p in model.named_parameters() if p.requires_grad})
    for _ in range(3):
        ids = torch.randint(0, 64, (1, 16))
        model.train()(input_ids=ids, document_ids=torch.zeros_like(ids)).logits.square().sum().backward()
        optimizer.step()
    assert digest({name: p for name, p in model.named_parameters() if p.requires_grad}) != before
    assert digest(frozen(model)) == expected


def test_head_of_ours_stays_plain() -> None:
    model = tiny_index()
    assert isinstance(model, IndexForCausalLM)
    head = model.get_output_embeddings()
    Lora(r=2).apply(model)
    assert model.get_output_embeddings() is head
    assert not any("lm_head" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lora(r=0), "peft.r=0 must be a whole number of at least 1"),
        (lambda: Lora(alpha=0), "peft.alpha=0 must be a number above 0"),
        (lambda: Lora(dropout=1.0), "peft.dropout=1.0 must be a number from 0 to below 1"),
        (lambda: Lora(target_modules="q_proj"), r"peft.target_modules=q_proj must be all-linear or a list such as"),
        (lambda: Lora(target_modules=[]), "peft.target_modules names no layer"),
        (lambda: LoraPlus(lr_ratio=0), "peft.lr_ratio=0 must be a number above 0"),
        (lambda: LongLora(train_embeddings=False, train_norms=False), "are both false; set one, or peft=lora"),
        (
            lambda: Lora(target_modules=["W_pack"]).apply(base_model()),
            "W_pack is no linear layer of this model",
        ),
        (lambda: Lora(target_modules=["lm_head"]).apply(base_model()), "lm_head is the output head, which takes no"),
        (lambda: Lora().apply(adapted_model(Lora())), "the model has an adapter already"),
    ],
)
def test_impossible_settings_are_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_log_says_what_trains(caplog: pytest.LogCaptureFixture) -> None:
    model = base_model(tie_word_embeddings=False)
    num_base = sum(p.numel() for p in model.parameters())
    adapter = Lora(r=2, target_modules=["q_proj"])
    adapter.apply(model)
    with caplog.at_level(logging.INFO, logger="lightning_modules"):
        adapter.on_train_start(model, is_global_zero=False)
        assert caplog.text == ""
        adapter.on_train_start(model, is_global_zero=True)
    trained = LAYERS * 2 * ENDS["q_proj"]
    share = f"{trained / (num_base + trained):.3%}"
    assert f"{trained:,} of {num_base + trained:,} parameters train ({share})" in caplog.text
