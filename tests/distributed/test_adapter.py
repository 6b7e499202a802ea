"""An adapter on two ranks: the gradient of one process, frozen weights left alone, and exact resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_modules.checkpointing import load_weights, newest_checkpoint
from recipes.build import build_adapter, build_source
from recipes.compose import compose
from tests.distributed.conftest import ADAPTER, STOP_AT, TwoRanks
from tests.distributed.worker import run
from tests.lightning_modules.tiny_training import TinySource

STRATEGIES = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def alone() -> dict[str, object]:
    job = {"ranks": 1, "strategy": "single", "micro_batches": [2, 2], "steps": 2, "adapter": ADAPTER}
    return run(job)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_have_the_gradient_of_one(strategy: str, alone: dict[str, list], two_ranks: TwoRanks) -> None:
    """The first step's is that of B alone, for B begins at zero; the second's, after a step of lr=1, is of A too."""
    result = two_ranks.results[f"{strategy}_adapter"]
    for step, tolerance in ((0, 1e-5), (1, 1e-4)):
        expected = alone["gradients"][step]
        assert len(expected) == 2 * 2 * 2 + 5 + 1  # A and B of two layers each, norms, embeddings
        assert result["gradients"][step].keys() == expected.keys()
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            assert (scale > 0) == (step > 0 or "lora_A" not in name)
            torch.testing.assert_close(result["gradients"][step][name], gradient, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_weights_are_those_of_the_base_model(strategy: str, two_ranks: TwoRanks) -> None:
    base = TinySource().load().state_dict()
    found = two_ranks.results[f"{strategy}_adapter"]["weights"]
    trained = two_ranks.results[f"{strategy}_adapter"]["gradients"][0].keys()
    frozen = {name: weight for name, weight in found.items() if name not in trained}
    assert len(frozen) == 2 * 7 + 1  # layers of two, and the head
    for name, weight in frozen.items():
        assert torch.equal(weight, base[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bf16_base_stays_bf16_and_its_fp32_adapter_has_the_gradient_of_one_process(
    strategy: str, two_ranks: TwoRanks
) -> None:
    """Trap: an FSDP2 that holds frozen weights in fp32 takes their memory twice."""
    job = {"ranks": 1, "strategy": "single", "micro_batches": [2, 2], "steps": 1, "adapter": ADAPTER, "bf16": True}
    expected, result = run(job)["gradients"][0], two_ranks.results[f"{strategy}_adapter_bf16"]
    found = result["gradients"][0]
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert float((found[name] - gradient).norm()) <= 0.02 * float(gradient.norm()), name
    held = {name: weight.dtype for name, weight in result["weights"].items()}
    assert {dtype for name, dtype in held.items() if name not in found} == {torch.bfloat16}
    assert {held[name] for name in found} == {torch.float32}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_run_with_an_adapter_resumed_on_as_many_ranks_goes_on_bit_for_bit(strategy: str, two_ranks: TwoRanks) -> None:
    result = two_ranks.results[f"{strategy}_adapter_stopped"]
    assert result["stopped_at"] == STOP_AT
    assert any(weight.abs().sum() > 0 for name, weight in result["straight"].items() if "lora_B" in name)
    for name, weight in result["straight"].items():
        assert torch.equal(result["resumed"][name], weight), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_its_checkpoints_hold_the_adapter_alone(strategy: str, two_ranks: TwoRanks) -> None:
    (checkpoint, *_) = sorted((two_ranks.folder / f"{strategy}_adapter_stopped/straight/checkpoints").glob("step-*"))
    if strategy == "ddp":
        names = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    else:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        metadata = FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata
        names = {name for name in metadata if name.startswith("state_dict.")}
    assert names
    assert all(".lora_" in name for name in names)
    with pytest.raises(ValueError, match="holds an adapter alone; set peft to what it was trained with"):
        load_weights(Path(checkpoint), TinySource().load())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_its_last_checkpoint_is_read_into_the_base_model(strategy: str, two_ranks: TwoRanks) -> None:
    words = json.loads((two_ranks.folder / "jobs.json").read_text())[f"{strategy}_adapter_stopped"]["words"]
    config = compose(words).config
    model, adapter = build_source(config).load(), build_adapter(config)
    assert adapter is not None
    adapter.put_into(model)
    checkpoint = newest_checkpoint(two_ranks.folder / f"{strategy}_adapter_stopped/straight/checkpoints")
    assert checkpoint is not None
    assert checkpoint.is_dir() == (strategy == "fsdp")
    load_weights(checkpoint, model)
    expected = two_ranks.results[f"{strategy}_adapter_stopped"]["straight"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
