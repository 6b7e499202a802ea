from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from datamodules.batch import IGNORE_INDEX, Batch
from datamodules.step_batches import collate
from lightning_modules.base import CausalLMModule
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.optim.adamw import adamw
from lightning_modules.optim.schedules import CosineWithWarmup
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    TinySource,
    make_module,
    make_row,
    make_trainer,
    step_loader,
    uneven_rows,
)
from tests.numerics.test_packed_equals_separate import separate_loss


def one_step() -> list[Batch]:
    rows = uneven_rows()
    return [collate(rows[:2]), collate(rows[2:])]


def fit(module: CausalLMModule, steps: list[list[Batch]], *callbacks: pl.Callback, **options: Any) -> None:
    make_trainer(callbacks=list(callbacks), **options).fit(module, step_loader(steps))


class InfiniteGradient(pl.Callback):
    """Makes one weight's gradient infinite in the second step's backward."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            weight = pl_module.causal_lm.model.layers[1].mlp.up_proj.weight
            weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), self.value))


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_gradient_stops_before_the_weights_change(value: float, clip: float | None) -> None:
    steps = [one_step()] * 3
    one = make_module(gradient_clip_norm=clip)
    fit(one, steps[:1])
    module = make_module(gradient_clip_norm=clip, max_steps=3)
    with pytest.raises(FloatingPointError, match=r"gradient of optimizer step 1 is not finite .*Lower optimizer\.lr"):
        fit(module, steps, InfiniteGradient(value))
    assert module.global_step == 1
    for ours, expected in zip(module.causal_lm.parameters(), one.causal_lm.parameters(), strict=True):
        assert torch.equal(ours, expected)


def blank_step() -> list[Batch]:
    blank = collate([make_row((32,), seed=0)])
    blank["labels"].fill_(IGNORE_INDEX)
    return [blank, blank]


def test_step_without_any_target_changes_nothing_counts_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = partial(adamw, lr=0.1, weight_decay=0.5)  # a step without a gradient would still decay
    schedule = CosineWithWarmup(warmup_steps=2)
    one, two = (make_module(max_steps=4, optimizer=optimizer, lr_schedule=schedule) for _ in range(2))
    fit(one, [one_step()])
    with caplog.at_level("WARNING"):
        fit(two, [one_step(), blank_step()])
    assert two.global_step == 2
    assert "step 2 has no target token" in caplog.text
    for ours, expected in zip(two.causal_lm.parameters(), one.causal_lm.parameters(), strict=True):
        assert torch.equal(ours, expected)
    assert two.lr_schedulers().last_epoch == 2  # type: ignore[union-attr]
    states = [module.optimizers().optimizer.state_dict()["state"][0] for module in (one, two)]  # type: ignore[union-attr]
    assert torch.equal(states[0]["exp_avg"], states[1]["exp_avg"])


def test_three_steps_in_a_row_without_a_target_stop_the_run() -> None:
    fit(make_module(max_steps=5), [blank_step(), blank_step(), one_step(), blank_step(), blank_step()])
    with pytest.raises(ValueError, match=r"optimizer step 4 has no target token, as the 2 before it"):
        fit(make_module(max_steps=4), [one_step(), *[blank_step()] * 3])


def test_micro_batch_without_a_target_beside_others_is_fine() -> None:
    blank = collate([make_row((32,), seed=0)])
    blank["labels"].fill_(IGNORE_INDEX)
    with_blank, without = RecordedGradients(), RecordedGradients()
    fit(make_module(), [[blank, *one_step(), blank]], with_blank)
    fit(make_module(), [one_step()], without)
    for name, gradient in without.steps[0].items():
        torch.testing.assert_close(with_blank.steps[0][name], gradient, rtol=1e-5, atol=1e-8)


def test_clipping_scales_the_whole_steps_gradient_to_the_limit() -> None:
    free, clipped = RecordedGradients(), RecordedGradients()
    fit(make_module(), [one_step()], free)
    fit(make_module(gradient_clip_norm=0.01), [one_step()], clipped)
    norm = torch.stack([g.norm() for g in free.steps[0].values()]).norm()
    assert norm > 0.05
    for name, gradient in free.steps[0].items():
        torch.testing.assert_close(clipped.steps[0][name], gradient * (0.01 / norm), rtol=1e-4, atol=1e-9)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    """With dropout, so that the recomputation must draw the same mask."""
    source = TinySource(settings={"attention_dropout": 0.3})
    plain, recomputed = RecordedGradients(), RecordedGradients()
    fit(make_module(source=source), [one_step()], plain)
    module = make_module(source=source, activation_memory=ActivationMemory(recompute="full"))
    fit(module, [one_step()], recomputed)
    layers: Any = module.causal_lm.get_decoder().layers
    assert [layer.gradient_checkpointing for layer in layers] == [True, True]
    assert plain.steps[0].keys() == recomputed.steps[0].keys()
    for name, gradient in plain.steps[0].items():
        torch.testing.assert_close(recomputed.steps[0][name], gradient, rtol=1e-5, atol=1e-8)


def test_dropout_is_drawn_anew_each_step_and_again_from_the_seed() -> None:
    source = TinySource(settings={"attention_dropout": 0.3})
    first, again, other = RecordedGradients(), RecordedGradients(), RecordedGradients()
    idle: dict[str, Any] = {"source": source, "optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.0)}
    for recorded, seed in ((first, 5), (again, 5), (other, 6)):
        torch.rand(seed)  # whatever was drawn before
        fit(make_module(**idle, max_steps=2, seed=seed), [one_step()] * 2, recorded)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first.steps, again.steps, strict=True))
    assert not torch.equal(first.steps[0][name], first.steps[1][name])
    assert not torch.equal(first.steps[0][name], other.steps[0][name])


class RopeDtypes(pl.Callback):
    """The dtypes of RoPE tables, parameters and hidden states while a step runs."""

    def __init__(self) -> None:
        self.tables: set[torch.dtype] = set()
        self.parameters: set[torch.dtype] = set()
        self.products: set[torch.dtype] = set()
        self.inv_freq = torch.empty(0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        decoder = pl_module.causal_lm.model
        decoder.rotary_emb.register_forward_hook(self._rotary)
        decoder.layers[0].self_attn.q_proj.register_forward_hook(lambda m, i, out: self.products.add(out.dtype))

    def _rotary(self, module: Any, inputs: Any, output: Any) -> None:
        self.tables.add(module.inv_freq.dtype)
        self.inv_freq = module.inv_freq.clone()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.parameters |= {p.dtype for p in pl_module.causal_lm.parameters()}


def test_rope_tables_and_parameters_stay_fp32_under_bf16_mixed() -> None:
    dtypes = RopeDtypes()
    fit(make_module(), [one_step()], dtypes, precision="bf16-mixed")
    assert dtypes.products == {torch.bfloat16}
    assert dtypes.tables == {torch.float32}
    assert dtypes.parameters == {torch.float32}
    expected = 10000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    torch.testing.assert_close(dtypes.inv_freq.double(), expected, rtol=1e-6, atol=0)


class LearningRates(pl.Callback):
    def __init__(self) -> None:
        self.used: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.used.append(optimizer.param_groups[0]["lr"])


def test_every_step_uses_its_own_rate_of_the_schedule() -> None:
    rates, schedule = LearningRates(), CosineWithWarmup(warmup_steps=2, min_lr_ratio=0.1)
    module = make_module(
        max_steps=6, lr_schedule=schedule, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=3e-3)
    )
    fit(module, [one_step()] * 6, rates)
    half = 0.1 + 0.9 * 0.5
    assert rates.used == pytest.approx([3e-3 * x for x in (0.5, 1, 1, 0.868198, half, 0.231802)], rel=1e-5)


def test_logged_loss_is_the_mean_over_the_steps_targets() -> None:
    module = make_module()
    logged: dict[str, Any] = {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            logged.update(trainer.progress_bar_metrics)

    fit(module, [one_step()], Keep())
    rows = uneven_rows()
    targets = sum(int((r.labels[1:][r.document_ids[1:] == r.document_ids[:-1]] != IGNORE_INDEX).sum()) for r in rows)
    expected = float(separate_loss(tiny_model("llama"), rows).detach()) / targets
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)


class Growing:
    """A length schedule: 8, 8, 16 and then the whole row of 32."""

    def context_length(self, step: int) -> int:
        return (8, 8, 16, 32)[min(step, 3)]

    def attention_window(self, step: int) -> int | None:
        return self.context_length(step) if step < 3 else None

    def tokens_read(self, step: int) -> int:
        return (100, 160, 200, 203, 300)[step]


def test_every_step_has_its_own_window_and_validation_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    forward = CausalLMWithLoss.forward

    def recorded(self: CausalLMWithLoss, batch: Batch, *, window: int | None = None) -> Any:
        asked.append(window)
        return forward(self, batch, window=window)

    monkeypatch.setattr(CausalLMWithLoss, "forward", recorded)
    module = make_module(max_steps=4, length_schedule=Growing())
    trainer = make_trainer(num_sanity_val_steps=0)
    trainer.fit(module, step_loader([one_step()] * 4), DataLoader(one_step(), batch_size=None))  # type: ignore[arg-type]
    assert asked == [8, 8, 8, 8, 16, 16, None, None, None, None]  # two micro-batches a step, and two of validation


def test_context_length_is_logged_at_every_step_and_its_changes_are_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    with caplog.at_level("INFO", logger="lightning_modules.base"):
        fit(make_module(max_steps=5, length_schedule=Growing()), [one_step()] * 5, logger=logger, log_every_n_steps=1)
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open() as lines:
        rows = [*csv.DictReader(lines)]
    assert [float(row["train/context_length"]) for row in rows] == [8, 8, 16, 32, 32]
    assert [float(row["train/tokens"]) for row in rows] == [100, 160, 200, 203, 300]
    said = [record.getMessage() for record in caplog.records if "from here" in record.getMessage()]
    assert said == [f"step {step}: context length {n} of 32 from here" for step, n in ((1, 8), (3, 16), (4, 32))]


def test_module_at_rest_has_no_model() -> None:
    with pytest.raises(AssertionError, match="built in configure_model"):
        _ = make_module().causal_lm
