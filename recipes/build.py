"""From a configuration to objects: the one place that turns `_target_` nodes into a module, its data and a trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig, OmegaConf

from datamodules.augmentations.base import Augmentation
from datamodules.base import PackedDataModule
from datamodules.length_schedules.context_length_warmup import ContextLengthWarmup
from datamodules.packing.balance import quadratic_cost
from lightning_modules.base import CausalLMModule, ModelSource
from lightning_modules.callbacks.final_metrics import FinalMetrics
from lightning_modules.callbacks.progress import TrainingProgress
from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.callbacks.sample_answers import SampleAnswers
from lightning_modules.callbacks.start_gate import StartGate
from lightning_modules.callbacks.step_checkpoint import StepCheckpoint
from lightning_modules.checkpointing import AtomicCheckpointIO
from lightning_modules.continued_pretraining import ContinuedPretrainingModule
from lightning_modules.peft.lora import Lora
from lightning_modules.rope.methods import RopeMethod
from lightning_modules.strategies.sharding import ShardedStrategy
from lightning_modules.supervised_finetuning import SupervisedFinetuningModule
from recipes.reporting.ledger import LedgerReport

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STAGES: dict[str, type[CausalLMModule]] = {
    "continued_pretraining": ContinuedPretrainingModule,
    "supervised_finetuning": SupervisedFinetuningModule,
}


def build(node: Any, **extra: Any) -> Any:
    """Instantiate one node; what its constructor complains about is the user's to fix, so no wrapping hides it."""
    from hydra.errors import InstantiationException

    if OmegaConf.is_config(node):  # `instantiate` would resolve what `${…}` leads to in place, in the caller's tree
        node = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, (ValueError, TypeError)) else error) from error


def quiet() -> None:
    """Leave out what third parties print at every start and no user can act on."""
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*is a wildcard .*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*overridden `transfer_batch_to_device` in `LightningModule`.*",  # ours is the one that should run
        ".*smaller than the logging interval.*",
        ".*dataloader is not resumable.*",  # the sampler resumes
        ".*Total length of `list` across ranks is zero.*",  # there is no validation
        ".*It is recommended to use .*sync_dist=True.*",  # PositionLoss has summed over ranks
    ):
        warnings.filterwarnings("ignore", message=message)
    transformers.utils.logging.disable_progress_bar()  # a bar for each of 56 tensors says nothing to a user
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def build_source(config: DictConfig) -> ModelSource:
    return build(config.model.source)


def build_rope(config: DictConfig) -> RopeMethod:
    return build(config.rope)


def build_adapter(config: DictConfig) -> Lora | None:
    """What puts adapters into the model; None where every parameter trains."""
    return None if config.peft.get("_target_") is None else build(config.peft)


def build_tokenizer(config: DictConfig) -> Any:
    return build(config.model.tokenizer).load()


def build_data(config: DictConfig) -> PackedDataModule:
    """The data module with its tokenizer; only sources that the mixture or one of its phases uses are built."""
    mixture = config.corpus.mixture
    used = None if mixture is None else used_sources(config)
    sources = {str(name): build(node) for name, node in config.corpus.sources.items() if used is None or name in used}
    shares = None if mixture is None else {name: share for name, share in mixture.items() if share}
    validation = None if config.corpus.validation is None else build(config.corpus.validation)
    # The corpora are handed over as objects: inside `instantiate`, OmegaConf would take dataclasses apart.
    node = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(node, dict)
    made = {"sources", "mixture", "validation", "augmentation", "phases", "sampling"}
    make = build({key: value for key, value in node.items() if key not in made}, _partial_=True)
    tokenizer = build_tokenizer(config)
    data: PackedDataModule = make(
        sources=sources,
        mixture=shares,
        phases=[{**phase, "mixture": _of(sources, phase["mixture"])} for phase in node["phases"] or ()],
        sampling=_of(sources, node["sampling"] or {}),
        validation=validation,
        augmentation=build_augmentation(config, tokenizer),
    )
    data.tokenizer = tokenizer
    data.unread = [str(name) for name, share in (mixture or {}).items() if not share and str(name) not in sources]
    data.engine = build(config.prepare.engine)
    data.quadratic_cost = _attention_cost(config)
    return data


def _of(sources: dict[str, Any], values: dict[Any, Any]) -> dict[str, Any]:
    """What is said of the sources that are used."""
    return {str(name): value for name, value in values.items() if str(name) in sources}


def build_augmentation(config: DictConfig, tokenizer: Any) -> Augmentation | None:
    """The augmentation with the tokens of its own, if there is one."""
    augmentation: Any = build_bare_augmentation(config)
    if not hasattr(augmentation, "with_tokenizer"):
        return augmentation
    return augmentation.with_tokenizer(tokenizer, vocab_size=_text_config(config).vocab_size)


def build_bare_augmentation(config: DictConfig) -> Augmentation | None:
    """The augmentation before it knows a tokenizer, if there is one."""
    return None if config.augmentation.get("_target_") is None else build(config.augmentation)


def _text_config(config: DictConfig) -> Any:
    """The model's configuration, without its weights."""
    return build_source(config).config().get_text_config(decoder=True)


def _attention_cost(config: DictConfig) -> float:
    """What attention costs beside the linear layers of the model."""
    model = _text_config(config)
    return quadratic_cost(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        # Of a Llama-like model: attention, MLP and head; a few percent do not change who waits for whom.
        num_parameters=model.num_hidden_layers
        * (4 * model.hidden_size + 3 * model.intermediate_size)
        * model.hidden_size
        + model.vocab_size * model.hidden_size,
    )


def used_sources(config: DictConfig) -> set[str]:
    """Names of the sources with a share of the run, in the mixture or in a phase of it."""
    mixtures = [config.corpus.mixture or {}, *(phase.mixture for phase in config.corpus.phases or [])]
    return {str(name) for mixture in mixtures for name, share in mixture.items() if share}


def build_module(config: DictConfig, data: PackedDataModule | None = None) -> CausalLMModule:
    """The training module; the data module, where there is one, tells it lengths by step and names of sources."""
    return STAGES[config.stage](
        source=build_source(config),
        optimizer=build(config.optimizer),
        lr_schedule=build(config.lr_schedule),
        max_steps=config.data.max_steps if data is None else data.num_steps,
        max_seqlen=config.packing.max_seqlen,
        gradient_clip_norm=config.trainer.gradient_clip_norm,
        activation_memory=build(config.memory.activations),
        adapter=build_adapter(config),
        shifted_group_size=config.attention.get("group_size"),
        loss_chunk_size=config.memory.loss_chunk_size,
        log_every_n_steps=config.trainer.log_every_n_steps,
        compute_dtype=COMPUTE_DTYPES[config.precision],
        length_schedule=data,
        source_names=() if data is None else data.source_names,
        seed=config.seed,
    )


def build_trainer(config: DictConfig, folder: Path, *, max_steps: int) -> pl.Trainer:
    """The trainer of one run of so many optimizer steps, writing into the run's folder."""
    settings = config.trainer
    sharded = config.strategy.name == "fsdp"
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(config),
        # A sharded model is cast layer by layer by its own policy; a module-wide cast would take RoPE along.
        precision="32-true" if sharded or config.precision == "fp32" else "bf16-mixed",
        plugins=[] if sharded else [AtomicCheckpointIO()],
        max_epochs=1,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        callbacks=_callbacks(config, folder, max_steps=max_steps),
        log_every_n_steps=settings.log_every_n_steps,
        val_check_interval=_validation_interval(config, max_steps=max_steps),
        num_sanity_val_steps=0,
        enable_progress_bar=settings.progress_bar,
        enable_model_summary=False,
        inference_mode=not sharded,
    )


def _strategy(config: DictConfig) -> Strategy | str:
    settings = config.trainer
    on_gpu = settings.accelerator == "gpu" or (settings.accelerator == "auto" and torch.cuda.is_available())
    backend = None if on_gpu else "gloo"
    if config.strategy.name == "ddp":
        return DDPStrategy(process_group_backend=backend)
    if config.strategy.name == "fsdp":
        ranks = settings.devices * settings.num_nodes
        reduce = config.strategy.get("reduce_gradients", "every_micro_batch")
        return ShardedStrategy(data_parallel_size=ranks, reduce_gradients=reduce, process_group_backend=backend)
    return "auto"


def _validation_interval(config: DictConfig, *, max_steps: int) -> int | float:
    every = config.trainer.validate_every_n_steps
    return 1.0 if every is None else min(every, max_steps)


def _rope_length(config: DictConfig) -> Callable[[int], int] | None:
    """Step -> the length that RoPE is set for; None where that does not change."""
    schedule = build(config.length_schedule)
    follows = isinstance(schedule, ContextLengthWarmup) and schedule.rope_follows
    return schedule.context_length if follows else None


def _callbacks(config: DictConfig, folder: Path, *, max_steps: int) -> list[Callback]:
    callbacks: list[Callback] = [
        RotaryPatching(build_rope(config), config.context_length, length_at=_rope_length(config)),
        LedgerReport(folder),
        StartGate(document_mask=config.packing.document_mask),  # after the RoPE that it judges
        FinalMetrics(max_steps),
        StepCheckpoint(
            folder / "checkpoints",
            every_n_steps=config.trainer.checkpoint_every_n_steps,
            keep=config.trainer.keep_checkpoints,
            max_steps=max_steps,
        ),
    ]
    if config.stage == "supervised_finetuning" and config.trainer.sample_answers:
        callbacks.append(SampleAnswers(build_tokenizer(config), num_samples=config.trainer.sample_answers))
    if config.trainer.progress_bar:
        callbacks.append(TrainingProgress())
    return callbacks
