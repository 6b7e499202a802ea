"""The bundled model and text cut down: what trains a preset at scale=toy in a second instead of ten.

`${bundled:demo_model}` is a Llama of two narrow layers under the demo model's own tokenizer and context, and
`${bundled:classics/…}` a few pages of the bundled texts; every other bundled file is the one that lies in the packages.
A preset, its corpora and its model are therefore composed, checked and built as they are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes import compose as composing

DOCUMENTS = {"train": (8, 20_000), "heldout": (4, 20_000)}
"""How many of each file's texts, and how many of their characters."""
NARROW: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
CONVERSATIONS = 24


def write_small_bundle(folder: Path) -> None:
    """The small model in `demo_model/`, the short texts in `classics/`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from zstandard import ZstdCompressor

    from datamodules.corpora.files import FileCorpus

    composing._register_resolvers()
    demo, small = Path(composing._bundled("demo_model")), folder / "demo_model"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(demo, **NARROW)).save_pretrained(small)
    for file in demo.glob("token*"):
        (small / file.name).symlink_to(file)
    (folder / "classics").mkdir()
    for name, (documents, characters) in DOCUMENTS.items():
        texts = islice(FileCorpus(path=composing._bundled(f"classics/{name}.jsonl.zst")).texts(), documents)
        lines = "".join(json.dumps({"text": text[:characters]}) + "\n" for text in texts)
        (folder / "classics" / f"{name}.jsonl.zst").write_bytes(ZstdCompressor().compress(lines.encode()))


@contextmanager
def small_bundle_in_use(folder: Path) -> Iterator[None]:
    """While it is open `${bundled:…}` finds what `write_small_bundle` wrote."""
    composing._register_resolvers()
    OmegaConf.register_new_resolver("bundled", lambda name: _small(folder, name), replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("bundled", composing._bundled, replace=True)


def _small(folder: Path, name: str) -> str:
    return str(file) if (file := folder / name).exists() else composing._bundled(name)


def small_words(config: DictConfig) -> list[str]:
    """Words that make small what a recipe does not take from the bundle: a model from scratch, made conversations."""
    settings = NARROW if "settings" in config.model.source else {}
    mixed = config.corpus.mixture or config.corpus.sources  # null: all of them
    made = [name for name in mixed if "num_conversations" in config.corpus.sources[name]]
    return [
        *(f"model.source.settings.{key}={value}" for key, value in settings.items()),
        *(f"corpus.sources.{name}.num_conversations={CONVERSATIONS}" for name in made),
    ]
