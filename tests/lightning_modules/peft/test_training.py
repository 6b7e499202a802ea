"""A run with an adapter: its checkpoints hold what trains, and resuming goes on bit for bit."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from datamodules.step_batches import collate
from lightning_modules.base import CausalLMModule
from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.callbacks.start_gate import StartGate
from lightning_modules.callbacks.step_checkpoint import StepCheckpoint
from lightning_modules.checkpointing import AtomicCheckpointIO, load_weights, newest_checkpoint, step_of
from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.schedules import CosineWithWarmup
from lightning_modules.peft.long_lora import LongLora
from lightning_modules.peft.lora import Lora
from lightning_modules.peft.lora_plus import LoraPlus
from lightning_modules.peft.trained_alone import trained_names
from lightning_modules.rope.methods import AdjustedBase
from tests.lightning_modules.peft.adapted import digest, frozen
from tests.lightning_modules.tiny_training import TinySource, make_module, make_trainer, step_loader, uneven_rows

MAX_STEPS = 6
ADAPTERS = {
    "lora": Lora(r=2, dropout=0.2),
    "lora_plus": LoraPlus(r=2, dropout=0.2),
    "longlora": LongLora(r=2, dropout=0.2, target_modules=["q_proj", "v_proj"]),
}


class Killed(Exception):
    pass


class Kill(pl.Callback):
    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.after_step:
            raise Killed


def fit(
    adapter: Lora | None, folder: Path, *, kill_after: int | None = None, resume: Path | None = None, **options: Any
) -> CausalLMModule:
    """Every step has the same batch and dropout of its own."""
    callbacks: list[Any] = [RotaryPatching(AdjustedBase(rope_theta=500000.0), 128), StartGate(document_mask=True)]
    callbacks.append(StepCheckpoint(folder, every_n_steps=2, keep=-1, max_steps=MAX_STEPS))
    if kill_after is not None:
        callbacks.append(Kill(kill_after))
    trainer = make_trainer(folder, callbacks=callbacks, plugins=[AtomicCheckpointIO()], enable_checkpointing=True)
    module = make_module(
        **{
            "adapter": adapter,
            "max_steps": MAX_STEPS,
            "optimizer": partial(adamw, lr=1e-2, weight_decay=0.1),
            "gradient_clip_norm": 1.0,
            **options,
        }
    )
    rows = uneven_rows()
    steps = step_loader([[collate(rows[:2]), collate(rows[2:])]] * MAX_STEPS)
    trainer.fit(module, steps, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return module


def weights(module: CausalLMModule) -> dict[str, torch.Tensor]:
    return dict(module.causal_lm.named_parameters())


@pytest.mark.parametrize("name", ADAPTERS)
def test_killed_run_goes_on_bit_for_bit_from_a_checkpoint_of_the_adapter_alone(name: str, tmp_path: Path) -> None:
    adapter = ADAPTERS[name]
    expected = fit(adapter, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(adapter, tmp_path / "killed", kill_after=5)
    checkpoint = newest_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert step_of(checkpoint) == 4
    found = fit(adapter, tmp_path / "killed", resume=checkpoint)
    for parameter_name, parameter in weights(expected).items():
        assert torch.equal(weights(found)[parameter_name], parameter), parameter_name
    stored = torch.load(checkpoint, weights_only=True)
    trained = trained_names(expected.causal_lm)
    assert set(stored["state_dict"]) == {f"model.causal_lm.{n}" for n in trained}
    numbers = sum(p.numel() for p in {id(p): p for p in expected.causal_lm.parameters() if p.requires_grad}.values())
    assert sum(t.numel() for t in stored["state_dict"].values()) == numbers
    assert sum(state["exp_avg"].numel() for state in stored["optimizer_states"][0]["state"].values()) == numbers
    # fp32 weights and two moments, and some kilobytes that do not grow with the model
    assert 12 * numbers < checkpoint.stat().st_size < 12 * numbers + 1000 * len(trained) + 30_000


def test_lora_plus_trains_b_at_its_own_rate(tmp_path: Path) -> None:
    module = fit(LoraPlus(r=2, lr_ratio=4.0), tmp_path, lr_schedule=CosineWithWarmup(min_lr_ratio=1.0))
    names = {id(p): name for name, p in weights(module).items()}
    rates = {names[id(p)]: group["lr"] for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert len(rates) == 2 * 14
    assert all(lr == pytest.approx(0.04 if "lora_B" in name else 0.01) for name, lr in rates.items())


def test_base_weights_are_untouched(tmp_path: Path) -> None:
    before = digest(dict(TinySource().load().named_parameters()))
    module = fit(Lora(r=2), tmp_path)
    assert digest(frozen(module.causal_lm)) == before
    assert any(p.abs().sum() > 0 for name, p in weights(module).items() if "lora_B" in name)


@pytest.mark.parametrize("name", ["lora", "longlora"])
def test_weights_of_a_checkpoint_go_into_the_base_model_with_a_fresh_adapter(name: str, tmp_path: Path) -> None:
    adapter = ADAPTERS[name]
    module = fit(adapter, tmp_path)
    model = TinySource().load()
    adapter.put_into(model)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    load_weights(checkpoint, model)
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights(module)[parameter_name]), parameter_name


OTHERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "another base": (Lora(r=2), {"source": TinySource(seed=1)}, "holds an adapter of another base model (LlamaForC"),
    "another rank": (Lora(r=3), {}, "holds an adapter of another shape: r=2 there and 3 here, set peft.r=2"),
    "another scale": (Lora(r=2, alpha=1), {}, "alpha=32.0 there and 1 here, set peft.alpha=32.0"),
    "other layers": (Lora(r=2, target_modules=["q_proj"]), {}, "and ['q_proj'] here, set peft.target_modules=['down_p"),
    "other modules": (LongLora(r=2), {}, "trained_modules=[] there and ['embed_tokens', 'input_layernorm', 'norm', "),
    "no adapter": (None, {}, "holds an adapter alone; set peft to what it was trained with"),
}


@pytest.fixture(scope="module")
def lora_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    fit(Lora(r=2), folder)
    found = newest_checkpoint(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoint_of_another_base_or_adapter_is_refused(name: str, lora_checkpoint: Path, tmp_path: Path) -> None:
    adapter, options, message = OTHERS[name]
    with pytest.raises(ValueError, match=f"^the checkpoint .*{re.escape(message)}") as caught:
        fit(adapter, tmp_path, resume=lora_checkpoint, **options)
    assert "\n" not in str(caught.value)
    model = options.get("source", TinySource()).load()
    if adapter is not None:
        adapter.put_into(model)
    with pytest.raises(ValueError, match=f"^checkpoint {lora_checkpoint} .*{re.escape(message)}"):
        load_weights(lora_checkpoint, model)


def test_checkpoint_of_a_whole_model_is_refused_by_a_run_with_an_adapter(tmp_path: Path) -> None:
    fit(None, tmp_path)
    with pytest.raises(ValueError, match="the checkpoint holds a whole model and no adapter; set peft=none"):
        fit(Lora(r=2), tmp_path, resume=newest_checkpoint(tmp_path))


def test_missing_tensor_of_the_adapter_is_an_error(lora_checkpoint: Path, tmp_path: Path) -> None:
    """Frozen weights are forgiven; nothing else is."""
    stored = torch.load(lora_checkpoint, weights_only=True)
    stored["state_dict"].pop("model.causal_lm.model.layers.1.mlp.up_proj.lora_B.default.weight")
    torch.save(stored, tmp_path / "step-0000006.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*up_proj.lora_B.default.weight"):
        fit(Lora(r=2), tmp_path, resume=tmp_path / "step-0000006.ckpt")


def test_run_says_what_trains_and_refuses_an_adapter_of_another_rope(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning_modules.peft.folder import save_adapter

    with caplog.at_level(logging.INFO, logger="lightning_modules"):
        module = fit(Lora(r=2), tmp_path / "first")
    assert re.search(r"[\d,]+ of [\d,]+ parameters train \(\d+\.\d+%\)", caplog.text)
    (tmp_path / "adapter").mkdir()
    save_adapter(module.causal_lm, tmp_path / "adapter")
    goes_on = Lora(r=2, from_adapter=str(tmp_path / "adapter"))
    TinySource().config().save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=r"peft\.from_adapter=.* was trained with rope_parameters=.*10000.* is .*500000"
    ):
        fit(goes_on, tmp_path / "second")
    module.causal_lm.config.save_pretrained(tmp_path / "adapter")
    again = fit(goes_on, tmp_path / "third")
    moved = {name: (p - weights(module)[name]).abs().max() for name, p in weights(again).items() if p.requires_grad}
    assert all(change > 0 for change in moved.values())
    assert max(moved.values()) < 0.2  # six steps on from where the first run ended


def test_none_leaves_checkpoints_as_they_are(tmp_path: Path) -> None:
    module = fit(None, tmp_path)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    stored = torch.load(checkpoint, weights_only=True)
    assert "adapter" not in stored
    assert set(stored["state_dict"]) == set(module.state_dict())
