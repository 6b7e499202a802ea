"""Preparations on a local Ray of two cores, in a process of its own: Ray needs sockets, which tests may not open.

Prints what happened as JSON: for each case the store's folder, or the error.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from datamodules.corpora.filters import DocumentFilters
from datamodules.prepare.ray_engine import RayEngine
from datamodules.tokens.tokenise import TokenPolicy, prepare_store
from tests.datamodules.conversations.test_prepare import SPLIT, Chats, prepare
from tests.datamodules.prepare.corpora import ShardedCorpus
from tests.datamodules.toy import make_tokenizer


def main(folder: Path) -> dict[str, str]:
    import ray  # pyright: ignore[reportMissingImports]

    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    tokenizer, found = make_tokenizer(), {}
    for case, settings in CASES.items():
        logs = folder / case
        logs.mkdir()
        corpus = ShardedCorpus(folder=str(logs), **settings)
        options = {"policy": TokenPolicy(), "cache_dir": folder / "cache" / case, "name": case, "progress": False}
        try:
            found[case] = str(prepare_store(corpus, tokenizer, engine=RayEngine(), **options).folder)
        except ValueError as error:
            found[case] = f"error: {error}"
    corpus = ShardedCorpus(folder=str(folder / "unreadable"))  # the same parts, as nobody changed the corpus
    options = {"policy": TokenPolicy(), "cache_dir": folder / "cache" / "unreadable", "name": "n", "progress": False}
    found["resumed"] = str(prepare_store(corpus, tokenizer, engine=RayEngine(), **options).folder)
    found["conversations"] = str(prepare(folder / "cache" / "conversations", CHATS, engine=RayEngine(), **SPLIT).folder)
    ray.shutdown()
    return found


CHATS = Chats(num_shards=3)
CASES = {
    "dies": {"dies": 2, "max_quarantined": 0.2, "filters": DocumentFilters(drop_duplicates=True)},
    "unreadable": {"raises": 1},
}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
