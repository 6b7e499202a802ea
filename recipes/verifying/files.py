"""What the files of a checkpoint say, judged without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from recipes.verifying.certificate import NOTE, OK, VIOLATION, WARNING, Finding
from recipes.verifying.dialects import described
from recipes.verifying.folder import Checkpoint, read_json, text_part

LONG = 8192
"""Tokens that no model of theta 10000 was pre-trained for unscaled."""

NO_LIMIT = 10**20
"""Tokenizers without a limit have a model_max_length of 10^30."""

ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings")
SAY_THEIR_LENGTH = ("yarn", "llama3", "longrope")


def what_the_files_say(checkpoint: Checkpoint) -> Iterator[Finding]:
    """RoPE in both dialects, lengths, and what generates with them."""
    config = checkpoint.text
    yield from _dialects(config)
    yield from _lost_or_wrong_scaling(config)
    yield from _length(config)
    yield from _adapter(checkpoint)
    yield from _tokenizer(checkpoint)
    cached = read_json(checkpoint.folder / "generation_config.json").get("use_cache", config.get("use_cache", True))
    if cached is False:
        yield Finding(
            WARNING,
            "use_cache is false: every generated token computes all earlier ones anew",
            'write "use_cache": true into config.json and generation_config.json',
        )


def _dialects(config: dict[str, Any]) -> Iterator[Finding]:
    newer, theta, scaling = config.get("rope_parameters") or {}, config.get("rope_theta"), config.get("rope_scaling")
    if newer:
        yield Finding(OK, f"newer readers (transformers 5) take rope_parameters: {described(newer)}")
    if theta is not None or scaling:
        said = "no rope_theta" if theta is None else f"rope_theta {theta:g}"
        said += f", rope_scaling {described({**scaling, 'rope_theta': theta})}" if scaling else ", no rope_scaling"
        yield Finding(OK, f"older readers (transformers 4 and programs like it) take {said}")
    elif not newer:
        yield Finding(
            WARNING,
            "no RoPE is written down: every reader takes the default of the architecture",
            "write rope_theta, and rope_scaling if there is one",
        )
    thetas = {value["rope_theta"] for value in (newer, *newer.values()) if isinstance(value, dict) and has_theta(value)}
    if theta is not None and thetas and theta not in thetas:
        yield Finding(
            VIOLATION,
            f"two thetas: rope_theta is {theta:g}, in rope_parameters it is "
            f"{' and '.join(f'{one:g}' for one in sorted(thetas))}; readers do not agree on which holds",
            "keep the one that the model was trained with, in both places",
        )


def _lost_or_wrong_scaling(config: dict[str, Any]) -> Iterator[Finding]:
    """Scaling that may have got lost on the way, or does not fit the lengths."""
    parameters = config.get("rope_parameters") or {
        **(config.get("rope_scaling") or {}),
        "rope_theta": config.get("rope_theta"),
    }
    length, factor = config.get("max_position_embeddings"), parameters.get("factor")
    if not isinstance(length, int | float) or any(isinstance(value, dict) for value in parameters.values()):
        return
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if rope_type == "default" and (parameters.get("rope_theta") or 10000.0) <= 10000.0 and length > LONG:
        yield Finding(
            WARNING,
            f"{length:g} tokens with theta 10000 and no scaling: so looks a model whose rope_scaling got lost, and it "
            "writes nonsense beyond its original length",
            "compare with the recipe that it was trained by",
        )
    original = parameters.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if rope_type in SAY_THEIR_LENGTH and original is None:
        yield Finding(
            WARNING,
            f"{rope_type} without original_max_position_embeddings: readers take max_position_embeddings={length:g} "
            "for the length before scaling",
            "write the base model's length as original_max_position_embeddings",
        )
    elif rope_type in ("yarn", "linear") and original and factor and factor * original < length:
        yield Finding(
            WARNING,
            f"{rope_type} by {factor:g} takes {original} tokens to {factor * original:g}, less than "
            f"max_position_embeddings={length:g}",
            "make one fit the other",
        )


def _length(config: dict[str, Any]) -> Iterator[Finding]:
    length = config.get("max_position_embeddings")
    if length is None:
        yield Finding(
            WARNING,
            "no max_position_embeddings: readers take the default of the architecture",
            "write the number of tokens that the model reads",
        )
    elif type(length) is not int or length < 1:
        whole = int(length) if isinstance(length, float) and length.is_integer() else "<whole number>"
        yield Finding(
            VIOLATION,
            f"max_position_embeddings is {length!r}, which is no integer: strict readers refuse the model",
            f'write "max_position_embeddings": {whole}',
        )
    else:
        yield Finding(OK, f"max_position_embeddings {length}, an integer")


def _adapter(checkpoint: Checkpoint) -> Iterator[Finding]:
    if checkpoint.base is None:
        return
    if not (checkpoint.folder / "config.json").is_file():
        yield Finding(
            WARNING,
            "an adapter stores no RoPE, and there is no config.json beside it: it is read with its base model's, as "
            "above; if it was trained with another, every reader gets another model",
            "keep the config.json of the model that it was trained on beside adapter_config.json",
        )
        return
    base = text_part(read_json(checkpoint.base / "config.json"))
    if differing := [key for key in ROPE_KEYS if base.get(key) != checkpoint.text.get(key)]:
        yield Finding(
            WARNING,
            f"an adapter whose config.json is not its base model's ({', '.join(differing)}): peft alone reads it with "
            "the base model's RoPE",
            "load the base model with the config.json of this folder, or merge the adapter and export the whole",
        )
    else:
        yield Finding(OK, "the adapter's config.json has the RoPE of its base model")


def _tokenizer(checkpoint: Checkpoint) -> Iterator[Finding]:
    limit = read_json(checkpoint.folder / "tokenizer_config.json").get("model_max_length")
    length = checkpoint.text.get("max_position_embeddings")
    if limit is None or not isinstance(length, int | float):
        return
    if limit >= NO_LIMIT or limit == length:
        yield Finding(OK, f"the tokenizer's limit is {'none' if limit >= NO_LIMIT else int(limit)}")
    elif limit > length:
        yield Finding(NOTE, f"the tokenizer's limit is {int(limit)}, more than the model reads, so that nothing is cut")
    else:
        yield Finding(
            WARNING,
            f"the tokenizer's limit is {int(limit)}: what truncates by it never shows the model its {length:g} tokens",
            f'write "model_max_length": {int(length)} into tokenizer_config.json',
        )


def has_theta(parameters: dict[str, Any]) -> bool:
    return parameters.get("rope_theta") is not None
