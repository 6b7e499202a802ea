"""`model=gguf model.path=…`: a GGUF file as a Hugging Face folder, made once, which all else opens like any other.

The folder lies in `cache_dir` under a name that tells the file's content, so that a file is imported once for all runs,
and it appears whole or not at all. Reading quantised weights at every start instead would cost every verb the time of
the import, and whatever writes a base model beside its own weights could not.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.importing.gguf_header import header, of_model

IMPORTED_AS = "1"
"""Changes with what an import writes, so that folders of earlier ones are not taken for it."""


def value_of_gguf(path: str, what: str, cache_dir: str = "") -> Any:
    """What conf/model/gguf.yaml asks of a file: `${gguf:${model.path},context_length}`.

    Args:
        path: The file.
        what: folder | context_length | head_dim | rope_theta
        cache_dir: Where imported folders lie, of `folder` alone; the folder need not be there yet.

    Raises:
        ValueError: The file cannot be read, or does not say it.
    """
    if what == "folder":
        return str(folder_of(Path(path), cache_dir=Path(cache_dir)))
    if what == "head_dim":
        whole = of_model(path, "embedding_length") // of_model(path, "attention.head_count")
        return of_model(path, "attention.key_length", whole)
    key = {"context_length": "context_length", "rope_theta": "rope.freq_base"}[what]
    return of_model(path, key, 10_000.0 if what == "rope_theta" else None)


def folder_of(file: Path, *, cache_dir: Path) -> Path:
    """Where the import of a file lies, or will."""
    from datamodules.corpora.files import content_digest

    header(file)  # says what is wrong with the file
    file = file.expanduser()
    return cache_dir / "imported" / f"{file.stem}-{IMPORTED_AS}-{content_digest(file).hex()[:12]}"


def import_gguf(file: Path, *, cache_dir: Path) -> Path:
    """Import a file, unless that has been done.

    Args:
        file: A GGUF file of a Llama-like model.
        cache_dir: Gets the folder, of four bytes a parameter.

    Returns:
        The folder, with config.json, weights in fp32, the tokenizer and its chat template.

    Raises:
        ValueError: The package `gguf` is missing, or the file cannot be imported.
    """
    from datamodules.tokens.store import locked, whole_folder
    from lightning_modules.gguf_model import refuse_without_gguf

    folder = folder_of(file, cache_dir=cache_dir)
    if folder.is_dir():
        return folder
    refuse_without_gguf()
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                _write(file.expanduser(), partial)
            print(f"imported {file} into {folder}")
    return folder


def _write(file: Path, folder: Path) -> None:
    from datamodules.tokens.gguf_tokenizer import load_gguf_tokenizer
    from lightning_modules.gguf_model import load_gguf
    from recipes.exporting.hugging_face import save_tokenizer, write_both_dialects

    try:
        kind, split = tokenizer_rules(file)
    except (ValueError, IndexError, KeyError) as error:  # numpy's of a file that ends early
        raise ValueError(f"model.path={file} cannot be read ({error}); is the file complete?") from error
    tokenizer = load_gguf_tokenizer(file, kind=kind, split=split)
    load_gguf(file).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, context_length=of_model(file, "context_length"))
    write_both_dialects(folder / "config.json")
    made_of = {"file": str(file), "bytes": file.stat().st_size, "license": header(file).get("general.license")}
    (folder / "imported.json").write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")


def tokenizer_rules(file: Path) -> tuple[str, str | None]:
    """A file's kind of vocabulary, and the rule by which text is split; they may stand behind its lists."""
    fields: Any = importlib.import_module("gguf").GGUFReader(file).fields
    kind, split = (fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return str(kind.contents()) if kind else "none", str(split.contents()) if split else None


def import_faults(config: DictConfig) -> Iterator[str]:
    """Import the file that `model.path` names, if the model is to come from one; what hinders that in a sentence."""
    if "path" not in config.model:
        return
    file, folder = Path(str(config.model.path)), Path(str(config.cache_dir))
    try:
        if OmegaConf.select(config, "model.source.name_or_path") == str(folder_of(file, cache_dir=folder)):
            import_gguf(file, cache_dir=folder)
    except (ValueError, OmegaConfBaseException) as error:
        yield str(error)


def path_faults(config: DictConfig) -> Iterator[str]:
    """A `model.path` that is no GGUF file, said before everything that would be read from it is missing."""
    if "path" in config.model:
        path = config.model.path
        if path is None:
            yield "model.path=null must be a GGUF file; set model.path to one, or take another model"
            return
        try:
            header(str(path))
        except ValueError as error:
            yield str(error)
