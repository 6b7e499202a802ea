"""A CausalLMModule of a few thousand parameters in the real Lightning Trainer, on batches given by hand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from datamodules.batch import IGNORE_INDEX, Batch
from datamodules.packed_dataset import Sequence
from lightning_modules.attention.registry import register_attention_functions
from lightning_modules.base import CausalLMModule
from lightning_modules.optim.schedules import CosineWithWarmup
from tests.lightning_modules.tiny_models import tiny_config, tiny_model

MAX_SEQLEN = 32
VOCAB_SIZE = 64

FIRST_ROWS = ((32,), (20, 12), (8, 8, 16), (5, 27))
"""Document lengths of the four rows of a step, as packing leaves them."""


@dataclass(frozen=True)
class TinySource:
    """A two-layer Llama drawn from a seed, as a `ModelSource`."""

    seed: int = 0
    attention: str = "lcr_per_document"
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def config(self) -> PreTrainedConfig:
        return tiny_config("llama", **self.settings)

    def load(self) -> PreTrainedModel:
        register_attention_functions()
        model: LlamaForCausalLM = tiny_model("llama", attention=self.attention, seed=self.seed, **self.settings)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        return model


def make_row(lengths: tuple[int, ...], *, seed: int, masked: float = 0.0) -> Sequence:
    """One packed row with restarting positions; a share `masked` of its labels is ignored."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB_SIZE, sum(lengths))
    return Sequence(
        input_ids=tokens,
        labels=np.where(rng.random(len(tokens)) < masked, IGNORE_INDEX, tokens),
        position_ids=np.concatenate([np.arange(n) for n in lengths]),
        document_ids=np.repeat(np.arange(len(lengths)), lengths),
        source_ids=np.zeros_like(tokens),
    )


def uneven_rows() -> list[Sequence]:
    """Four rows whose target counts differ by a factor of about ten."""
    shares = (0.0, 0.9, 0.3, 0.7)
    return [
        make_row(lengths, seed=seed, masked=masked)
        for seed, (lengths, masked) in enumerate(zip(FIRST_ROWS, shares, strict=True))
    ]


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """One step of it subtracts the gradient itself."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def make_module(**options: Any) -> CausalLMModule:
    defaults: dict[str, Any] = {
        "source": TinySource(),
        "optimizer": sgd,
        "lr_schedule": CosineWithWarmup(),
        "max_steps": 1,
        "max_seqlen": MAX_SEQLEN,
        "gradient_clip_norm": None,
        "log_every_n_steps": 1,
    }
    return CausalLMModule(**{**defaults, **options})


def make_trainer(folder: Path | None = None, **options: Any) -> pl.Trainer:
    quieten()
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**defaults, **options})


def quieten() -> None:
    for message in (
        ".*does not have many workers.*",
        ".*but have no `val_dataloader`.*",
        ".*dataloader is not resumable.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def step_loader(steps: list[list[Batch]]) -> DataLoader[list[Batch]]:
    """Each element is one optimizer step's micro-batches, as the data module gives them."""
    return DataLoader(steps, batch_size=None)  # type: ignore[arg-type]


class RecordedGradients(pl.Callback):
    """Keeps the gradient of each step, by transformers' parameter name, as the optimizer is about to see it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, CausalLMModule)
        self.steps.append(
            {
                name: whole(parameter.grad).clone()
                for name, parameter in pl_module.causal_lm.named_parameters()
                if parameter.grad is not None
            }
        )


def whole(tensor: torch.Tensor | None) -> torch.Tensor:
    """A sharded tensor gathered, any other as it is."""
    assert tensor is not None
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
