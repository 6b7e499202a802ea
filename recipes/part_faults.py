"""Faults of single parts of a configuration, found by building them: nothing large, and nothing is read or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.compose import one_sentence
from recipes.judging import value_of


def sampling_faults(config: DictConfig) -> Iterator[str]:
    """Length rules and epochs that are none, or of no source."""
    from datamodules.packing.stream import Sampling

    sampling = OmegaConf.to_container(config.corpus.sampling or OmegaConf.create(), resolve=True)
    assert isinstance(sampling, dict)
    for name, rules in sampling.items():
        key = f"corpus.sampling.{name}"
        if name not in config.corpus.sources:
            known = ", ".join(sorted(map(str, config.corpus.sources)))
            yield f"{key} names no source; corpus.sources are {known}"
        elif not isinstance(rules, dict) or not set(rules) <= {"upsample", "downsample", "max_epochs"}:
            yield f"{key}={rules} must have keys among upsample, downsample and max_epochs"
        else:
            try:
                Sampling(**rules, name=str(name))
            except ValueError as error:
                yield one_sentence(error)


def length_schedule_faults(config: DictConfig) -> Iterator[str]:
    """What the length schedule cannot do with the rows and the steps of the run."""
    try:
        schedule = built(config.length_schedule)
    except (ValueError, TypeError) as error:
        yield one_sentence(error)
        return
    if config.corpus.phases and not schedule.keeps_phases:
        yield (
            "corpus.phases would be undone by the order of length_schedule; set corpus.phases=null or another"
            " length_schedule"
        )
    if config.data.balance_window_steps and not schedule.keeps_phases:
        yield (
            "data.balance_window_steps would undo the order of length_schedule; set it to 0 or another length_schedule"
        )


def memory_faults(config: DictConfig, *, optimizer: str | None) -> Iterator[str]:
    """Ways to hold activations and optimizer states that do not go together, or not with the strategy.

    Args:
        config: The whole of it.
        optimizer: Name of what makes the optimizer.
    """
    from lightning_modules.memory import layer_segments
    from lightning_modules.optim import adamw_8bit

    sharded = config.strategy.name == "fsdp"
    checks: list[Callable[[], Any]] = [lambda: built(config.memory.activations)]
    if config.memory.activations.recompute == "every_n_layers":
        checks.append(lambda: layer_segments.refuse_sharded(sharded))
    if optimizer == "lightning_modules.optim.adamw_8bit.adamw_8bit":
        checks += [lambda: adamw_8bit.refuse_sharded(sharded), adamw_8bit.refuse_without_bitsandbytes]
    for check in checks:
        try:
            check()
        except (ValueError, TypeError) as error:
            yield one_sentence(error)


def adapter_faults(config: DictConfig, *, adapter: str | None) -> Iterator[str]:
    """Adapters that cannot be, and what does not go with them or with the groups of shifted sparse attention.

    Args:
        config: The whole of it.
        adapter: Name of the class that puts adapters in; None where every parameter trains.
    """
    from lightning_modules.peft.q_lora import QLora, refuse_without_gpu

    dtype, group = value_of(config, "model.source.dtype"), value_of(config, "attention.group_size")
    made = None
    if adapter is None:
        if dtype == "bfloat16":
            yield "model.source.dtype=bfloat16 rounds away what full training changes; set it to float32, or peft=lora"
    else:
        try:
            made = built(config.peft)
        except (ValueError, TypeError) as error:
            yield one_sentence(error)
    if dtype == "bfloat16" and config.precision == "fp32":
        yield "model.source.dtype=bfloat16 with precision=fp32: the weights are rounded already; set precision=bf16"
    if isinstance(made, QLora):
        if config.strategy.name == "fsdp":
            yield "peft=qlora holds weights in 4 bits, which strategy=fsdp cannot shard; set strategy=ddp or single"
        try:
            refuse_without_gpu()
        except ValueError as error:
            yield one_sentence(error)
    if group is not None:
        length = config.packing.max_seqlen
        if isinstance(group, bool) or not isinstance(group, int) or group < 2 or group % 2 or group >= length:
            yield f"attention.group_size={group} must be an even number from 2 to below packing.max_seqlen={length}"
        if getattr(built(config.length_schedule), "mechanism", None) == "window":
            yield "attention.group_size and length_schedule.mechanism=window both limit attention; set one of them"


def built(node: Any) -> Any:
    """Instantiate one node, with the constructor's own complaint."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(OmegaConf.create(OmegaConf.to_container(node, resolve=True)), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError | OSError):
            raise error.__cause__ from error
        raise
