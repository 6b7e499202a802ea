from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger

from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.rope.methods import AdjustedBase, LinearInterpolation, ProgressiveBase, YaRN
from tests.lightning_modules.tiny_models import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),  # the batches here are all alike
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),  # lightning 2.6 on torch 2.13
]

ROOT = Path(__file__).parents[3]
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


class Module(pl.LightningModule):
    """Trains a tiny model on random tokens and may break its RoPE on the way."""

    def __init__(self, *, breaks: bool = False) -> None:
        super().__init__()
        self.causal_lm = tiny_model("llama", num_hidden_layers=1)
        self.breaks = breaks
        self.dtypes: list[torch.dtype] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.dtypes.append(self.causal_lm.model.rotary_emb.inv_freq.dtype)
        if self.breaks:
            self.causal_lm.model.rotary_emb.inv_freq *= 2
        return self.causal_lm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(64).view(2, 32), batch_size=1)  # type: ignore[arg-type]


def trainer(callback: RotaryPatching, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        enable_model_summary=False,
        **{"max_epochs": 1, **quiet, **options},
    )


def test_fit_trains_the_patched_model():
    module = Module()
    trainer(RotaryPatching(LinearInterpolation(), 256)).fit(module)
    assert module.causal_lm.config.rope_parameters == LINEAR
    assert module.causal_lm.config.max_position_embeddings == 256
    expected = torch.tensor([10000.0 ** (-2 * i / 16) / 4 for i in range(8)])
    torch.testing.assert_close(module.causal_lm.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0.0)


def test_two_fits_change_rope_once():
    module, callback = Module(), RotaryPatching(LinearInterpolation(), 256)
    trainer(callback).fit(module)
    trainer(callback).fit(module)
    trainer(RotaryPatching(LinearInterpolation(), 256)).fit(module)
    assert module.causal_lm.config.rope_parameters == LINEAR


def test_tables_stay_fp32_under_bf16_true():
    module = Module()
    trainer(RotaryPatching(AdjustedBase(5e5), 256), precision="bf16-true").fit(module)
    assert module.dtypes == [torch.float32, torch.float32]
    assert module.causal_lm.lm_head.weight.dtype == torch.bfloat16


def test_rope_broken_during_training_fails_the_fit():
    with pytest.raises(RuntimeError, match="inv_freq does not hold"):
        trainer(RotaryPatching(LinearInterpolation(), 256)).fit(Module(breaks=True))


def test_checkpoint_resumes_under_its_own_rope_and_no_other(tmp_path: Path):
    first = trainer(RotaryPatching(LinearInterpolation(), 256))
    first.fit(Module())
    first.save_checkpoint(tmp_path / "last.ckpt")

    trainer(RotaryPatching(LinearInterpolation(), 256), max_epochs=2).fit(Module(), ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"trained with rope_parameters=.*linear.* but this run has .*500000\.0"):
        trainer(RotaryPatching(AdjustedBase(5e5), 256), max_epochs=2).fit(Module(), ckpt_path=tmp_path / "last.ckpt")


def test_checkpoint_restored_after_fit_start_is_refused_too():
    callback = RotaryPatching(LinearInterpolation(), 256)
    trainer(callback).fit(Module())
    state = callback.state_dict()
    assert state == {"rope_parameters": LINEAR, "step": 1}
    callback.load_state_dict(state)
    with pytest.raises(ValueError, match="trained with rope_parameters"):
        callback.load_state_dict({"rope_parameters": {**LINEAR, "factor": 8.0}})


def test_one_line_says_what_was_done(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        trainer(RotaryPatching(LinearInterpolation(), 256)).fit(Module())
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("RoPE:")]
    assert len(lines) == 1
    assert "LinearInterpolation" in lines[0]
    assert "max_position_embeddings=256" in lines[0]
    assert lines[0].endswith("4 times the 64 tokens that the base model read before any scaling")


THETAS = {128: 4e4, 256: 9e5}


def progressive(step: int) -> int:
    return 128 if step < 3 else 256


class Watching(pl.LightningModule):
    """Trains for six steps and notes the theta that each forward, and each checkpoint, computed with."""

    def __init__(self, *, breaks_at: int | None = None) -> None:
        super().__init__()
        self.causal_lm = tiny_model("llama", num_hidden_layers=1)
        self.breaks_at = breaks_at
        self.thetas: list[float] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        inv_freq = self.causal_lm.model.rotary_emb.inv_freq
        self.thetas.append(float(inv_freq[1]) ** -8)  # theta_1 = b^(-2 / 16)
        if self.breaks_at == self.global_step:
            inv_freq *= 2
        return self.causal_lm(input_ids=batch, labels=batch).loss

    configure_optimizers = Module.configure_optimizers

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.arange(192).view(6, 32) % 64, batch_size=1)  # type: ignore[arg-type]


