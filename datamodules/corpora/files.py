"""Corpora in local files: JSONL, Parquet and plain text, compressed or not.

One pass, one document in memory (Parquet: a few), nothing written anywhere. Every row is checked as it is read, so an
error names the file and the line. The alternative, `datasets`, infers a JSONL file's types from its first 10 MB and
casts the rest to them: one number among later texts put quotes around every text near it, without an error, and a
metadata field that first appeared later ended the reading. Hub data sets (`hub.py`) do come through it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.corpora.decompress import COMPRESSIONS, open_decompressed

SAMPLED_BYTES = 64 << 20
"""Files up to this size are fingerprinted whole; larger ones by size and evenly spread samples of this total."""


class BadDocument(ValueError):
    """A document that a user has to repair; the message names its place."""


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
            if _suffix(file) not in READERS:
                allowed = ", ".join(sorted(READERS))
                raise ValueError(f"corpus file {file} has an unknown extension; allowed are {allowed} (also .zst, .gz)")
            if file.stat().st_size == 0:
                raise ValueError(f"corpus file {file} is empty; remove it from corpus.sources.*.path")
        if len({READERS[_suffix(file)] for file in found}) > 1:
            raise ValueError(f"corpus path {self.path} mixes file kinds; give each kind a source of its own")
        return found

    def fingerprint(self) -> str:
        files = self.files()
        digest = hashlib.sha256(f"files {READERS[_suffix(files[0])].__name__} {self.text_field}".encode())
        for file in files:
            digest.update(content_digest(file))
        return digest.hexdigest()

    def texts(self) -> Iterator[str]:
        for file in self.files():
            count = 0
            try:
                for text in READERS[_suffix(file)](file, self.text_field):
                    yield text
                    count += 1
            except BadDocument:
                raise
            except Exception as error:  # reading raises errors of zlib, zstd, Arrow and the system
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(f"corpus file {file} cannot be read: {reason}; is it complete?") from error
            if count == 0:
                raise ValueError(f"corpus file {file} holds no documents; remove it from corpus.sources.*.path")


def read_json(file: Path, text_field: str) -> Iterator[str]:
    """One document a line, as a JSON object; in a `.json` file that begins with `[`, one an element of the list."""
    with open_decompressed(file) as lines:
        if _suffix(file) == ".json" and lines.peek(1).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            for number, record in enumerate(json.loads(lines.read()), 1):
                yield _text_of(record, text_field, f"{file}, item {number}")
            return
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if line:
                place = f"{file}, line {number}"
                yield _text_of(_parsed(line, place), text_field, place)


def read_text(file: Path, text_field: str) -> Iterator[str]:
    """The whole file as one document, line ends as \\n."""
    with open_decompressed(file) as handle:
        content = handle.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadDocument(f"{file}, line {line}: {NOT_UTF8}") from error
    yield text.replace("\r\n", "\n").replace("\r", "\n")


def read_parquet(file: Path, text_field: str) -> Iterator[str]:
    """One document a row; only the column of the text is read."""
    import pyarrow.parquet

    if file.suffix.lower() in COMPRESSIONS:
        raise BadDocument(f"{file} is compressed from outside, which Parquet cannot read in pieces; unpack it")
    with pyarrow.parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        if text_field not in names:
            raise BadDocument(f"{file}: no field '{text_field}' (it has {sorted(names)}); {SET_FIELD}")
        number = 0
        for batch in table.iter_batches(batch_size=64, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield _text_of({text_field: text}, text_field, f"{file}, row {number}")


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".txt": read_text,
    ".md": read_text,
}
NOT_UTF8 = "not valid UTF-8; convert the file to UTF-8"
SET_FIELD = "set corpus.sources.*.text_field"


def _parsed(line: bytes, place: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadDocument(f"{place}: byte {error.start} is {NOT_UTF8}") from error
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg} at column {error.colno})"
        raise BadDocument(f"{place}: {problem}; each line must be one JSON object") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise BadDocument(f"{place}: not JSON that can be read ({error})") from error


def _text_of(record: object, text_field: str, place: str) -> str:
    if not isinstance(record, dict):
        raise BadDocument(f"{place}: a JSON {type(record).__name__}, where each document must be one JSON object")
    if text_field not in record:
        raise BadDocument(f"{place}: no field '{text_field}' (it has {sorted(record)}); {SET_FIELD}")
    text = record[text_field]
    if not isinstance(text, str):
        held = "null" if text is None else f"a {type(text).__name__}"
        raise BadDocument(f"{place}: field '{text_field}' holds {held}, where a string is needed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadDocument(
            f"{place}: character {error.start} is half of a surrogate pair (an escape such as \\ud83d), which no"
            " tokenizer can read; repair or remove the line"
        ) from error
    return text


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in READERS)
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


def content_digest(file: Path) -> bytes:
    """A digest of the content alone, not of name or time."""
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
