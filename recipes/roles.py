"""`corpus=local corpus.folder=/data`: the sources that a preset mixes, each from the user's own folder of its name.

    /data/book/          a folder of files of one kind, or
    /data/arxiv.jsonl    one file: .jsonl, .json, .parquet, .txt or .md, also .zst and .gz

Of the preset stay the shares and all other rules of its mixture, the filters of each source and whether it is text or
conversations; where and in which fields it lay goes. A source that is made, not read, such as recall, is made of the
folders where it is made of other sources, and read if there is a folder of its name. `validation` and `evaluation` are
read where they are there. Nothing is opened here, only looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.judging import mixtures
from recipes.scaling import CORPUS_RULES

KINDS = (".jsonl", ".json", ".parquet", ".txt", ".md")
COMPRESSED = ("", ".zst", ".gz")
TEXT, CONVERSATIONS = ("local", "documents"), ("local_conversations", "conversations")
"""Option of the corpus, and its source, of which a source of each kind is written off."""


def folder_of(words: Mapping[str, str]) -> bool:
    """Whether the words, name -> value, name a folder of roles."""
    return words.get("corpus.folder", "null") not in ("null", "")


def take_rules(config: DictConfig, preset: DictConfig) -> None:
    """Mix what is in the folders as the preset mixes its sources."""
    config.corpus.folder = config.corpus.get("folder")
    for rule in CORPUS_RULES:
        value = preset.corpus[rule]
        config.corpus[rule] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def take_sources(config: DictConfig, preset: DictConfig, conf: Path) -> None:
    """Put the sources that the mixture of `config` uses, as `corpus.folder` has them, into it.

    Args:
        config: The whole of it; `corpus` has the rules already.
        preset: The preset's own configuration, with the corpus that it names.
        conf: The folder with the groups.

    Raises:
        ValueError: The folder is none, or a source that is read has nothing in it.
    """
    folder = Path(str(config.corpus.folder)).expanduser()
    own, used = preset.corpus.sources, used_roles(config, preset)
    found = {role: path for role in dict.fromkeys([*map(str, own), *used]) if (path := place_of(role, folder))}
    missing = [role for role in used if role not in found and (role not in own or not is_made(own[role]))]
    if missing or not found:  # without any, nothing of the folder would be read
        missing = missing or used
        what = "is not a folder" if not folder.is_dir() else f"has nothing to read for {', '.join(missing)}"
        read = [role for role in used if role in {*found, *missing}]
        raise ValueError(
            f"corpus.folder={folder} {what}; each of the sources {', '.join(read)} is a folder of its name there, or a"
            f" file such as {missing[0]}.jsonl, .jsonl.zst, .parquet or .txt"
        )
    conversations = config.stage == "supervised_finetuning"
    context = OmegaConf.merge(config)  # in which the preset's sources mean what they mean there
    assert isinstance(context, DictConfig)
    context.corpus = OmegaConf.merge(preset.corpus, {"sources": {}})
    read = {
        role: local_source(_resolved(context, role), path, conf, conversations=conversations)
        for role, path in found.items()
    }
    for role in (role for role in used if role not in read):
        made = _made_of(OmegaConf.to_container(context.corpus.sources[role]), read)
        context.corpus.sources[role] = made
    config.corpus.sources = {role: read.get(role) or _resolved(context, role) for role in used}
    if path := place_of("validation", folder):
        config.corpus.validation = local_source(None, path, conf, conversations=conversations)
    if path := place_of("evaluation", folder):
        config.corpus.evaluation = local_source(None, path, conf, conversations=False)
    elif conversations:
        config.corpus.evaluation = None  # it is plain text


def _resolved(context: DictConfig, role: str) -> Any:
    node = context.corpus.sources.get(role)
    return None if node is None else OmegaConf.to_container(node, resolve=True)


def _made_of(node: Any, read: Mapping[str, dict[str, Any]]) -> Any:
    """A node that refers to sources, with those that are read from folders in their place."""
    if isinstance(node, dict):
        return {key: _made_of(value, read) for key, value in node.items()}
    named = str(node).removeprefix("${corpus.sources.").removesuffix("}")
    return read[named] if node == f"${{corpus.sources.{named}}}" and named in read else node


def used_roles(config: DictConfig, preset: DictConfig) -> list[str]:
    """Sources with a share in the mixture or in one of its phases; without a mixture, all of the preset's."""
    found = mixtures(config)
    if "corpus.mixture" not in found:
        return [str(role) for role in preset.corpus.sources]
    return list(dict.fromkeys(str(role) for mixture in found.values() for role, share in mixture.items() if share))


def place_of(role: str, folder: Path) -> Path | None:
    """The folder or file of a source; None if there is none.

    Raises:
        ValueError: There are several.
    """
    names = [role, *(f"{role}{kind}{compressed}" for kind in KINDS for compressed in COMPRESSED)]
    found = [path for name in names if (path := folder / name).exists()]
    if len(found) > 1:
        both = " and ".join(path.name for path in found[:2])
        raise ValueError(f"corpus.folder={folder} has {both} for {role}; keep one, or put them into a folder {role}")
    return found[0] if found else None


def is_made(node: Any) -> bool:
    """Whether a source is computed, such as recall, and neither it nor what it is made of is read from the hub."""
    # Among the keys, as one whose value is missing is not `in` the node.
    return not any(key in ("path", "rows") for key in node.keys()) and not _is_of_hub(node)  # noqa: SIM118


def _is_of_hub(node: Any) -> bool:
    """Whether a corpus, or one inside it, has the name of a data set."""
    if "name" in node:
        return True
    parts = (node._get_node(key) for key in node if key != "filters")
    return any(_is_of_hub(part) for part in parts if isinstance(part, DictConfig) and not part._is_interpolation())


def local_source(node: Any, path: Path, conf: Path, *, conversations: bool) -> dict[str, Any]:
    """The node of a source that is read from a path.

    Args:
        node: The preset's source of that name, resolved; None if it has none.
        path: A folder or a file.
        conf: The folder with the groups.
        conversations: What a source is that the preset does not have.
    """
    own: dict[str, Any] = node or {}
    if own:
        conversations = "rows" in own or "tasks" in own
    if conversations:
        made = _written_off(*CONVERSATIONS, conf)
        made["rows"] = _reader(made["rows"], path, own.get("rows"))
        # Texts that are learned whole stay that; how else a row is laid out is of the preset's files.
        return {**made, "records": "text"} if own.get("records") == "text" else made
    if "path" in own and "max_tokens" in own:  # examples that are joined up to a length
        return {**own, "path": str(path)}
    reader = _written_off(*TEXT, conf)
    if isinstance(own.get("corpus"), dict):  # a text that is changed, such as by UL2
        return {**own, "corpus": _reader(reader, path, own["corpus"])}
    return _reader(reader, path, own)


def _written_off(option: str, source: str, conf: Path) -> dict[str, Any]:
    corpus = OmegaConf.to_container(OmegaConf.load(conf / "corpus" / f"{option}.yaml"))
    assert isinstance(corpus, dict)
    return corpus["sources"][source]


def _reader(reader: dict[str, Any], path: Path, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """A reader of files, with the filters of the preset's."""
    filters = (preset or {}).get("filters") or {}
    return {**reader, "path": str(path), "filters": {**reader["filters"], **filters}}
