"""Ways to hold activations and optimizer states that cannot be are refused before a model is built."""

from __future__ import annotations

import importlib.util

import pytest

from lightning_modules.memory.activation_memory import ActivationMemory
from recipes.build import build, build_module
from recipes.compose import ConfigError, compose, options
from recipes.validate import validate
from tests.recipes.words import replaced


def faults(words: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        validate(compose(words))
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["memory.activations.recompute=some"], "memory.activations.recompute=some is not known; allowed are none, "),
        (["memory.activations.recompute=3"], "memory.activations.recompute=3 must be a text"),
        (["memory.activations.mlp_tile_size=0"], "memory.activations.mlp_tile_size=0 must be a number of tokens"),
        (["memory.activations.mlp_tile_size=few"], "memory.activations.mlp_tile_size=few must be "),
        (["+memory.activations.tile_size=4"], "memory.activations.tile_size is not an argument of "),
        (
            ["memory=every_n_layers", "strategy=fsdp"],
            "memory.activations.recompute=every_n_layers runs layers outside their turn, when strategy=fsdp ",
        ),
        (["memory=offload", "memory.activations.recompute=none"], "memory.activations.offload_to_host=true moves "),
    ],
)
def test_what_cannot_be_is_one_sentence_that_names_the_key(tiny: list[str], words: list[str], sentence: str) -> None:
    (fault,) = faults([*tiny, *words])
    assert fault.startswith(sentence)


def test_8_bit_states_say_what_they_need(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = replaced(tiny, "optimizer=adamw_8bit", "optimizer.lr=1e-3")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    assert faults(words) == [
        "optimizer=adamw_8bit needs bitsandbytes, which is not installed; run pip install -e '.[gpu]', or set"
        " optimizer=adamw_bf16"
    ]
    monkeypatch.undo()
    monkeypatch.setattr("lightning_modules.optim.adamw_8bit.refuse_without_bitsandbytes", lambda: None)
    (fault,) = faults([*words, "strategy=fsdp"])
    assert fault == "optimizer=adamw_8bit does not work with strategy=fsdp; set optimizer=adamw_bf16"


@pytest.mark.parametrize("option", options("memory"))
def test_every_option_is_valid_and_reaches_the_module(tiny: list[str], option: str) -> None:
    composed = compose([*tiny, f"memory={option}"])
    validate(composed)
    module = build_module(composed.config)
    assert isinstance(module.activation_memory, ActivationMemory)
    assert module.activation_memory == build(composed.config.memory.activations)
    assert module.loss_chunk_size == composed.config.memory.loss_chunk_size


def test_bf16_moments_are_valid(tiny: list[str]) -> None:
    validate(compose(replaced(tiny, "optimizer=adamw_bf16", "optimizer.lr=1e-3")))
