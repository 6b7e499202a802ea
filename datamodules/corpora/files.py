"""Corpora in local files: JSONL, Parquet and plain text, compressed or not, read through `datasets`.

`datasets` streams the rows; it does not say which line of which file was bad, and it lets wrong types through. So rows
are checked here, and a failed JSONL file is scanned once more to name the line.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text", ".md": "text"}
COMPRESSIONS = {".zst", ".gz"}
SAMPLED_BYTES = 64 << 20
"""Files up to this size are fingerprinted whole; larger ones by size and evenly spread samples of this total."""


@dataclass(frozen=True)
class FileCorpus:
    """Documents of one or several local files of one kind.

    Args:
        path: A file, a folder, a glob pattern, or a list of these. A text file is one document.
        text_field: The field that holds the text, for JSONL and Parquet.
    """

    path: str | list[str]
    text_field: str = "text"

    def files(self) -> list[Path]:
        """The files that `path` names, sorted, after checking that there are some and that they can be read.

        Raises:
            ValueError: Nothing is there, a file is empty, or its kind is unknown.
        """
        patterns = [self.path] if isinstance(self.path, str) else list(self.path)
        found = [file for pattern in patterns for file in _expand(pattern)]
        for file in found:
            if file.stat().st_size == 0:
                raise ValueError(f"corpus file {file} is empty; remove it from corpus.sources.*.path")
            if _suffix(file) not in BUILDERS:
                allowed = ", ".join(sorted(BUILDERS))
                raise ValueError(f"corpus file {file} has an unknown extension; allowed are {allowed} (also .zst, .gz)")
        if len({BUILDERS[_suffix(file)] for file in found}) > 1:
            raise ValueError(f"corpus path {self.path} mixes file kinds; give each kind a source of its own")
        return found

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"files {self.text_field}".encode())
        for file in self.files():
            digest.update(_content_digest(file))
        return digest.hexdigest()

    def texts(self) -> Iterator[str]:
        for file in self.files():
            builder = BUILDERS[_suffix(file)]
            try:
                yield from self._checked(file, builder)
            except ValueError:
                raise
            except Exception as error:  # `datasets` wraps Arrow, JSON, zstd and decoding errors in several types
                raise ValueError(diagnose(file, self.text_field) or _unreadable(file, error)) from error

    def _checked(self, file: Path, builder: str) -> Iterator[str]:
        field = "text" if builder == "text" else self.text_field
        count = 0
        for row in _rows(file, builder):
            text = row.get(field)
            if not isinstance(text, str):
                problem = f"row {count + 1} has no text in field '{field}' (it has {sorted(row)})"
                raise ValueError(diagnose(file, field) or f"{file}: {problem}; set corpus.sources.*.text_field")
            count += 1
            yield text
        if count == 0:
            raise ValueError(f"corpus file {file} holds no documents; remove it from corpus.sources.*.path")


def diagnose(file: Path, text_field: str) -> str | None:
    """Name the first bad line of a JSONL file: not UTF-8, not JSON, not an object, or without a text.

    Returns:
        One sentence with file and line number, or None when the file is no JSONL or every line is good.
    """
    if _suffix(file) not in {".jsonl", ".json"}:
        return None
    number = 0
    try:
        with _open(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and (problem := _problem(line, text_field)):
                    return f"{file}, line {number}: {problem}"
    except (OSError, EOFError, ValueError) as error:
        return f"{file} breaks off after line {number}: {error}; is the download complete?"
    return None


def _problem(line: bytes, text_field: str) -> str | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not valid UTF-8; convert the file to UTF-8"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
    if not isinstance(record, dict):
        return f"a JSON {type(record).__name__}, where each line must be one JSON object"
    if text_field not in record:
        return f"no field '{text_field}' (it has {sorted(record)}); set corpus.sources.*.text_field"
    if not isinstance(record[text_field], str):
        return f"field '{text_field}' holds a {type(record[text_field]).__name__}, where a string is needed"
    return None


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in BUILDERS)
    elif path.exists():
        inside = [path]
    else:
        root = Path(path.anchor or ".")
        inside = sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if file.is_file())
    if not inside:
        raise ValueError(f"corpus path {pattern} names no file; set corpus.sources.*.path")
    return inside


def _suffix(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _rows(file: Path, builder: str) -> Iterator[dict[str, Any]]:
    import datasets

    options: dict[str, Any] = {"sample_by": "document"} if builder == "text" else {}
    loaded = datasets.load_dataset(builder, data_files=str(file), split="train", streaming=True, **options)
    yield from loaded  # type: ignore[misc]  # a streaming split is an IterableDataset of dicts


def _open(file: Path) -> BinaryIO:
    if file.suffix == ".zst":
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file.open("rb"), closefd=True))
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _unreadable(file: Path, error: Exception) -> str:
    return f"corpus file {file} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def _content_digest(file: Path) -> bytes:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        if size <= SAMPLED_BYTES:
            digest.update(handle.read())
        else:
            samples = 64
            for k in range(samples):
                handle.seek((size - SAMPLED_BYTES // samples) * k // (samples - 1))
                digest.update(handle.read(SAMPLED_BYTES // samples))
    return digest.digest()