def by_step(length_at: Any = progressive) -> RotaryPatching:
    return RotaryPatching(ProgressiveBase([*THETAS.items()]), 256, length_at=length_at)


def test_rope_changes_before_the_forward_of_the_step_whose_length_changes():
    module = Watching()
    trainer(by_step()).fit(module)
    assert module.thetas == pytest.approx([4e4] * 3 + [9e5] * 3, rel=1e-4)
    assert module.causal_lm.config.rope_parameters == {"rope_type": "default", "rope_theta": 9e5}
    assert module.causal_lm.config.max_position_embeddings == 256


def test_a_factor_follows_the_length_and_never_shortens_the_base_model():
    """Lengths within the 64 tokens of the base model are read as they always were."""
    factors: list[float] = []

    class Noted(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            factors.append(pl_module.causal_lm.config.rope_parameters["factor"])

    callback = RotaryPatching(YaRN(), 256, length_at=lambda step: 32 << step if step < 4 else 256)
    fit = trainer(callback)
    fit.callbacks.append(Noted())  # type: ignore[attr-defined]
    fit.fit(Watching())
    assert factors == [1.0, 1.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("stopped_after", [2, 3, 4])
def test_resuming_goes_on_with_the_rope_of_the_step(stopped_after: int, tmp_path: Path):
    """Also where the checkpoint is of the last step before a change: it carries the RoPE of that step."""

    class Saved(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == stopped_after:
                trainer.save_checkpoint(tmp_path / "at.ckpt")

    first = trainer(by_step(), max_steps=stopped_after)
    first.callbacks.append(Saved())  # type: ignore[attr-defined]
    first.fit(Watching())
    state = torch.load(tmp_path / "at.ckpt", weights_only=True)["callbacks"]["RotaryPatching"]
    theta = THETAS[progressive(stopped_after - 1)]
    assert state == {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "step": stopped_after - 1}

    resumed = Watching()
    trainer(by_step()).fit(resumed, ckpt_path=tmp_path / "at.ckpt")
    expected = [THETAS[progressive(step)] for step in range(stopped_after, 6)]
    assert resumed.thetas == pytest.approx(expected, rel=1e-4)
    other = by_step(lambda step: progressive(step + 3) if step < 3 else 128)
    with pytest.raises(ValueError, match="the checkpoint was trained with rope_parameters="):
        trainer(other).fit(Watching(), ckpt_path=tmp_path / "at.ckpt")


def test_rope_broken_before_a_change_is_not_mended_unseen():
    """The end sees what the last step used; a change rewrites tables, so it looks at them first."""
    with pytest.raises(RuntimeError, match="inv_freq does not hold"):
        trainer(by_step()).fit(Watching(breaks_at=1))
    with pytest.raises(RuntimeError, match="inv_freq does not hold"):
        trainer(by_step()).fit(Watching(breaks_at=5))


def test_a_run_that_ends_early_ends_with_the_rope_of_its_final_length(caplog: pytest.LogCaptureFixture):
    module = Watching()
    with caplog.at_level("WARNING"):
        trainer(by_step(), max_steps=2).fit(module)
    assert module.thetas == pytest.approx([4e4] * 2, rel=1e-4)
    assert module.causal_lm.config.rope_parameters["rope_theta"] == 9e5
    assert any("no step trained with the RoPE of context_length=256" in r.getMessage() for r in caplog.records)


def test_a_final_length_out_of_reach_is_refused_before_the_first_step():
    module = Watching()
    callback = RotaryPatching(ProgressiveBase([[128, 4e4]]), 256, length_at=progressive)
    with pytest.raises(ValueError, match="no base for context_length=256"):
        trainer(callback).fit(module)
    assert module.thetas == []


class Metrics(Logger):
    name = version = "metrics"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append((step, {key: value for key, value in metrics.items() if key.startswith("rope/")}))


def test_every_change_is_logged():
    metrics = Metrics()
    trainer(by_step(), logger=metrics, log_every_n_steps=1).fit(Watching())
    (first, before), (second, after) = [(step, numbers) for step, numbers in metrics.seen if numbers]
    assert (first, second) == (0, 3)
    wavelength = 2 * torch.pi * 9e5 ** (14 / 16)
    expected = {"context_length": 256, "rope_theta": 9e5, "total_factor": 4.0, "longest_wavelength": wavelength}
    assert after == pytest.approx({f"rope/{name}": value for name, value in expected.items()}, rel=1e-6)
    assert before["rope/rope_theta"] == 4e4
