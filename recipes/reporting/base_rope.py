"""RoPE of a recipe's base model, from what lies on disk and in the configuration; no model is built, no network asked.

Where neither says, what nearly every Llama has is assumed, and the assumption comes back in words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from lightning_modules.rope.methods.base import BaseRope

ASSUMED_HEAD_DIM = 128
ASSUMED_ROPE_THETA = 10000.0


class KnownRope(NamedTuple):
    """A base model's RoPE, and in a few words where each part of it was found."""

    rope: BaseRope
    sources: tuple[str, ...]


def known_rope(config: DictConfig) -> KnownRope:
    """The base model's RoPE.

    From `model.source.settings` or the config.json of a folder or of the hub's cache, where there is one; else from
    `model.head_dim` and `model.original_rope_theta`; else assumed. Its length is `model.original_context_length`.

    Raises:
        ValueError: If that length or config.json cannot be read.
    """
    settings, found = model_settings(config)
    head_dim = _head_dim(settings)
    parameters = _rope_parameters(settings)
    sources = [found] if settings else ["the model is not on this disk"]
    if head_dim is None:
        head_dim, said = _stated(config, "model.head_dim", ASSUMED_HEAD_DIM)
        sources.append(said)
    if "rope_theta" not in parameters:
        parameters["rope_theta"], said = _stated(config, "model.original_rope_theta", ASSUMED_ROPE_THETA)
        sources.append(said)
    return KnownRope(
        BaseRope(parameters, whole_number(config, "model.original_context_length"), int(head_dim)), tuple(sources)
    )


def whole_number(config: DictConfig, key: str) -> int:
    """The value of a key that counts something.

    Raises:
        ValueError: If it is missing or no whole number of at least 1.
    """
    value = OmegaConf.select(config, key)
    if value is None:
        raise ValueError(f"{key} has no value; add {key}=… to the command line or the preset")
    if type(value) is not int or value < 1:
        raise ValueError(f"{key}={value} must be a whole number of at least 1")
    return value


def model_settings(config: DictConfig) -> tuple[dict[str, Any], str]:
    """The model's configuration as written, and its place; empty if it is not here."""
    if (settings := OmegaConf.select(config, "model.source.settings")) is not None:
        return _text_settings(OmegaConf.to_container(settings, resolve=True)), "model.source.settings"
    name = OmegaConf.select(config, "model.source.name_or_path")
    path = None if name is None else _config_json(str(name), OmegaConf.select(config, "model.source.revision"))
    if path is None:
        return {}, ""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); set model.source.name_or_path") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, not a model's keys; set model.source.name_or_path")
    return _text_settings(settings), "the model's config.json"


def _text_settings(settings: Any) -> dict[str, Any]:
    """Of a model that also sees or hears, the part that reads text."""
    return dict(settings.get("text_config") or settings)


def _config_json(name_or_path: str, revision: str | None) -> Path | None:
    """config.json of a folder, or of a hub model that was downloaded before."""
    if (path := Path(name_or_path).expanduser() / "config.json").is_file():
        return path
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{name_or_path.replace('/', '--')}").is_dir():
        return None  # the next import takes longer than all the rest
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name_or_path, "config.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _head_dim(settings: Mapping[str, Any]) -> int | None:
    if settings.get("head_dim"):
        return int(settings["head_dim"])
    hidden_size, num_heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    return hidden_size // num_heads if hidden_size and num_heads else None


def _rope_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` in either dialect of config.json: transformers 5's, or older rope_theta and rope_scaling."""
    written = settings.get("rope_parameters")
    if not written:
        written = {"rope_theta": settings.get("rope_theta"), **(settings.get("rope_scaling") or {})}
    if isinstance(full := written.get("full_attention"), Mapping):  # one a layer type; the others stay as they are
        written = full
    parameters = {str(key): value for key, value in written.items() if value is not None and key != "type"}
    parameters.setdefault("rope_type", written.get("type") or "default")
    if (share := settings.get("partial_rotary_factor")) is not None:
        parameters.setdefault("partial_rotary_factor", share)
    if (length := settings.get("original_max_position_embeddings")) is not None:
        parameters.setdefault("original_max_position_embeddings", length)
    return parameters


def _stated(config: DictConfig, key: str, assumed: Any) -> tuple[Any, str]:
    value = OmegaConf.select(config, key)
    if value is not None:
        return value, f"{key}={value}"
    return assumed, f"{key} is assumed to be {assumed:g}"
