"""What people use instead: transformers' Trainer with PEFT, tuned; Lightning around it; TRL, where they are installed.

The peers get the best of what they have: Liger's fused kernels and loss where installed, recomputation off, on, of
every second layer, or offloaded, whichever is fastest and fits (`settings` of `benchmarks.long_sft`).
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import AttentionInterface, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.sft_arms.job import Clock, Job, Result, random_model, row

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None


def _lora(job: Job) -> LoraConfig:
    return LoraConfig(
        r=job.shape.lora_rank, lora_alpha=2 * job.shape.lora_rank, target_modules=TARGETS, task_type="CAUSAL_LM"
    )


def _examples(job: Job) -> list[dict[str, torch.Tensor]]:
    rows = (row(job, step) for step in range(job.num_steps))
    return [{"input_ids": one["input_ids"][0], "labels": one["labels"][0]} for one in rows]


def _stacked(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


class _Timed(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.end()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def _arguments(job: Job, folder: str, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> Any:
    known = {key: value for key, value in job.setting.items() if key in kind.__dataclass_fields__}
    if missing := set(job.setting) - set(known):
        raise ValueError(f"this transformers has no {', '.join(sorted(missing))}")
    return kind(
        output_dir=folder,
        per_device_train_batch_size=1,
        max_steps=job.num_steps,
        learning_rate=1e-4,
        bf16=job.dtype == torch.bfloat16,
        use_cpu=job.device.type == "cpu",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **({"optim": "adamw_torch_fused"} if job.device.type == "cuda" else {}),
        **({"use_liger_kernel": True} if HAS_LIGER and job.device.type == "cuda" else {}),
        **known,
        **more,
    )


CUDNN_ATTENTION = "benchmark_cudnn"


def cudnn_attention(*args: Any, **kwargs: Any) -> Any:
    """transformers' own sdpa with cuDNN's kernel before the others; where there is none, the next one serves."""
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return sdpa_attention_forward(*args, **kwargs)


def hf_trainer_cudnn(job: Job) -> Result:
    """`hf_trainer` given cuDNN's attention, so that kernels and the rest of a program can be told apart."""
    AttentionInterface.register(CUDNN_ATTENTION, cudnn_attention)
    return hf_trainer(job, attention=CUDNN_ATTENTION)


def hf_trainer(job: Job, *, attention: str = "sdpa") -> Result:
    """transformers' Trainer with PEFT, and Liger where installed."""
    model = random_model(job, attention=attention)
    adapted = get_peft_model(model, _lora(job))
    if job.setting.get("gradient_checkpointing"):
        adapted.enable_input_require_grads()
    timed = _Timed(Clock(job))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            model=adapted,
            args=_arguments(job, folder, remove_unused_columns=False),
            train_dataset=_examples(job),  # type: ignore[arg-type]
            data_collator=_stacked,
            callbacks=[timed],
        )
        trainer.train()
    return timed.clock.result(first_loss=timed.losses[0])


class PlainLightning(pl.LightningModule):
    """What one writes first: the model's own loss, automatic optimization."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.clock = Clock(job)
        self.first_loss = float("nan")
        self.model: Any = None

    def configure_model(self) -> None:
        if self.model is not None:
            return
        base: LlamaForCausalLM = random_model(self.job, attention="sdpa")
        if self.job.setting.get("gradient_checkpointing"):
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = get_peft_model(base, _lora(self.job))
        if self.job.setting.get("gradient_checkpointing"):
            self.model.enable_input_require_grads()
        self.model.train()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.clock.begin()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        if batch_idx == 0:
            self.first_loss = float(loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.end()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)


def plain_lightning(job: Job) -> Result:
    """Lightning, transformers and PEFT as one first puts them together."""
    for message in (".*does not have many workers.*", ".*no `val_dataloader`.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    module = PlainLightning(job)
    data: Any = DataLoader(_examples(job), batch_size=1, collate_fn=_stacked)  # type: ignore[arg-type]
    pl.Trainer(
        accelerator=job.device.type,
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if job.dtype == torch.bfloat16 else "32-true",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
    return module.clock.result(first_loss=module.first_loss)


def trl_trainer(job: Job) -> Result:
    """TRL's SFTTrainer with PEFT on rows that are packed already."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    timed = _Timed(Clock(job))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(
            model=random_model(job, attention="sdpa"),
            args=_arguments(job, folder, SFTConfig, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=_examples(job),
            data_collator=_stacked,
            peft_config=_lora(job),
            callbacks=[timed],
        )
        trainer.train()
    return timed.clock.result(first_loss=timed.losses[0])
