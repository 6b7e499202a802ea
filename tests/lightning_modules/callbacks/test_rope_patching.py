from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.rope.methods import AdjustedBase, LinearInterpolation
from tests.lightning_modules.tiny_models import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),  # lightning 2.6 on torch 2.13
]

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
    assert state == {"rope_parameters": LINEAR}
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
