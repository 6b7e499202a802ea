"""The token store: documents tokenised once, on disk, opened with numpy alone.

    tokens.bin        all documents' tokens, one after the other, uint16 or uint32
    offsets.npy       [num_documents + 1] int64; document d is tokens[offsets[d]:offsets[d + 1]]
    hashes.npy        [num_documents, 16] uint8, what tells equal texts; absent where nobody computed it
    loss_mask.bin     a byte a token, 1 where it is a label; absent where every token is one
    meta.json         what it was made from, counts, the policy, what was dropped
    quarantine.jsonl  every row that could not be used, with its place and the reason; absent where there is none

A store is written into a folder beside its final place, brought to the disk, and renamed when it is complete, so a
folder under the final name is always whole; a lock file keeps two processes from building the same store twice. All
files are written in one pass, and the memory that it takes does not grow with the number of documents.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

LOSS_MASK = "loss_mask.bin"


class TokenStore:
    """A memory-mapped collection of tokenised documents.

    Attributes:
        tokens: [num_tokens] uint16 or uint32, memory-mapped.
        offsets: [num_documents + 1] int64, memory-mapped.
        loss_mask: [num_tokens] uint8, memory-mapped, 1 where a token is a label; None where every token is one.
        meta: What the store was made from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # Without the subclass, which would make every look-up several times slower.
        self.offsets: np.ndarray = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=self.meta["dtype"], mode="r")
        mask = folder / LOSS_MASK
        self.loss_mask: np.ndarray | None = np.memmap(mask, dtype=np.uint8, mode="r") if mask.exists() else None

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

    @property
    def hashes(self) -> np.ndarray | None:
        """[num_documents, 16] uint8, memory-mapped; None where the store has none."""
        file = self.folder / "hashes.npy"
        return np.load(file, mmap_mode="r", allow_pickle=False) if file.exists() else None

    def slice(self, document: int, start: int, end: int) -> np.ndarray:
        """Tokens start..end of one document, [end - start] int64."""
        base = int(self.offsets[document])
        return self.tokens[base + start : base + end].astype(np.int64)

    def mask_slice(self, document: int, start: int, end: int) -> np.ndarray:
        """Which of tokens start..end of one document are labels, [end - start] bool."""
        if self.loss_mask is None:
            return np.ones(end - start, dtype=bool)
        base = int(self.offsets[document])
        return self.loss_mask[base + start : base + end] != 0

    def num_labels(self, document: int) -> int:
        """Labels of one document that are predicted: its first token is not."""
        length = int(self.offsets[document + 1] - self.offsets[document])
        return int(np.count_nonzero(self.mask_slice(document, min(1, length), length)))


class NpyWriter:
    """An `.npy` file whose rows come little by little, so that none has to wait in memory.

    Args:
        file: Where it goes.
        dtype: Of every row.
        row_shape: Shape of one row; () for a vector.
    """

    def __init__(self, file: Path, dtype: Any, row_shape: tuple[int, ...] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self.row_shape = row_shape
        self.num_rows = 0
        self._handle: BinaryIO = file.open("wb")
        self._header()

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self._close()
        self._handle.close()

    def append(self, rows: np.ndarray) -> None:
        """Write [n, *row_shape]."""
        self._handle.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.num_rows += len(rows)

    def _close(self) -> None:
        """Write how many rows there were into the header, which has room for it."""
        end = self._handle.tell()
        expected = self._start + self.num_rows * int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
        assert end == expected, "rows of another shape were written"
        self._handle.seek(0)
        before = self._start
        self._header()
        assert self._start == before, "the header has outgrown its place"

    def _header(self) -> None:
        shape = (self.num_rows, *self.row_shape)
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._handle, description)
        self._start = self._handle.tell()


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest width that holds every id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


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
    dtype = token_dtype(vocab_size)
    with whole_folder(folder) as partial:
        end = 0
        with NpyWriter(partial / "offsets.npy", np.int64) as offsets, (partial / "tokens.bin").open("wb") as handle:
            offsets.append(np.zeros(1))
            for ids in documents:
                assert len(ids) == 0 or ids.max() < vocab_size, "a token id would wrap around"
                handle.write(np.ascontiguousarray(ids, dtype=dtype).tobytes())
                end += len(ids)
                offsets.append(np.array([end]))
        if end == 0:
            raise ValueError(f"the corpus of {folder} holds no text ({meta}); check corpus.sources")
        write_meta(partial, meta, dtype=dtype, num_documents=offsets.num_rows - 1, num_tokens=end)
    return TokenStore(folder)


def write_meta(folder: Path, meta: dict[str, Any], *, dtype: np.dtype, num_documents: int, num_tokens: int) -> None:
    """Write `meta.json`: `meta` and the counts."""
    counts = {"dtype": dtype.name, "num_documents": num_documents, "num_tokens": num_tokens}
    (folder / "meta.json").write_text(json.dumps({**meta, **counts}, indent=2), encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, *, suffix: str | None = None) -> Iterator[Path]:
    """Give a folder to write files into, which appears as `folder` when all is written, or not at all.

    It does so without a lock too: everybody who writes the same folder at once writes under a name of their own, and
    who comes second leaves what the first one made.

    Args:
        folder: Final place; does not exist when the work begins.
        suffix: What the folder is called meanwhile; None takes a name that tells machine and process, and removes what
            others left who were killed: those of this machine now, and all others once `folder` is there.
    """
    named = suffix is not None
    if not named:
        _remove_left(folder, if_killed=True)
        suffix = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"
    partial = folder.with_name(f"{folder.name}.{suffix}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            _to_disk(file)
        _to_disk(partial)
        partial.rename(folder)
        _to_disk(folder.parent)
        if not named:
            _remove_left(folder, if_killed=False)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # else someone was first, and may have removed what we wrote
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_left(folder: Path, *, if_killed: bool) -> None:
    """Remove unfinished copies of a folder: those of ended processes of this machine, or all."""
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*.partial"):
        host, _, process = left.name.removeprefix(f"{folder.name}.").rsplit(".", 2)[0].rpartition(".")
        if not if_killed or (host == socket.gethostname() and process.isdigit() and not _is_running(int(process))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # which only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; a lock left by a killed process is free again.

    Some file systems of clusters have no such locks. There several processes may do the same work, and `whole_folder`
    keeps what the first of them finishes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield
