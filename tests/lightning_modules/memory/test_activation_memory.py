from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.attention.registry import REFERENCE_ATTENTION, SHIFTED_SPARSE_ATTENTION
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.memory.recomputed_layer import RecomputedLayer
from lightning_modules.peft.lora import Lora
from tests.grids import quick_where
from tests.lightning_modules.memory.training import NUM_LAYERS, Gradients, gradients_of, layers, make_model
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    TinySource,
    make_module,
    make_trainer,
    step_loader,
)

WHOLE_MLP: dict[str, dict[str, Any]] = {
    "full": {"recompute": "full"},
    "keep_attention": {"recompute": "keep_attention"},
    "every_2_layers": {"recompute": "every_n_layers", "layers_per_checkpoint": 2},
    "every_3_layers": {"recompute": "every_n_layers", "layers_per_checkpoint": 3},
    "more_than_all_layers": {"recompute": "every_n_layers", "layers_per_checkpoint": 9},
    "offload": {"recompute": "full", "offload_to_host": True, "keep_on_device": 2},
    "offload_of_all": {"recompute": "keep_attention", "offload_to_host": True},
    "offload_of_every_2nd": {
        "recompute": "every_n_layers",
        "layers_per_checkpoint": 2,
        "offload_to_host": True,
        "keep_on_device": 1,
    },
}
TILED = {
    "tiled_alone": {"mlp_tile_size": 10},
    **{f"{name}_tiled": {**setting, "mlp_tile_size": 10} for name, setting in WHOLE_MLP.items()},
}
"""Tiles of 10 tokens do not divide the 64 of a micro-batch."""
ALL = {**WHOLE_MLP, **TILED}

QUICK = ("full", "keep_attention", "offload_of_every_2nd", "tiled_alone", "offload_of_every_2nd_tiled")
"""Each thing that is recomputed, moved or tiled, alone and with the others; those between are slow where many are
tried with every setting."""


@functools.lru_cache(maxsize=4)
def plain_gradients(bf16: bool, **model: Any) -> Gradients:
    """Where every activation is held, which is the same whatever a setting is compared with it."""
    return gradients_of(make_model(**model), bf16=bf16)


def assert_same(setting: dict[str, Any], *, equal: bool, bf16: bool = False, **model: Any) -> None:
    expected = plain_gradients(bf16, **model)
    found = gradients_of(make_model(ActivationMemory(**setting), **model), bf16=bf16)
    assert torch.equal(found.loss, expected.loss)
    assert found.by_name.keys() == expected.by_name.keys()
    for name, gradient in expected.by_name.items():
        if equal:
            assert torch.equal(found.by_name[name], gradient), name
        else:
            error = (found.by_name[name] - gradient).norm() / gradient.norm()
            assert error < (1e-2 if bf16 else 1e-6), name


def of_each(settings: Iterable[str]) -> list[Any]:
    """Names, of which the others than `QUICK` are slow."""
    return quick_where([(name,) for name in settings], lambda name: name in QUICK)


@pytest.mark.parametrize(
    ("setting", "attention_dropout"),
    quick_where(itertools.product(WHOLE_MLP, (0.0, 0.3)), lambda _, dropout: dropout > 0),
)
def test_loss_and_gradients_are_bit_identical(setting: str, attention_dropout: float) -> None:
    """Of two micro-batches of packed documents, under their mask."""
    assert_same(ALL[setting], equal=True, attention_dropout=attention_dropout)


@pytest.mark.parametrize("setting", of_each(WHOLE_MLP))
def test_loss_and_gradients_are_bit_identical_in_bf16(setting: str) -> None:
    """Forward and backward in one autocast, whose cache of weights is warm in the second micro-batch."""
    assert_same(ALL[setting], equal=True, bf16=True)


@pytest.mark.parametrize("setting", of_each(ALL))
def test_adapters_get_the_same_gradients(setting: str) -> None:
    assert_same(ALL[setting], equal="mlp_tile_size" not in ALL[setting], lora=True)


@pytest.mark.parametrize("setting", of_each(WHOLE_MLP))
def test_adapters_with_dropout_draw_the_same_in_the_recomputation(setting: str) -> None:
    assert_same(ALL[setting], equal=True, lora=True, lora_dropout=0.3, attention_dropout=0.3)


@pytest.mark.parametrize("attention", [REFERENCE_ATTENTION, SHIFTED_SPARSE_ATTENTION])
def test_every_attention_of_ours_is_recomputed_alike(attention: str) -> None:
    for setting in ({"recompute": "keep_attention"}, {"recompute": "every_n_layers", "layers_per_checkpoint": 3}):
        assert_same(setting, equal=True, lora=True, attention=attention)


@pytest.mark.parametrize("setting", of_each(ALL))
@pytest.mark.parametrize("bf16", [False, True])
def test_our_own_adapters_get_the_same_gradients(setting: str, bf16: bool) -> None:
    assert_same(ALL[setting], equal="mlp_tile_size" not in ALL[setting], bf16=bf16, change=our_own_adapters)


