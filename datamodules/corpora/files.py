"""Corpora in local files: JSONL, Parquet and plain text, compressed or not.

One pass, one document in memory (Parquet: a few), nothing written anywhere. Every row is checked as it is read
(`rows.py`), so an error names the file and the line. A corpus is dealt out in shards of about 64 MB: large JSONL files
in ranges of lines, Parquet files in ranges of row groups, small files several at a time; a compressed file and a JSON
list cannot be entered in the middle, so each is one shard.

The alternative, `datasets`, infers a JSONL file's types from its first 10 MB and casts the rest to them: one number
among later texts put quotes around every text near it, without an error, and a metadata field that first appeared later
ended the reading. Hub data sets (`hub.py`) do come through it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from datamodules.corpora.base import BadDocument, Document, Quarantine
from datamodules.corpora.decompress import COMPRESSIONS, BinaryFile
from datamodules.corpora.filters import DocumentFilters
from datamodules.corpora.pieces import (
    Blame,
    Piece,
    grouped,
    is_large,
    line_spans,
    read_unchanged,
    reason_of,
    row_group_spans,
    signature_of,
    unreadable,
)
from datamodules.corpora.rows import (
    RowRules,
    Span,
    kind_of,
    read_json,
    read_parquet,
    read_text,
)

SAMPLED_BYTES = 64 << 20
"""Files up to this size are fingerprinted whole; larger ones by size and evenly spread samples of this total."""

READERS: dict[str, Callable[[BinaryFile, RowRules, Quarantine, Span | None], Iterator[Document]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".txt": read_text,
    ".md": read_text,
}


@dataclass(frozen=True, kw_only=True)
class ReadCorpus(RowRules):
    """What the corpora that read rows have in common, besides how they read them.

    Args:
        filters: What is dropped before and after tokenisation; None drops only empty documents. Applied by `prepare`:
            `shards()` and `texts()` give every document.
        max_quarantined: Largest share of the rows that may be set aside, 0..1. At 0 the first stops everything.
    """

    filters: DocumentFilters | None = None
    max_quarantined: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.max_quarantined
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"max_quarantined={share} must be from 0 to 1; set corpus.sources.*.max_quarantined")
        if self.allow_partial and not share:
            raise ValueError(
                "allow_partial=true sets the break of a file aside, which max_quarantined=0 forbids; set"
                " corpus.sources.*.max_quarantined above 0"
            )
        decontaminate = self.filters.decontaminate if self.filters else None
        if decontaminate and decontaminate.drop_tasks and self.task_field is None:
            raise ValueError(
                "filters.decontaminate.drop_tasks=true needs the field that names a record's task; set"
                " corpus.sources.*.task_field"
            )

    @property
    def rules(self) -> RowRules:
        """Only what reading a row needs: it travels with every shard."""
        return RowRules(**{field.name: getattr(self, field.name) for field in fields(RowRules)})

    def settings_digest(self) -> str:
        """Changes with every setting that may change the documents; empty as long as all are as they always were.

        `max_quarantined` changes none: it is weighed whenever a store is opened (`quarantine.check_reused`).
        """
        changed: dict[str, Any] = {
            key: value
            for key, value in asdict(self.rules).items()
            if key not in ("text_field", "max_compression_ratio") and value != getattr(RowRules(), key)
        }
        if self.filters is not None and (filters := self.filters.fingerprint()) != DocumentFilters().fingerprint():
            changed["filters"] = filters
        return json.dumps(changed, sort_keys=True) if changed else ""


@dataclass(frozen=True)
class FileCorpus(ReadCorpus):
    """Documents of one or several local files of one kind.

    The other arguments are those of `RowRules` and `ReadCorpus`.

    Args:
        path: A file, a folder, a glob pattern, or a list of these. A text file is one document.
    """

    path: str | list[str]

    def files(self) -> list[Path]:
        """The files that `path` names, sorted, after checking that there are some and that they can be read.

        Raises:
            ValueError: Nothing is there, a file is empty, no file at all (a pipe, a dangling link), or its kind is
                unknown.
        """
        patterns = [self.path] if isinstance(self.path, str) else list(self.path)
        found = [file for pattern in patterns for file in _expand(pattern)]
        for file in found:
            if kind_of(file) not in READERS:
                allowed = ", ".join(sorted(READERS))
                raise ValueError(f"corpus file {file} has an unknown extension; allowed are {allowed} (also .zst, .gz)")
            if file.stat().st_size == 0 and not self.max_quarantined:
                raise ValueError(f"corpus file {file} is empty; remove it from corpus.sources.*.path")
        if len({READERS[kind_of(file)] for file in found}) > 1:
            raise ValueError(f"corpus path {self.path} mixes file kinds; give each kind a source of its own")
        return found

    def fingerprint(self) -> str:
        """A string that changes with the content of the files and every setting that may change the documents."""
        files = self.files()
        kind = READERS[kind_of(files[0])].__name__
        digest = hashlib.sha256(f"files {kind} {self.text_field}{self.settings_digest()}".encode())
        for file in files:
            digest.update(content_digest(file))
        return digest.hexdigest()

    def shards(self) -> list[FileShard]:
        """The corpus in parts of about `pieces.SHARD_BYTES`, in order.

        Reads the ends of Parquet files, and counts the lines of JSONL files that are dealt out in parts.

        Raises:
            ValueError: A file cannot be read; or, where rows may be quarantined, too much of the corpus cannot.
        """
        pieces = [(piece, weight) for file in self.files() for piece, weight in self._pieces(file)]
        self._check_broken([piece for piece, _ in pieces])
        rules, weights = self.rules, dict(pieces)
        return [FileShard(tuple(group), rules, sum(map(weights.__getitem__, group))) for group in grouped(pieces)]

    def texts(self) -> Iterator[str]:
        """Yield the documents in order.

        Raises:
            ValueError: A row cannot be used, or a file not read; the message names the place.
        """
        quarantine = Quarantine(strict=True)
        for shard in self.shards():
            yield from (document.text for document in shard.documents(quarantine))

    def _pieces(self, file: Path) -> Iterator[tuple[Piece, int]]:
        """The parts of a file with their weights in bytes of text."""
        try:
            signature = signature_of(file)
            if signature.size == 0:
                raise BadDocument(f"{file} is empty")
            if kind_of(file) == ".parquet":
                spans: list[tuple[Span, int]] = list(row_group_spans(file, self.rules))
            elif file.suffix.lower() == ".jsonl" and is_large(signature):
                spans = [(span, span.end - span.start) for span in line_spans(file)]
            else:
                packed = file.suffix.lower() in COMPRESSIONS
                yield Piece(file, None, signature), signature.size * (4 if packed else 1)
                return
        except Exception as error:
            if not self.max_quarantined:
                raise unreadable(error, Blame(f"corpus file {file}", "is it complete?")) from error
            yield Piece(file, broken=reason_of(error).removeprefix(f"{file}: ").removeprefix(f"{file} ")), 1
            return
        for span, weight in spans:
            yield Piece(file, span, signature), weight

    def _check_broken(self, pieces: Sequence[Piece]) -> None:
        """Whole files count by their size, as nobody knows how many rows are lost with them."""
        broken = [piece for piece in pieces if piece.broken]
        if not broken:
            return
        first = f"{broken[0].file}: {broken[0].broken}"
        if len(broken) == len(pieces):
            raise ValueError(f"no corpus file of {self.path} can be read ({first}); set corpus.sources.*.path")
        lost = sum(piece.file.stat().st_size for piece in broken)
        share = lost / sum(file.stat().st_size for file in {piece.file for piece in pieces})
        if share > self.max_quarantined:
            raise ValueError(
                f"{len(broken)} files with {share:.1%} of the bytes of corpus path {self.path} cannot be read"
                f" ({first}), above max_quarantined={self.max_quarantined:g}; repair them or raise"
                " corpus.sources.*.max_quarantined"
            )


@dataclass(frozen=True)
class FileShard:
    """A part of a file, a file, or several small files one after the other."""

    pieces: tuple[Piece, ...]
    rules: RowRules
    num_bytes: int  # of text, about

    @property
    def name(self) -> str:
        """Its file, or the first and the last."""
        if len(self.pieces) == 1:
            return str(self.pieces[0])
        return f"{self.pieces[0]} … {self.pieces[-1]} ({len(self.pieces)} files)"

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the documents in order; rows that cannot be used go into `quarantine`.

        Raises:
            ValueError: A file cannot be read, changed, or holds no documents.
        """
        for piece in self.pieces:
            if piece.broken:
                quarantine.add(str(piece.file), piece.broken)
                continue
            quarantined, count = len(quarantine.rows), 0
            blame = Blame(f"corpus file {piece.file}", "is it complete?")
            reader = READERS[kind_of(piece.file)]
            for document in read_unchanged(
                piece.file, piece.signature, reader, self.rules, quarantine, span=piece.span, blame=blame
            ):
                yield document
                count += 1
            whole = piece.span is None or kind_of(piece.file) == ".parquet"
            if whole and count == 0 and len(quarantine.rows) == quarantined:
                if quarantine.strict:
                    raise ValueError(
                        f"corpus file {piece.file} holds no documents; remove it from corpus.sources.*.path"
                    )
                quarantine.add(str(piece.file), "holds no documents")


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


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if not file.is_dir() and kind_of(file) in READERS)
    elif path.exists() or path.is_symlink():
        inside = [path]
    else:
        root = Path(path.anchor or ".")
        inside = sorted(file for file in root.glob(str(path.relative_to(path.anchor))) if not file.is_dir())
    for file in inside:
        if not file.exists():
            raise ValueError(
                f"corpus file {file} is a link to {file.readlink()}, which is not there; set corpus.sources.*.path"
            )
        if not file.is_file():
            raise ValueError(
                f"corpus file {file} is no regular file (a pipe, socket or device); set corpus.sources.*.path"
            )
    if not inside:
        raise ValueError(f"corpus path {pattern} names no file; set corpus.sources.*.path")
    return inside
