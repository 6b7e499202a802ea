"""Finds the checkpoint that a path means, and reads its files as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Checkpoint(NamedTuple):
    """A folder to verify.

    Attributes:
        folder: With config.json, or adapter_config.json.
        base: The folder of an adapter's base model; None for a whole model.
        config: The config.json that the model is built from, as it stands there.
    """

    folder: Path
    base: Path | None
    config: dict[str, Any]

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of the config."""
        return text_part(self.config)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a Hugging Face folder, of an adapter's, or of a run's export.

    Raises:
        ValueError: There is none, or what it needs is not on this disk.
    """
    if not path.exists():
        raise ValueError(f"checkpoint={path} does not exist; name a folder on this disk")
    folder = path / "export" if (path / "run.json").is_file() else path
    if folder != path and not folder.is_dir():
        recipe = read_json(path / "run.json").get("recipe")
        raise ValueError(
            f"run {path} has no export yet; write it with python -m recipes.export recipe={recipe} checkpoint={path}"
        )
    if (folder / "adapter_config.json").is_file():
        base = _base_of(folder)
        own = folder / "config.json"
        return Checkpoint(folder, base, read_json(own if own.is_file() else base / "config.json"))
    if not (folder / "config.json").is_file():
        hint = "export its run first" if path.suffix == ".ckpt" else "name a Hugging Face folder, or a run's"
        raise ValueError(f"checkpoint={path} has no config.json; {hint}")
    return Checkpoint(folder, None, read_json(folder / "config.json"))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file.

    Raises:
        ValueError: It holds no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); correct it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object; correct it")
    return found


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """A config's own keys, or those of the language model in a multimodal one."""
    return config.get("text_config") or config


def in_short(error: BaseException | str) -> str:
    """A library's message on one line, cut where it becomes advice."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}…"


def _base_of(folder: Path) -> Path:
    name = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path"))
    for candidate in (Path(name), folder / name):
        if (candidate / "config.json").is_file():
            return candidate
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:  # neither a name of the hub nor in its cache, each with a class of its own
        raise ValueError(
            f"checkpoint={folder} is an adapter, and its base model {name} is not on this disk; download it, or "
            "correct base_model_name_or_path in adapter_config.json"
        ) from error