def our_own_adapters(model: Any) -> None:
    Lora(r=4, target_modules=["q_proj", "gate_proj", "down_proj"]).apply(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide what reaches A
            parameter.data.fill_(0.01)


@pytest.mark.parametrize("setting", of_each(TILED))
@pytest.mark.parametrize("bf16", [False, True])
def test_a_tiled_mlp_adds_up_the_same_gradients(setting: str, bf16: bool) -> None:
    """In fp32 to 1e-6 of each gradient's norm, in bf16 to 1e-2: the weights' products are summed tile by tile."""
    assert_same(ALL[setting], equal=False, bf16=bf16)


def test_qwen2s_biases_get_the_same_gradients() -> None:
    def gradients(activations: ActivationMemory) -> list[torch.Tensor]:
        model = tiny_model("qwen2", num_hidden_layers=4).train()
        activations.apply(model)
        ids = torch.arange(32)[None] % 7
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    setting: dict[str, Any] = {"recompute": "keep_attention", "offload_to_host": True, "mlp_tile_size": 10}
    for ours, expected in zip(gradients(ActivationMemory(**setting)), gradients(ActivationMemory()), strict=True):
        assert (ours - expected).norm() < 1e-6 * expected.norm()


def test_names_and_state_of_the_model_stay() -> None:
    plain, changed = make_model(lora=True), make_model(ActivationMemory(recompute="full", mlp_tile_size=8), lora=True)
    assert [name for name, _ in changed.named_modules()] == [name for name, _ in plain.named_modules()]
    assert changed.state_dict().keys() == plain.state_dict().keys()


def test_without_gradients_a_layer_runs_as_it_is() -> None:
    expected, model = make_model(), make_model(ActivationMemory(recompute="full", mlp_tile_size=8))
    ids = torch.arange(16)[None]
    with torch.no_grad():
        for training in (True, False):
            logits = [
                m.train(training).causal_lm(input_ids=ids, document_ids=ids * 0).logits for m in (expected, model)
            ]
            torch.testing.assert_close(logits[1], logits[0], rtol=1e-6, atol=1e-6)


def test_every_layer_is_told_its_number_and_all_share_one_store() -> None:
    model = make_model(ActivationMemory(recompute="full", offload_to_host=True))
    functions = [layer._gradient_checkpointing_func for layer in layers(model)]
    assert all(isinstance(function, RecomputedLayer) for function in functions)
    assert [function.layer for function in functions] == [*range(NUM_LAYERS)]
    assert len({id(function.store) for function in functions}) == 1


def test_resumed_training_is_bit_identical(tmp_path: Any) -> None:
    from tests.lightning_modules.test_base import one_step

    activations = ActivationMemory(
        recompute="every_n_layers", layers_per_checkpoint=2, offload_to_host=True, mlp_tile_size=10
    )
    options: dict[str, Any] = {
        "source": TinySource(settings={"num_hidden_layers": 3, "attention_dropout": 0.3}),
        "optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
        "activation_memory": activations,
    }
    straight = RecordedGradients()
    make_trainer(callbacks=[straight]).fit(make_module(max_steps=2, **options), step_loader([one_step()] * 2))
    first = make_trainer(tmp_path)
    first.fit(make_module(max_steps=2, **options), step_loader([one_step()]))
    first.save_checkpoint(tmp_path / "one.ckpt")
    resumed = RecordedGradients()
    make_trainer(tmp_path, max_epochs=2, callbacks=[resumed]).fit(
        make_module(max_steps=2, **options),
        step_loader([one_step()]),
        ckpt_path=tmp_path / "one.ckpt",
        weights_only=True,
    )
    assert len(resumed.steps) == 1
    for name, gradient in straight.steps[1].items():
        assert torch.equal(resumed.steps[0][name], gradient), name


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"recompute": "some"}, "recompute=some is not known; allowed are none, full, keep_attention, every_n_layers"),
        ({"recompute": "every_n_layers"}, "layers_per_checkpoint=null with recompute=every_n_layers"),
        ({"recompute": "full", "layers_per_checkpoint": 2}, "layers_per_checkpoint=2 with recompute=full"),
        ({"recompute": "every_n_layers", "layers_per_checkpoint": 1}, "layers_per_checkpoint=1 must be at least 2"),
        ({"offload_to_host": True}, "offload_to_host=true moves the inputs of recomputed layers, but recompute=none"),
        ({"recompute": "full", "keep_on_device": 2}, "keep_on_device=2 must be a number of layers, and 0 without"),
        ({"recompute": "full", "offload_to_host": True, "keep_on_device": -1}, "keep_on_device=-1 must be"),
        ({"mlp_tile_size": 0}, "mlp_tile_size=0 must be a number of tokens"),
    ],
)
def test_settings_that_cannot_be_say_which_key_to_change(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        ActivationMemory(**setting)
    assert str(error.value).startswith("memory.activations.")


class OtherModel(nn.Module):
    """Layers of a make of their own."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict(parts)])

    def get_decoder(self) -> nn.Module:
        return self


def test_layers_that_cannot_be_changed_are_refused() -> None:
    other: Any = OtherModel(mlp=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs layers that transformers can recompute, which ModuleDict is not"):
        ActivationMemory(recompute="full").apply(other)
    with pytest.raises(ValueError, match="mlp_tile_size needs layers with an MLP of gate, up and down projection"):
        ActivationMemory(mlp_tile_size=4).apply(other)
