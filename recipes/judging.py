"""Numbers and names of a configuration, judged alone and in pairs, without importing what they are for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CHOICES = {
    "stage": ("continued_pretraining", "supervised_finetuning"),
    "precision": ("bf16", "fp32"),
    "export.dtype": ("bfloat16", "float32"),
    "export.layout": ("native", "portable"),
    "export.adapter_as": ("merged", "adapter", "both"),
    "trainer.accelerator": ("auto", "cpu", "gpu"),
    "corpus.mix_at": ("sequence", "document"),
    "corpus.at_exhaustion": ("error", "renormalise"),
}
FINETUNING_CHOICES = {
    "data.loss_weighting": ("token", "sample", "sqrt"),
    "data.mix_by": ("tokens", "samples"),
}
REDUCTIONS = ("every_micro_batch", "once_a_step")
"""When strategy=fsdp brings gradients together."""
POSITIVE = (
    "context_length",
    "model.original_context_length",
    "packing.max_seqlen",
    "packing.rows_per_group",
    "data.tokens_per_step",
    "data.samples_per_step",
    "data.epochs",
    "data.micro_batch_size",
    "data.max_steps",
    "memory.loss_chunk_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.checkpoint_every_n_steps",
    "trainer.keep_checkpoints",
    "trainer.log_every_n_steps",
    "evaluation.batch_tokens",
    "evaluation.perplexity.num_windows",
    "evaluation.perplexity.tail_tokens",
)
POSITIVE_OR_NULL = ("trainer.num_threads", "trainer.validate_every_n_steps", "trainer.gradient_clip_norm")
NOT_NEGATIVE = (
    "seed",
    "data.validation_sequences",
    "data.num_workers",
    "data.balance_window_steps",
    "evaluation.needle.num_samples",
    "lr_schedule.warmup_steps",
    "optimizer.weight_decay",
)

FULL_ATTENTION = (
    "datamodules.augmentations.chunk_interleaving.ChunkInterleaving",
    "datamodules.augmentations.untie_the_knots.UntieTheKnots",
)
"""Augmentations that put the chunks of a document among those of others, and so need rows without document edges."""


def value_faults(config: DictConfig) -> Iterator[str]:
    """Numbers and names that can be judged alone."""
    for key, choices in CHOICES.items():
        if (value := value_of(config, key)) not in choices:
            yield f"{key}={value} is not known; allowed are {', '.join(choices)}"
    for key in POSITIVE:
        if (value := value_of(config, key)) is not None and (not _is_number(value) or value < 1 or value % 1):
            yield f"{key}={value} must be a whole number of at least 1"
    for key in POSITIVE_OR_NULL:
        if (value := value_of(config, key)) is not None and (not _is_number(value) or value <= 0):
            yield f"{key}={value} must be a number above 0, or null"
    for key in NOT_NEGATIVE:
        if _is_number(value := value_of(config, key)) and value < 0:  # of another kind: its signature or default says
            yield f"{key}={value} must not be negative"
    lr = value_of(config, "optimizer.lr")
    if lr is not None and (not _is_number(lr) or lr <= 0):
        yield f"optimizer.lr={lr} must be a number above 0"
    betas = value_of(config, "optimizer.betas")
    if betas is not None and not (_is_list_of_numbers(betas) and len(betas) == 2 and all(0 <= b < 1 for b in betas)):
        yield f"optimizer.betas={betas} must be two numbers from 0 to below 1"
    lengths = value_of(config, "evaluation.lengths")
    if not (_is_list_of_numbers(lengths) and len(lengths) and all(n >= 1 and n % 1 == 0 for n in lengths)):
        yield f"evaluation.lengths={lengths} must be whole numbers of at least 1, such as [512, 1024]"
    depths = value_of(config, "evaluation.needle.depths")
    if not (_is_list_of_numbers(depths) and len(depths) and all(0 <= depth <= 1 for depth in depths)):
        yield f"evaluation.needle.depths={depths} must be numbers from 0 to 1, such as [0.0, 0.5, 1.0]"
    yield from mixture_faults(config)


def mixture_faults(config: DictConfig) -> Iterator[str]:
    """Shares that are none, and names of no source, in the mixture and in its phases."""
    sources = value_of(config, "corpus.sources")
    for key, kind, form in (
        ("corpus.mixture", DictConfig, "null or {source: share}"),
        ("corpus.phases", ListConfig, "null or a list of {tokens, mixture}"),
        ("corpus.sampling", DictConfig, "null or {source: {max_epochs: 2}}"),
    ):
        if (value := value_of(config, key)) is not None and not isinstance(value, kind):
            yield f"{key}={value} must be {form}"
    for name, mixture in mixtures(config).items():
        for source, ratio in mixture.items():
            if not _is_number(ratio) or ratio < 0:
                yield f"{name}.{source}={ratio} is not a share; ratios are finite and not negative"
            if source not in sources:
                yield f"{name}.{source} names no source; corpus.sources are {', '.join(sorted(map(str, sources)))}"
        if not any(mixture.values()):
            yield f"{name} gives no source a share; set at least one ratio above 0"
    phases = value_of(config, "corpus.phases")
    for k, phase in enumerate(phases if isinstance(phases, ListConfig) else ()):
        if not isinstance(phase, DictConfig) or set(phase) != {"tokens", "mixture"}:
            yield f"corpus.phases[{k}]={phase} must have the keys tokens and mixture, and no other"
        elif not _is_number(phase.tokens) or phase.tokens < 1:
            yield f"corpus.phases[{k}].tokens={phase.tokens} must be a number of at least 1"
        elif not isinstance(phase.mixture, DictConfig):
            yield f"corpus.phases[{k}].mixture={phase.mixture} must be {{source: share}}"


def mixtures(config: DictConfig) -> dict[str, DictConfig]:
    """The mixture and those of its phases, each under its dotted name."""
    found = {"corpus.mixture": value_of(config, "corpus.mixture")}
    phases = value_of(config, "corpus.phases")
    for k in range(len(phases) if isinstance(phases, ListConfig) else 0):
        found[f"corpus.phases[{k}].mixture"] = value_of(config, f"corpus.phases[{k}].mixture")
    return {name: mixture for name, mixture in found.items() if isinstance(mixture, DictConfig)}


def pair_faults(config: DictConfig) -> Iterator[str]:
    """Settings that cannot go together."""
    max_seqlen, tokens = _whole(config, "packing.max_seqlen"), _whole(config, "data.tokens_per_step")
    context_length = _whole(config, "context_length")
    devices, nodes = _whole(config, "trainer.devices"), _whole(config, "trainer.num_nodes")
    if tokens and max_seqlen and tokens % max_seqlen:
        yield (
            f"data.tokens_per_step={tokens} is not a multiple of packing.max_seqlen={max_seqlen};"
            f" the nearest is {max(1, round(tokens / max_seqlen)) * max_seqlen}"
        )
    elif tokens and max_seqlen and devices and nodes and (tokens // max_seqlen) % (devices * nodes):
        yield (
            f"{tokens // max_seqlen} sequences per step do not divide over {devices * nodes} ranks;"
            " set data.tokens_per_step or trainer.devices"
        )
    if max_seqlen and context_length and max_seqlen > context_length:
        yield (
            f"packing.max_seqlen={max_seqlen} is beyond context_length={context_length}, which is what the"
            " model will read; raise context_length or lower packing.max_seqlen"
        )
    target_length = _whole(config, "augmentation.target_length")
    if target_length and max_seqlen and target_length < max_seqlen:
        yield (
            f"augmentation.target_length={target_length} is below packing.max_seqlen={max_seqlen}; positions reach at"
            " least as far as the row is long, so raise it or lower packing.max_seqlen"
        )
    lengths, tail = value_of(config, "evaluation.lengths"), _whole(config, "evaluation.perplexity.tail_tokens")
    if _is_list_of_numbers(lengths):
        allowed = value_of(config, "evaluation.beyond_context") is True
        if not allowed and context_length and (beyond := [length for length in lengths if length > context_length]):
            yield (
                f"evaluation.lengths {beyond} are beyond context_length={context_length}; lower evaluation.lengths, or"
                " set evaluation.beyond_context=true to measure where the model was not made to read"
            )
        if tail and (short := [length for length in lengths if length <= tail]):
            yield (
                f"evaluation.lengths {short} are not above evaluation.perplexity.tail_tokens={tail}, the tokens that"
                " are scored at every length; lower tail_tokens"
            )
    reduce = value_of(config, "strategy.reduce_gradients")
    if value_of(config, "strategy.name") == "fsdp" and reduce not in REDUCTIONS:
        yield f"strategy.reduce_gradients={reduce} is not known; allowed are {', '.join(REDUCTIONS)}"
    if value_of(config, "strategy.name") == "single" and devices and nodes and devices * nodes > 1:
        yield f"trainer.devices={devices} with strategy=single; set strategy=ddp or strategy=fsdp"


STAGE_DATA = {
    "continued_pretraining": "datamodules.continued_pretraining.ContinuedPretrainingDataModule",
    "supervised_finetuning": "datamodules.supervised_finetuning.SupervisedFinetuningDataModule",
}
"""What reads the data of each stage."""


CONVERSATIONS = (
    "datamodules.conversations.chatqa.ChatQACorpus",
    "datamodules.conversations.corpus.ConversationCorpus",
    "datamodules.corpora.instructions.InstructionCorpus",
)
"""Corpora whose documents are conversations, not text."""


def stage_faults(
    config: DictConfig, *, data: str | None, length_schedule: str | None, corpora: Mapping[str, str | None]
) -> Iterator[str]:
    """A stage with another's data, and steps and runs whose length is said twice or not at all.

    Args:
        config: The whole of it.
        data: Name of the class that reads the data.
        length_schedule: Name of what makes the schedule.
        corpora: Dotted key of each corpus that training reads -> name of its class.
    """
    stage, target = value_of(config, "stage"), data
    if stage in STAGE_DATA and target in STAGE_DATA.values() and target != STAGE_DATA[stage]:
        yield f"stage={stage} does not go with the data of another stage; set data={stage}"
    if target != STAGE_DATA["supervised_finetuning"]:
        for key in ("data.tokens_per_step", "data.max_steps"):
            if _is_null(config, key):
                yield f"{key}=null must be a whole number of at least 1"
        for key, corpus in corpora.items():
            if corpus in CONVERSATIONS:
                yield (
                    f"{key} holds conversations, which stage={stage} would read as the JSON that they are written in;"
                    " set stage=supervised_finetuning and data=supervised_finetuning, or another corpus"
                )
        return
    for key, choices in FINETUNING_CHOICES.items():
        if (value := value_of(config, key)) not in choices:
            yield f"{key}={value} is not known; allowed are {', '.join(choices)}"
    for one, other, what in (
        ("tokens_per_step", "samples_per_step", "a step is so many tokens or so many samples"),
        ("max_steps", "epochs", "a run is so many steps or so many epochs"),
    ):
        values = [value_of(config, f"data.{key}") for key in (one, other)]
        if (values[0] is None) == (values[1] is None):
            yield (
                f"data.{one}={_said(values[0])} and data.{other}={_said(values[1])}: {what}; set one of them, and the"
                " other to null"
            )
    if value_of(config, "data.epochs") is not None:
        if value_of(config, "corpus.mixture") is not None:
            yield "data.epochs reads every source whole, which corpus.mixture does not; set one of them to null"
        if "constant" not in str(length_schedule):
            yield "data.epochs leaves the number of steps open, which length_schedule needs; set data.max_steps instead"


def _is_null(config: DictConfig, name: str) -> bool:
    """Whether a key is null, and not merely without a value."""
    return value_of(config, name) is None and not OmegaConf.is_missing(config.data, name.removeprefix("data."))


def _said(value: Any) -> str:
    return "null" if value is None else str(value)


def augmentation_faults(config: DictConfig, *, augmentation: str | None) -> Iterator[str]:
    """Chunks that could not see one another or would not stand at their distance; `augmentation` is a class's name."""
    if augmentation not in FULL_ATTENTION:
        return
    for key, harm in (
        ("packing.document_mask", "hides a document's chunks from one another"),
        ("packing.reset_positions", "gives chunks that stand far apart neighbouring positions"),
    ):
        if value_of(config, key) is True:
            yield (
                f"{key}=true {harm}, which the model is to learn to bring together with"
                f" augmentation={augmentation.split('.')[-2]}; set {key}=false or augmentation=none"
            )


def value_of(config: DictConfig, name: str) -> Any:
    """The value of a dotted key; None where it is missing, leads nowhere or is not there."""
    try:
        return OmegaConf.select(config, name)
    except OmegaConfBaseException:
        return None


def _whole(config: DictConfig, name: str) -> int | None:
    value = value_of(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_numbers(value: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(value, ListConfig) and all(_is_number(item) for item in value)
