"""From a composed configuration to the numbers of a plan; no library that trains is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from recipes.compose import Composed, ConfigError, conf_folder, options
from recipes.judging import pair_faults, value_faults, value_of
from recipes.planning.dimensions import Dimensions, dimensions_of
from recipes.planning.job import MOMENT_BYTES, Adapter, Job, MemoryOption
from recipes.planning.known_models import known_dimensions

OPTIMIZERS = (*MOMENT_BYTES, "muon")
RECOMPUTE = ("none", "full", "keep_attention", "every_n_layers")
NEEDED = (
    "context_length",
    "packing.max_seqlen",
    "data.micro_batch_size",
    "trainer.devices",
    "trainer.num_nodes",
    "strategy.name",
    "precision",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One stage, as far as a plan goes.

    Attributes:
        job: What a device holds and computes.
        sized_by: Where the model's sizes were found.
        rows_per_step: Rows of a step; where a step is so many samples, at most.
        rows_are_most: They are that.
        max_steps: Steps of the run; None where epochs say, and nothing is prepared.
        epochs: Which say.
        masked: Attention stays within documents.
        filled: Every row is full of tokens.
        labels_kept: A token store has a byte a token for its label.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many stay; -1 keeps all.
        export_bytes: Bytes of a number of the export.
        notes: What was assumed.
    """

    job: Job
    sized_by: str
    rows_per_step: int
    rows_are_most: bool
    max_steps: int | None
    epochs: int | None
    masked: bool
    filled: bool
    labels_kept: bool
    checkpoint_every: int
    keep_checkpoints: int
    export_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def rows_per_rank(self) -> int:
        return -(-self.rows_per_step // self.job.ranks)

    @property
    def tokens_per_step(self) -> int:
        """Of full rows."""
        return self.rows_per_step * self.job.row_tokens


def read_run(composed: Composed, *, on_gpu: bool) -> Run:
    """The numbers of a composed configuration.

    Raises:
        ConfigError: Something that a plan needs is missing or cannot be.
    """
    config = composed.config
    if faults := [f"{key} has no value; add {key}=… to the command line" for key in NEEDED if _none(config, key)]:
        raise ConfigError("\n".join(faults))
    faults = [*value_faults(config), *pair_faults(config)]
    if faults := [fault for fault in faults if not fault.startswith("evaluation.")]:  # which a plan has none of
        raise ConfigError("\n".join(faults))
    model, sized_by = model_dimensions(composed)
    rows, most = _rows_per_step(config)
    ranks = config.trainer.devices * config.trainer.num_nodes
    size, rows_of_rank = config.data.micro_batch_size, -(-rows // ranks)
    packed = composed.choices["packing"] == "concat_chunk"
    masked, groups = bool(config.packing.document_mask), value_of(config, "attention.group_size")
    augmented = composed.choices["augmentation"] != "none"
    job = Job(
        model=model,
        row_tokens=config.packing.max_seqlen,
        rows=min(size, rows_of_rank),
        micro_batches=-(-rows_of_rank // size),
        ranks=ranks,
        strategy=config.strategy.name,
        reduces_always=value_of(config, "strategy.reduce_gradients") != "once_a_step",
        precision=config.precision,
        bf16_weights=value_of(config, "model.source.dtype") == "bfloat16",
        adapter=_adapter(composed, model),
        optimizer=_one_of(composed.choices["optimizer"], OPTIMIZERS, "optimizer"),
        memory=memory_option(config.memory),
        shares_rows=(masked and not augmented) or not packed or groups is not None,
        on_gpu=on_gpu,
    )
    _refuse_pairs(job)
    return Run(
        job=job,
        sized_by=sized_by,
        rows_per_step=rows,
        rows_are_most=most,
        max_steps=value_of(config, "data.max_steps"),
        epochs=value_of(config, "data.epochs"),
        masked=masked and not augmented,
        filled=packed and not most,
        labels_kept=config.stage == "supervised_finetuning",
        checkpoint_every=config.trainer.checkpoint_every_n_steps,
        keep_checkpoints=config.trainer.keep_checkpoints,
        export_bytes=2 if value_of(config, "export.dtype") == "bfloat16" else 4,
        notes=tuple(_notes(composed, groups)),
    )


def model_dimensions(composed: Composed) -> tuple[Dimensions, str]:
    """The model's sizes, and where they were found.

    Raises:
        ConfigError: They are neither on this disk nor known.
    """
    from recipes.reporting.base_rope import model_settings

    config = composed.config
    try:
        settings, found = model_settings(config)
        if settings:
            return dimensions_of(settings), found
    except ValueError as error:
        raise ConfigError(str(error)) from error
    name = value_of(config, "model.source.name_or_path")
    if name is None and (before := value_of(config, "about.continues")) is not None:
        from recipes.quick_compose import preset_values

        found, _ = model_dimensions(Composed(*preset_values(str(before)), ()))
        return found, f"recipe={before}, which it continues"
    if name is None:
        raise ConfigError("model.source.name_or_path has no value; add model.source.name_or_path=… to the command line")
    if (known := known_dimensions(str(name))) is not None:
        return known, f"{name}, known to the plan; the model is not on this disk"
    if (file := value_of(config, "model.path")) is not None and Path(str(name)).parent.name == "imported":
        raise ConfigError(
            f"model.path={file} is not imported yet, so its sizes are not known; python -m recipes.prepare with these"
            " words imports it"
        )
    raise ConfigError(
        f"model {name} is neither on this disk nor known to the plan, so its sizes are not; set"
        " model.source.name_or_path to a folder with its config.json"
    )


def memory_option(node: Any) -> MemoryOption:
    """A node of conf/memory.

    Raises:
        ConfigError: It says a recomputation that there is none of.
    """
    activations = node.activations
    _one_of(activations.recompute, RECOMPUTE, "memory.activations.recompute")
    if activations.recompute == "every_n_layers" and not activations.layers_per_checkpoint:
        raise ConfigError("memory.activations.layers_per_checkpoint=null must be a whole number of at least 2")
    return MemoryOption(
        recompute=activations.recompute,
        layers_per_checkpoint=activations.layers_per_checkpoint,
        offload_to_host=activations.offload_to_host,
        keep_on_device=activations.keep_on_device,
        mlp_tile_size=activations.mlp_tile_size,
        loss_chunk_size=node.loss_chunk_size,
    )


def memory_options() -> dict[str, MemoryOption]:
    """All options of conf/memory by name."""
    from recipes.quick_compose import option_values

    return {
        name: memory_option(option_values(conf_folder(), {"memory": name}).config.memory) for name in options("memory")
    }


def _rows_per_step(config: DictConfig) -> tuple[int, bool]:
    """Rows of a step, and whether it may have fewer."""
    tokens, samples = value_of(config, "data.tokens_per_step"), value_of(config, "data.samples_per_step")
    if tokens is None and samples is None:
        raise ConfigError("data.tokens_per_step has no value; add data.tokens_per_step=… to the command line")
    return (tokens // config.packing.max_seqlen, False) if tokens is not None else (samples, True)


def _refuse_pairs(job: Job) -> None:
    """Raises where training would refuse parts that do not go together."""
    faults = []
    if job.sharded and job.memory.recompute == "every_n_layers":
        faults.append("memory.activations.recompute=every_n_layers does not go with strategy=fsdp; set recompute=full")
    if job.sharded and job.optimizer == "adamw_8bit":
        faults.append("optimizer=adamw_8bit does not go with strategy=fsdp; set optimizer=adamw_bf16")
    if job.sharded and job.adapter is not None and job.adapter.four_bit:
        faults.append("peft=qlora does not go with strategy=fsdp; set strategy=ddp or single")
    if job.bf16_weights and job.adapter is None:
        faults.append("model.source.dtype=bfloat16 rounds away what full training changes; set it to float32")
    if faults:
        raise ConfigError("\n".join(faults))


def _adapter(composed: Composed, model: Dimensions) -> Adapter | None:
    node, choice = composed.config.peft, composed.choices["peft"]
    if choice == "none":
        return None
    wanted = node.target_modules
    names: Sequence[str] = tuple(model.linears)
    if wanted != "all-linear":
        names = [str(name).rpartition(".")[2] for name in (wanted if not isinstance(wanted, str) else [wanted])]
    for name in names:
        _one_of(name, tuple(model.linears), "peft.target_modules")
    return Adapter(
        rank=node.r,
        targets=tuple(dict.fromkeys(names)),
        dropout=bool(node.dropout),
        four_bit=choice == "qlora",
        trains_embeddings=bool(node.get("train_embeddings")),
        trains_norms=bool(node.get("train_norms")),
    )


def _notes(composed: Composed, groups: int | None) -> list[str]:
    notes = []
    if composed.choices["length_schedule"] not in ("constant", "sort"):
        notes.append("attention is counted for whole rows; the length_schedule makes early steps cheaper")
    if groups is not None:
        notes.append(f"attention in groups of {groups:,} tokens is cheaper than it is counted here")
    return notes


def _one_of(value: Any, allowed: Sequence[str], key: str) -> Any:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not known; allowed are {', '.join(allowed)}")
    return value


def _none(config: DictConfig, key: str) -> bool:
    return value_of(config, key) is None
