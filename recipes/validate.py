"""All faults of a configuration in one message, before a model is built and before anything is written.

First what needs no import: missing keys, broken references, keys that nothing reads (Hydra checks the command line, but
not presets). Then every `_target_` is bound to its signature, numbers are judged alone and in pairs, and where all that
holds, the model's configuration, the tokenizer and the corpus files are looked at, but no weights and no text.
"""

from __future__ import annotations

import difflib
import inspect
import os
import pkgutil
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from recipes.compose import Composed, ConfigError, dotted_keys, one_sentence, plain
from recipes.exporting.settings import export_faults
from recipes.importing.gguf_folder import import_faults
from recipes.judging import augmentation_faults, mixtures, pair_faults, stage_faults, value_faults, value_of
from recipes.part_faults import adapter_faults, built, length_schedule_faults, memory_faults, sampling_faults

ALLOWED_TARGETS = ("datamodules.", "lightning_modules.", "torch.optim.", "lightning.", "torchmetrics.")
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
OPEN_MAPPINGS = (
    "corpus.mixture",
    "corpus.phases",
    "corpus.sampling",
    "corpus.sources",
    "data.mixture",
    "data.phases",
    "data.sampling",
    "data.sources",
    "model.source.settings",
)
CALLER_ARGUMENTS = {
    "lightning_modules.optim.adamw.adamw": {"model"},
    "lightning_modules.optim.adamw_8bit.adamw_8bit": {"model"},
    "lightning_modules.optim.adamw_bf16.adamw_bf16": {"model"},
    "lightning_modules.optim.muon.muon": {"model"},
}
"""Arguments that the code passes itself to a `_partial_` target."""

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
}


def validate(composed: Composed) -> None:
    """Check a composed configuration.

    Raises:
        ConfigError: With every fault found, one a line, each naming the key to change.
    """
    config, allowed = composed.config, plain(composed.choices)
    faults = [*missing_keys(config), *reference_faults(config), *unknown_keys(config, allowed)]
    faults += [*value_faults(config), *pair_faults(config), *output_faults(config)]
    corpora = [*(f"corpus.sources.{name}" for name in used_sources(config)), "corpus.validation"]
    faults += stage_faults(
        config,
        data=value_of(config, "data._target_"),
        length_schedule=value_of(config, "length_schedule._target_"),
        corpora={key: value_of(config, f"{key}._target_") for key in corpora},
    )
    faults += augmentation_faults(config, augmentation=value_of(config, "augmentation._target_"))
    faults += [*signature_faults(config), *kind_faults(config, allowed)]
    if not faults:
        faults = [*export_faults(config.export), *length_schedule_faults(config), *sampling_faults(config)]
        faults += memory_faults(config, optimizer=value_of(config, "optimizer._target_"))
        faults += adapter_faults(config, adapter=value_of(config, "peft._target_"))
        faults += [*model_faults(config), *corpus_faults(config)]
    if faults:
        # A value of the wrong kind is found by its key and by its signature; the first says more.
        by_place = {
            fault.split(" must ")[0]: fault for fault in reversed(faults) if not _said_elsewhere(fault, faults, config)
        }
        raise ConfigError("\n".join(reversed(by_place.values())))


def _said_elsewhere(fault: str, faults: list[str], config: DictConfig) -> bool:
    """Whether a fault is of a key that refers to another one, which has a fault of its own."""
    name = fault.split("=")[0]
    above, _, key = name.rpartition(".")
    parent = OmegaConf.select(config, above) if above else config
    if not isinstance(parent, DictConfig) or key not in parent or not OmegaConf.is_interpolation(parent, key):
        return False
    written = OmegaConf.to_container(parent, resolve=False)
    reference = str(written[key]).removeprefix("${").removesuffix("}")  # type: ignore[index]
    return any(other.startswith(f"{reference}=") for other in faults)


def missing_keys(config: DictConfig) -> Iterator[str]:
    """Keys that are still `???`, except below sources that the mixture does not use."""
    for key in dotted_keys(config):
        if not OmegaConf.is_missing(*_parent(config, key)):
            continue
        source = key.removeprefix("corpus.sources.").split(".")[0] if key.startswith("corpus.sources.") else None
        if source is None or source in used_sources(config):
            yield f"{key} has no value; add {key}=… to the command line or the preset"


def used_sources(config: DictConfig) -> list[str]:
    """Names of the sources that have a share at some time; all, where there is no mixture."""
    found = mixtures(config)
    if "corpus.mixture" not in found:
        return [str(name) for name in value_of(config, "corpus.sources") or ()]
    return list(dict.fromkeys(str(name) for mixture in found.values() for name, share in mixture.items() if share))


