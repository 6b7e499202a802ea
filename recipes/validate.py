"""All faults of a configuration in one message, before a model is built.

First what needs no import: missing keys, and keys that nothing reads (Hydra checks the command line, but not presets).
Then every `_target_` is bound to its signature, and then the pairs that cannot go together, for which the model's
configuration and tokenizer are read, but no weights.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.compose import choices_of, plain

ALLOWED_TARGETS = ("datamodules.", "lightning_modules.", "torch.optim.", "lightning.", "torchmetrics.")
OPEN_MAPPINGS = ("corpus.mixture", "corpus.sources", "data.mixture", "data.sources", "model.source.settings")
CALLER_ARGUMENTS = {"lightning_modules.optim.adamw.adamw": {"model"}}
"""Arguments that the code passes itself to a `_partial_` target."""


class ConfigError(ValueError):
    """Faults of a configuration, one a line."""


def validate(config: DictConfig, words: list[str]) -> None:
    """Check a composed configuration.

    Raises:
        ConfigError: With every fault found, each naming the key to change.
    """
    faults = [*missing_keys(config), *unknown_keys(config, words)]
    if not faults:
        faults = [*signature_faults(config), *value_faults(config)]
    if not faults:
        faults = list(pair_faults(config))
    if faults:
        raise ConfigError("\n".join(faults))


def missing_keys(config: DictConfig) -> Iterator[str]:
    """Keys that are still `???`, except below sources that the mixture does not use."""
    used = OmegaConf.select(config, "corpus.mixture")
    for key in sorted(OmegaConf.missing_keys(config)):
        source = key.removeprefix("corpus.sources.").split(".")[0] if key.startswith("corpus.sources.") else None
        if source is None or used is None or source in used:
            yield f"{key} has no value; add {key}=… to the command line or the preset"


def unknown_keys(config: DictConfig, words: list[str]) -> Iterator[str]:
    """Keys that neither the chosen group options have nor the target of their node takes."""
    allowed = plain(dict(choices_of(words)), [])
    yield from _unknown(config, allowed, "")


def _unknown(node: DictConfig, allowed: DictConfig, prefix: str) -> Iterator[str]:
    if prefix.rstrip(".") in OPEN_MAPPINGS:
        return
    for key in node:
        name, child = f"{prefix}{key}", node._get_node(key)
        if allowed._get_node(key) is None:
            if not (target := node.get("_target_")) or str(key) not in _parameters(target):
                near = difflib.get_close_matches(str(key), [str(other) for other in allowed], n=2, cutoff=0.5)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                yield f"{name} is not a key that anything reads{hint}"
        elif OmegaConf.is_dict(child) and OmegaConf.is_dict(other := allowed._get_node(key)):
            yield from _unknown(child, other, f"{name}.")  # type: ignore[arg-type]


def _parameters(target: str) -> dict[str, inspect.Parameter]:
    from hydra.utils import get_object

    return dict(inspect.signature(get_object(target)).parameters)


def signature_faults(config: DictConfig) -> Iterator[str]:
    """Binds every node with a `_target_` to the signature of what it names."""
    for name, node in _targets(config, ""):
        target = str(node["_target_"])
        if not target.startswith(ALLOWED_TARGETS):
            yield f"{name}._target_={target} is not allowed; targets begin with {', '.join(ALLOWED_TARGETS)}"
            continue
        try:
            parameters = _parameters(target)
        except Exception as error:  # Hydra wraps import errors, whatever they are
            yield f"{name}._target_={target} cannot be imported: {str(error).splitlines()[0]}"
            continue
        given = {str(key) for key in node if key not in {"_target_", "_partial_", "_recursive_", "_convert_"}}
        for key in sorted(given - set(parameters)):
            yield f"{name}.{key} is not an argument of {target}; it takes {', '.join(parameters)}"
        required = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
        for key in sorted(required - given - CALLER_ARGUMENTS.get(target, set())):
            yield f"{name}.{key} is missing; {target} needs it"


def _targets(node: Any, prefix: str) -> Iterator[tuple[str, DictConfig]]:
    if not OmegaConf.is_dict(node):
        return
    if "_target_" in node:
        yield prefix, node  # type: ignore[misc]
    for key in node:
        if not OmegaConf.is_interpolation(node, key):
            yield from _targets(node._get_node(key), f"{prefix}.{key}" if prefix else str(key))  # type: ignore[union-attr]


def value_faults(config: DictConfig) -> Iterator[str]:
    """Numbers and names that can be judged alone."""
    for key, options in {
        "stage": {"continued_pretraining"},
        "precision": {"bf16", "fp32"},
        "export.dtype": {"float32", "bfloat16"},
        "trainer.accelerator": {"auto", "cpu", "gpu"},
    }.items():
        if (value := OmegaConf.select(config, key)) not in options:
            yield f"{key}={value} is not known; allowed are {', '.join(sorted(options))}"
    for key in (
        "context_length",
        "packing.max_seqlen",
        "data.tokens_per_step",
        "data.micro_batch_size",
        "data.max_steps",
        "trainer.devices",
        "trainer.checkpoint_every_n_steps",
        "trainer.log_every_n_steps",
    ):
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{key}={value} must be a whole number of at least 1"
    lr = config.optimizer.lr
    if not isinstance(lr, (int, float)) or not math.isfinite(lr) or lr <= 0:
        yield f"optimizer.lr={lr} must be a positive number"
    for name, ratio in (config.corpus.mixture or {}).items():
        if not isinstance(ratio, (int, float)) or not math.isfinite(ratio) or ratio < 0:
            yield f"corpus.mixture.{name}={ratio} is not a share; ratios are finite and not negative"
        if name not in config.corpus.sources:
            yield f"corpus.mixture.{name} names no source; corpus.sources are {sorted(map(str, config.corpus.sources))}"


def pair_faults(config: DictConfig) -> Iterator[str]:
    """Settings that cannot go together, and what the machine does not allow."""
    max_seqlen, tokens = config.packing.max_seqlen, config.data.tokens_per_step
    if tokens % max_seqlen:
        yield (
            f"data.tokens_per_step={tokens} is not a multiple of packing.max_seqlen={max_seqlen};"
            f" the nearest is {max(1, round(tokens / max_seqlen)) * max_seqlen}"
        )
    ranks = config.trainer.devices * config.trainer.num_nodes
    if tokens % max_seqlen == 0 and (tokens // max_seqlen) % ranks:
        yield (
            f"{tokens // max_seqlen} sequences per step do not divide over {ranks} ranks;"
            " set data.tokens_per_step or trainer.devices"
        )
    if max_seqlen > config.context_length:
        yield (
            f"packing.max_seqlen={max_seqlen} is beyond context_length={config.context_length}, which is what the"
            " model will read; raise context_length or lower packing.max_seqlen"
        )
    if beyond := [length for length in config.evaluation.lengths if length > config.context_length]:
        yield f"evaluation.lengths {beyond} are beyond context_length={config.context_length}"
    if config.strategy.name == "single" and ranks > 1:
        yield f"trainer.devices={config.trainer.devices} with strategy=single; set strategy=ddp or strategy=fsdp"
    yield from _output_faults(Path(config.output_dir))
    yield from model_faults(config)


def _output_faults(folder: Path) -> Iterator[str]:
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield f"output_dir={folder} is not writable ({existing} is not a folder one may write to); set output_dir"


def model_faults(config: DictConfig) -> Iterator[str]:
    """Checks that need the model's configuration and tokenizer, but no weights."""
    from hydra.utils import instantiate

    from lightning_modules.rope.patch import original_length

    try:
        model_config = instantiate(config.model.source, _convert_="all").config()
        method = instantiate(config.rope)
        tokenizer = instantiate(config.model.tokenizer, _convert_="all").load()
    except Exception as error:
        root = error.__cause__ if type(error).__name__ == "InstantiationException" and error.__cause__ else error
        if not isinstance(root, (ValueError, TypeError, OSError)):
            raise
        yield str(root).splitlines()[0]
        return
    length = original_length(model_config)
    if length != config.model.original_context_length:
        yield (
            f"model.original_context_length={config.model.original_context_length}, but the model's configuration"
            f" says {length}"
        )
        return
    decoder = model_config.get_text_config(decoder=True)
    try:
        method.rope_parameters(
            dict(decoder.rope_parameters), original_length=length, context_length=config.context_length
        )
        covered = method.covered_length(length, config.context_length)
        if config.packing.max_seqlen > covered:
            yield f"packing.max_seqlen={config.packing.max_seqlen} is beyond the {covered} tokens that rope covers"
    except ValueError as error:
        yield str(error)
    if len(tokenizer) > decoder.vocab_size:
        yield (
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary has {decoder.vocab_size};"
            " set model.tokenizer.name_or_path to the model's own"
        )
