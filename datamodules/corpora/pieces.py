"""The parts that files are read in: whole files, ranges of lines, ranges of Parquet row groups.

A part remembers what its file was when the corpus was dealt out, and reading it ends with an error where the file has
changed since: half of an old file and half of a new one is no corpus.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.corpora.base import BadDocument, Document, Quarantine
from datamodules.corpora.rows import RowRules, Span, columns_of, kind_of, open_parquet

SHARD_BYTES = 64 << 20
"""About how much text one process reads at a time. Changes who reads what, never what is read."""


class Signature(NamedTuple):
    """What changes with a file."""

    size: int
    mtime_ns: int
    inode: int


class Piece(NamedTuple):
    """A file, or a part of one, as it was when the corpus was dealt out."""

    file: Path
    span: Span | None = None
    signature: Signature | None = None
    broken: str | None = None  # why it cannot be read at all

    def __str__(self) -> str:
        if self.span is None:
            return str(self.file)
        return f"{self.file}, from {'row' if kind_of(self.file) == '.parquet' else 'line'} {self.span.first_row}"


class Blame(NamedTuple):
    """How an error says what cannot be read, and what to do."""

    subject: str
    remedy: str


def read_unchanged(
    file: Any,
    signature: Signature | None,
    reader: Callable[[Any, RowRules, Quarantine, Span | None], Iterator[Document]],
    rules: RowRules,
    quarantine: Quarantine,
    *,
    span: Span | None = None,
    blame: Blame,
) -> Iterator[Document]:
    """The documents of a file that stays the same meanwhile, as long as it can be read.

    Args:
        file: What the reader takes.
        signature: What the file was before; None for files that cannot change.
        reader: One of `READERS`.
        rules: How to read.
        quarantine: Receives the rows that cannot be used, and with `allow_partial` the place where the file breaks off.
        span: Part of the file to read.
        blame: For messages.

    Raises:
        ValueError: The file changed or cannot be read.
    """
    place = None
    _check_unchanged(file, signature)
    try:
        for document in reader(file, rules, quarantine, span):
            place = document.place
            yield document
    except BadDocument:
        raise
    except Exception as error:  # reading raises errors of zlib, zstd, Arrow, the network and the system
        _check_unchanged(file, signature)
        if not (rules.allow_partial and place and breaks_off(error)):
            raise unreadable(error, blame, hint=bool(place and breaks_off(error))) from error
        quarantine.add(f"{file}, after {place.removeprefix(f'{file}, ')}", f"the file breaks off ({reason_of(error)})")
    _check_unchanged(file, signature)


def breaks_off(error: Exception) -> bool:
    """Whether it is the file that ends or is damaged here, and not the network or the disk that failed."""
    if isinstance(error, OSError):
        return error.errno is None and type(error) in (OSError, gzip.BadGzipFile)
    return isinstance(error, EOFError | zlib.error | lzma.LZMAError | ValueError)  # ValueError: Arrow


def signature_of(file: Path) -> Signature:
    """The signature of a file as it is now."""
    stat = file.stat()
    return Signature(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def is_large(signature: Signature) -> bool:
    """Whether a file is more than one process should read alone, if that can be helped."""
    return signature.size > SHARD_BYTES


def _check_unchanged(file: Any, signature: Signature | None) -> None:
    if signature is None:
        return
    try:
        unchanged = signature_of(Path(file)) == signature
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        raise BadDocument(f"corpus file {file} changed while it was being read; leave it alone and start again")


def unreadable(error: Exception, blame: Blame, *, hint: bool = False) -> ValueError:
    """The error that a user sees for one of reading; `hint` names `allow_partial`."""
    if isinstance(error, BadDocument):
        return error
    partial = " (corpus.sources.*.allow_partial=true uses the rows before the break)" if hint else ""
    return ValueError(f"{blame.subject} cannot be read: {reason_of(error)}; {blame.remedy}{partial}")


def reason_of(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def row_group_spans(file: Path, rules: RowRules) -> Iterator[tuple[Span, int]]:
    """Parts of a Parquet file with the bytes of their texts."""
    with open_parquet(file, rules) as table:
        columns = tuple(name.split(".")[0] for name in columns_of(rules))
        start, first_row, weight, rows = 0, 1, 0, 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            chunks = [group.column(k) for k in range(group.num_columns)]
            chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
            weight += sum(chunk.total_uncompressed_size for chunk in chunks)
            rows += group.num_rows
            if weight >= SHARD_BYTES:
                yield Span(start, number + 1, first_row), weight
                start, first_row, weight, rows = number + 1, first_row + rows, 0, 0
        if start < table.num_row_groups or start == 0:
            yield Span(start, table.num_row_groups, first_row), weight


def line_spans(file: Path) -> Iterator[Span]:
    """Parts of a JSONL file that begin and end at line ends, each at least `SHARD_BYTES` but the last."""
    size = file.stat().st_size
    start, first_line = 0, 1
    with file.open("rb") as handle:
        while start < size:
            handle.seek(min(start + SHARD_BYTES, size) - 1)
            while (line := handle.readline(1 << 20)) and not line.endswith(b"\n"):
                pass  # a long line, in pieces
            end = handle.tell()
            yield Span(start, end, first_line)
            handle.seek(start)
            for position in range(start, end, 1 << 20):
                first_line += handle.read(min(1 << 20, end - position)).count(b"\n")
            start = end


def grouped(pieces: Sequence[tuple[Piece, int]]) -> Iterator[list[Piece]]:
    """Consecutive pieces, as many as make a shard."""
    group: list[Piece] = []
    size = 0
    for piece, weight in pieces:
        if group and size + weight > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(piece)
        size += weight
    if group:
        yield group