def reference_faults(config: DictConfig) -> Iterator[str]:
    """`${…}` that lead nowhere; not those that lead to one of these."""
    broken: dict[str, tuple[str, str]] = {}  # name -> what it says, what is wrong
    for name in dotted_keys(config):
        parent, key = _parent(config, name)
        try:
            parent[key] if OmegaConf.is_interpolation(parent, key) else None
        except InterpolationToMissingValueError:
            pass  # the fault of the key without a value
        except OmegaConfBaseException as error:
            broken[name] = str(parent._get_node(key)._value()), one_sentence(error)
    for name, (value, reason) in broken.items():
        if not any("${" + other + "}" in value for other in broken):
            yield f"{name}={value} leads nowhere ({reason})"


def unknown_keys(config: DictConfig, allowed: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys that the chosen group options do not have, where no `_target_` says what it takes."""
    if prefix.rstrip(".") in OPEN_MAPPINGS:
        return
    for key in config:
        child, other = config._get_node(key), allowed._get_node(key)
        if other is None:
            if "_target_" not in config:  # else its signature says
                yield f"{prefix}{key} is not a key that anything reads{_near(key, allowed)}"
        elif isinstance(child, DictConfig) and isinstance(other, DictConfig) and not child._is_interpolation():
            yield from unknown_keys(child, other, f"{prefix}{key}.")


def signature_faults(config: DictConfig) -> Iterator[str]:
    """Binds every node with a `_target_` to the signature of what it names, and its values to the annotations."""
    for name, node in _targets(config):
        target = str(node["_target_"])
        if not _is_allowed(target):
            yield f"{name}._target_={target} is not allowed; targets begin with {', '.join(ALLOWED_TARGETS)}"
            continue
        parameters = _parameters(target)
        if not parameters and (problem := _import_problem(target)):
            yield f"{name}._target_={target} cannot be imported: {problem}"
            continue
        given = {str(key) for key in node} - HYDRA_KEYS
        for key in sorted(given - set(parameters)):
            hint = _near(key, parameters) or f"; it takes {', '.join(parameters)}"
            yield f"{name}.{key} is not an argument of {target}{hint}"
        required = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
        for key in sorted(required - given - CALLER_ARGUMENTS.get(target, set())):
            yield f"{name}.{key} is missing; {target} needs it"
        for key, kinds in _annotated_kinds(target).items():
            if key in given and _is_readable(node, key):
                yield from _kind_fault(f"{name}.{key}", node[key], kinds)


def kind_faults(config: DictConfig, allowed: DictConfig) -> Iterator[str]:
    """Values of another kind than the default that they replace, where no signature says what is right."""
    annotated = {f"{name}.{key}" for name, node in _targets(config) for key in _parameters(node["_target_"])}
    known = set(dotted_keys(config))
    for name in dotted_keys(allowed):
        if name not in known or name in annotated or name.startswith(OPEN_MAPPINGS):
            continue
        default, value = value_of(allowed, name), value_of(config, name)
        if OmegaConf.is_interpolation(*_parent(config, name)):
            continue  # said of the key that it leads to
        if isinstance(default, DictConfig | ListConfig):
            if value is not None and type(value) is not type(default):
                wanted = "keys of its own below it" if isinstance(default, DictConfig) else "a list such as [1, 2]"
                yield f"{name}={value} must have {wanted}"
        elif default is not None and _is_readable(*_parent(config, name)):
            yield from _kind_fault(name, value, {int, float} if type(default) is float else {type(default)})


def output_faults(config: DictConfig) -> Iterator[str]:
    """Folders that cannot be written to; nothing is made by looking."""
    for key in ("output_dir", "cache_dir"):
        folder = existing = Path(str(value_of(config, key)))
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            yield f"{key}={folder} is not writable ({existing} is not a folder that one may write to); set {key}"


def model_faults(config: DictConfig) -> Iterator[str]:
    """Checks that need the model's configuration and tokenizer, but no weights."""
    from lightning_modules.rope.patch import original_length, resolve_rope

    if faults := [*import_faults(config)] or [*_missing_folders(config)]:
        yield from faults
        return
    try:
        model_config, tokenizer = built(config.model.source).config(), built(config.model.tokenizer).load()
        method, length = built(config.rope), original_length(model_config)
        built(config.lr_schedule)
    except (ValueError, TypeError, OSError) as error:
        yield one_sentence(error)
        return
    vocab_size = model_config.get_text_config(decoder=True).vocab_size
    if len(tokenizer) > vocab_size:
        yield (
            f"the tokenizer has {len(tokenizer)} tokens, but the model's vocabulary has {vocab_size};"
            " set model.tokenizer.name_or_path to the model's own"
        )
    if length != config.model.original_context_length:
        yield (
            f"model.original_context_length={config.model.original_context_length}, but the model's configuration"
            f" says {length}; set model.original_context_length={length}"
        )
        return
    yield from _stated_rope_faults(config, model_config)
    yield from _augmentation_tokens(config, tokenizer, vocab_size)
    try:
        covered = resolve_rope(model_config, method, config.context_length).covered_length
        if config.packing.max_seqlen > covered:
            yield (
                f"packing.max_seqlen={config.packing.max_seqlen} is beyond the {covered} tokens that rope covers;"
                " lower packing.max_seqlen or change rope"
            )
    except ValueError as error:
        yield one_sentence(error)


def _stated_rope_faults(config: DictConfig, model_config: Any) -> Iterator[str]:
    """What the recipe says about the base model's RoPE, for readers without the model, against its configuration."""
    from lightning_modules.rope.config import base_rope

    rope = base_rope(model_config)
    actual = {"model.head_dim": rope.head_dim, "model.original_rope_theta": rope.rope_parameters["rope_theta"]}
    for key, value in actual.items():
        if (stated := value_of(config, key)) is not None and stated != value:
            yield f"{key}={stated}, but the model's configuration says {value}; set {key}={value}"


def _augmentation_tokens(config: DictConfig, tokenizer: Any, vocab_size: int) -> Iterator[str]:
    """An augmentation whose settings or whose own tokens are not possible."""
    if config.augmentation.get("_target_") is None:
        return
    try:
        augmentation = built(config.augmentation)
        if hasattr(augmentation, "with_tokenizer"):
            augmentation.with_tokenizer(tokenizer, vocab_size=vocab_size)
    except ValueError as error:
        yield one_sentence(error)


def _missing_folders(config: DictConfig) -> Iterator[str]:
    """Model and tokenizer names that are paths and lead to no folder; transformers would look for them on the hub."""
    for key in ("model.source.name_or_path", "model.tokenizer.name_or_path"):
        name = value_of(config, key)
        if isinstance(name, str) and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
            folder = Path(name).expanduser()
            if not (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
                what = "holds no config.json" if folder.is_dir() else "does not exist"
                yield f"{key}={name} {what}; set {key} to a Hugging Face folder or hub name"


def corpus_faults(config: DictConfig) -> Iterator[str]:
    """Corpora whose files are not there, empty, or of an unknown kind."""
    nodes = {f"corpus.sources.{name}": config.corpus.sources[name] for name in used_sources(config)}
    nodes |= {key: node for key in ("corpus.validation", "evaluation.corpus") if (node := value_of(config, key))}
    if OmegaConf.is_interpolation(config.evaluation, "corpus"):
        nodes.pop("evaluation.corpus", None)
    for key, node in nodes.items():
        try:
            corpus = built(node)
            corpus = getattr(corpus, "haystack", getattr(corpus, "rows", corpus))
            if hasattr(corpus, "files"):
                corpus.files()
        except (ValueError, TypeError, OSError) as error:
            yield one_sentence(error).replace("corpus.sources.*", key)


def _targets(node: Any, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_`, wherever it lies; references are met where they lead."""
    children: list[tuple[str, Any, Any]]
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if node.get("_target_") is not None and not OmegaConf.is_missing(node, "_target_"):
            yield prefix, node
        children = [(f"{prefix}.{key}" if prefix else str(key), node, str(key)) for key in node]
    elif isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        children = [(f"{prefix}[{k}]", node, k) for k in range(len(node))]
    else:
        return
    for name, parent, key in children:
        if not OmegaConf.is_interpolation(parent, key):
            yield from _targets(parent._get_node(key), name)


def _is_allowed(target: str) -> bool:
    """Whether the name begins with an allowed package and what it leads to was made there, not imported there."""
    if not target.startswith(ALLOWED_TARGETS):
        return False
    module = getattr(_object(target), "__module__", None)
    return module is None or f"{module}.".startswith(ALLOWED_TARGETS)


def _object(target: str) -> Any:
    """What a target names; None where it cannot be imported. Hydra's own look-up writes tracebacks into the log."""
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return None


def _import_problem(target: str) -> str | None:
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        return one_sentence(error)
    return None


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a target; none where it may not or cannot be imported."""
    if not isinstance(target, str) or not _is_allowed(target) or (made := _object(target)) is None:
        return {}
    return dict(inspect.signature(made).parameters)


def _annotated_kinds(target: str) -> dict[str, set[type]]:
    """Parameter -> simple types that its annotation allows; parameters of other types are left out."""
    made = _object(target)
    function = made.__init__ if inspect.isclass(made) else made
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        return {}
    found = {}
    for name, hint in hints.items():
        parts = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
        if parts <= set(KINDS):
            found[name] = parts | ({int} if float in parts else set())
    return found


def _near(key: Any, known: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(key), [str(name) for name in known], n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _kind_fault(name: str, value: Any, kinds: set[type]) -> Iterator[str]:
    if (value is None and types.NoneType not in kinds) or (value is not None and type(value) not in kinds):
        wanted = [words for kind, words in KINDS.items() if kind in kinds and not (kind is int and float in kinds)]
        yield f"{name}={'null' if value is None else value} must be {' or '.join(wanted)}"


def _is_readable(node: Any, key: str) -> bool:
    try:
        node[key]
    except OmegaConfBaseException:
        return False
    return True


def _parent(config: DictConfig, name: str) -> tuple[Any, str]:
    above, _, key = name.rpartition(".")
    return (OmegaConf.select(config, above) if above else config), key
