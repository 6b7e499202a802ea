"""The token store: documents tokenised once, on disk, opened with numpy alone.

    tokens.bin    all documents' tokens, one after the other, uint16 or uint32
    offsets.npy   [num_documents + 1] int64; document d is tokens[offsets[d]:offsets[d + 1]]
    meta.json     what it was made from, counts, and the policy

A store is written into a folder beside its final place, brought to the disk, and renamed when it is complete, so a
folder under the final name is always whole; a lock file keeps two processes from building the same store twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class TokenStore:
    """A memory-mapped collection of tokenised documents.

    Attributes:
        tokens: [num_tokens] uint16 or uint32, memory-mapped.
        offsets: [num_documents + 1] int64.
        meta: What the store was made from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.offsets: np.ndarray = np.load(folder / "offsets.npy", allow_pickle=False)
        self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=self.meta["dtype"], mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # loader workers open the files themselves instead of receiving their bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        TokenStore.__init__(self, state["folder"])

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """[num_documents] int64."""
        return np.diff(self.offsets)

    def slice(self, document: int, start: int, end: int) -> np.ndarray:
        """Tokens start..end of one document, [end - start] int64."""
        base = int(self.offsets[document])
        return self.tokens[base + start : base + end].astype(np.int64)


def write_store(folder: Path, documents: Iterable[np.ndarray], *, vocab_size: int, meta: dict[str, Any]) -> TokenStore:
    """Write documents to a new store and move it to its final name in one step.

    Args:
        folder: Final place; must not exist.
        documents: Token ids of each document, 1-D integer arrays.
        vocab_size: Above every token id; decides the width of a token on disk.
        meta: Written into `meta.json` beside the counts, after the last document: `documents` may still change it.

    Raises:
        ValueError: There is not one token, or reading the documents fails; nothing is left on disk.
    """
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed build; the lock is ours
    partial.mkdir(parents=True)
    try:
        offsets = [0]
        with (partial / "tokens.bin").open("wb") as handle:
            for ids in documents:
                assert len(ids) == 0 or ids.max() < vocab_size, "a token id would wrap around"
                handle.write(np.ascontiguousarray(ids, dtype=dtype).tobytes())
                offsets.append(offsets[-1] + len(ids))
        if offsets[-1] == 0:
            raise ValueError(f"the corpus of {folder} holds no text ({meta}); check corpus.sources")
        np.save(partial / "offsets.npy", np.asarray(offsets, dtype=np.int64))
        counts = {"dtype": np.dtype(dtype).name, "num_documents": len(offsets) - 1, "num_tokens": offsets[-1]}
        (partial / "meta.json").write_text(json.dumps({**meta, **counts}, indent=2), encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return TokenStore(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; a lock left by a killed process is free again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
