"""From the rows of one file to documents: JSON lines, Parquet and plain text.

Every row is checked as it is read, and one that cannot be used is quarantined with its line or row. What is read is
what is trained on, character for character, so the rules are few:

    byte order mark at the start of a file   left out
    line ends of a text file                 \\r\\n and \\r become \\n
    line ends inside a JSON or Parquet text  as they are, and so are NUL, U+2028, U+0085 and other controls
    lines of a JSONL file                    end at \\n alone; U+2028 and U+0085 do not end one
    bytes that are no UTF-8                  quarantine the row, or with `invalid_utf8: replace` become U+FFFD, counted
    half a surrogate pair (\\ud83d)           the same: no tokenizer can read it

Cost: one pass, one document in memory (Parquet: some megabytes of them). A JSON line of 10 million characters takes
40 MB while it is read, in Parquet 90 MB.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from datamodules.corpora.base import BadDocument, Document, Quarantine
from datamodules.corpora.decompress import (
    COMPRESSIONS,
    MAX_COMPRESSION_RATIO,
    UNJUDGED_BYTES,
    BinaryFile,
    decompression_bomb,
    open_decompressed,
)

NOT_UTF8 = "not valid UTF-8; convert the file to UTF-8"
SET_FIELD = "set corpus.sources.*.text_field"
REPAIRED = "bytes that were no UTF-8 became U+FFFD"
SURROGATES = re.compile("[\ud800-\udfff]")
BATCH_BYTES = 16 << 20
"""About how much of a Parquet column is decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """How a row of a file becomes a document.

    Args:
        text_field: The field that holds the text, for JSON and Parquet; `a.b` is field b of field a. A list joins
            several: `[article, abstract]`.
        field_separator: What stands between joined fields; none beside a field that is empty.
        task_field: The field that names a record's task, for `filters.decontaminate.drop_tasks`.
        invalid_utf8: `quarantine` sets rows aside that are no valid UTF-8, `replace` puts U+FFFD in place of the wrong
            bytes and counts the row.
        allow_partial: Use the rows of a broken file up to the break, which is quarantined; else a broken file stops
            everything.
        max_compression_ratio: A compressed file that unpacks to more than so many times its size is refused.
        max_document_bytes: A longer line or text file is quarantined, without being held in memory.
        whole_record: The document is no text but the JSON object of the fields `text_field`, whatever they hold.
    """

    text_field: str | list[str] = "text"
    field_separator: str = "\n\n"
    task_field: str | None = None
    invalid_utf8: str = "quarantine"
    allow_partial: bool = False
    max_compression_ratio: float = MAX_COMPRESSION_RATIO
    max_document_bytes: int = 1 << 30
    whole_record: bool = False

    def __post_init__(self) -> None:
        if not self.text_fields or not all(isinstance(field, str) and field for field in self.text_fields):
            raise ValueError(f"text_field={self.text_field} must be a name or a list of names; {SET_FIELD}")
        if self.invalid_utf8 not in ("quarantine", "replace"):
            raise ValueError(
                f"invalid_utf8={self.invalid_utf8} is not known; set corpus.sources.*.invalid_utf8 to quarantine or"
                " replace"
            )
        for key, value in (
            ("max_compression_ratio", self.max_compression_ratio),
            ("max_document_bytes", self.max_document_bytes),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{key}={value} must be a number above 0; set corpus.sources.*.{key}")

    @property
    def text_fields(self) -> tuple[str, ...]:
        """`text_field` as names."""
        return (self.text_field,) if isinstance(self.text_field, str) else tuple(self.text_field or ())

    @property
    def replaces(self) -> bool:
        """Whether wrong bytes are replaced."""
        return self.invalid_utf8 == "replace"


class MarkedDocument(Document):
    """A document about which more is known than its text and place."""

    task: str | None = None
    repair: str | None = None  # what was wrong with it
    readable: str | None = None  # what a person reads, where `text` is a form that holds it


class Span(NamedTuple):
    """A part of a file: bytes of a JSONL file from one line's start to another's, or row groups of a Parquet file."""

    start: int
    end: int
    first_row: int  # number of the first line or row of the part, counted from 1


class Unusable(Exception):
    """What is wrong with a row."""


def read_json(
    file: BinaryFile, rules: RowRules, quarantine: Quarantine, span: Span | None = None
) -> Iterator[Document]:
    """One document a line, as a JSON object; in a `.json` file that begins with `[`, one an element of the list."""
    with open_decompressed(file, max_compression_ratio=rules.max_compression_ratio) as lines:
        if kind_of(file) == ".json" and lines.peek(1).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            errors = "replace" if rules.replaces else "strict"
            for number, record in enumerate(json.loads(lines.read().decode("utf-8-sig", errors)), 1):
                yield from _usable(record, rules, f"{file}, item {number}", quarantine)
            return
        if span is not None:
            lines.seek(span.start)
        for number, line in _numbered_lines(lines, rules.max_document_bytes, span):
            place = f"{file}, line {number}"
            if line is None:
                quarantine.add(place, _too_long(rules))
            elif content := (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
                yield from _usable(content, rules, place, quarantine, ends=line.endswith(b"\n"))


def read_text(
    file: BinaryFile, rules: RowRules, quarantine: Quarantine, span: Span | None = None
) -> Iterator[Document]:
    """The whole file as one document, line ends as \\n."""
    with open_decompressed(file, max_compression_ratio=rules.max_compression_ratio) as handle:
        content = _start_of(handle, rules.max_document_bytes + 1)
    if len(content) > rules.max_document_bytes:
        quarantine.add(str(file), _too_long(rules))
        return
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text, repaired = _decoded(content, rules)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        quarantine.add(f"{file}, line {line}", NOT_UTF8)
        return
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    yield _document(text, str(file), repaired=repaired)


def read_parquet(
    file: BinaryFile, rules: RowRules, quarantine: Quarantine, span: Span | None = None
) -> Iterator[Document]:
    """One document a row; only the columns of the text are read."""
    names = columns_of(rules)
    with open_parquet(file, rules) as table:
        groups = range(table.num_row_groups) if span is None else range(span.start, span.end)
        number = 1 if span is None else span.first_row
        for group in groups:
            size = _batch_rows(table.metadata.row_group(group))
            for batch in table.iter_batches(batch_size=size, row_groups=[group], columns=names):
                for values in zip(*(_column(batch, name) for name in names), strict=True):
                    record = dict(zip(names, values, strict=True))
                    yield from _usable(record, rules, f"{file}, row {number}", quarantine)
                    number += 1


def open_parquet(file: BinaryFile, rules: RowRules) -> Any:
    """A `pyarrow.parquet.ParquetFile` that has the columns of `rules`.

    Raises:
        BadDocument: It has not, it is compressed from outside, or it unpacks to too much.
    """
    import pyarrow.parquet

    if file.suffix.lower() in COMPRESSIONS:
        raise BadDocument(f"{file} is compressed from outside, which Parquet cannot read in pieces; unpack it")
    table = pyarrow.parquet.ParquetFile(file)
    try:
        for name in columns_of(rules):
            if not _has_column(table.schema_arrow, name):
                raise BadDocument(f"{file}: {_missing(name, table.schema_arrow.names, rules)}")
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            packed = sum(group.column(k).total_compressed_size for k in range(group.num_columns))
            if group.total_byte_size > max(UNJUDGED_BYTES, rules.max_compression_ratio * packed):
                raise decompression_bomb(str(file), rules.max_compression_ratio)
    except BaseException:
        table.close()
        raise
    return table


def columns_of(rules: RowRules) -> list[str]:
    """The fields that are read of a row."""
    return list(dict.fromkeys([*rules.text_fields, *([rules.task_field] if rules.task_field else [])]))


def document_of(record: object, rules: RowRules, place: str, *, repaired: bool = False) -> Document:
    """The document in one parsed record.

    Raises:
        Unusable: There is none; says why.
    """
    if not isinstance(record, dict):
        raise Unusable(f"a JSON {type(record).__name__}, where each document must be one JSON object")
    texts = [_value(record, name, rules) for name in rules.text_fields]
    for k, (name, text) in enumerate(zip(rules.text_fields, texts, strict=True)):
        if rules.whole_record and not isinstance(text, bytes):
            continue
        if isinstance(text, bytes):  # a string of Parquet, undecoded
            if len(text) > rules.max_document_bytes:
                raise Unusable(_too_long(rules))
            try:
                texts[k], wrong = _decoded(text, rules)
            except UnicodeDecodeError as error:
                raise Unusable(f"byte {error.start} of field '{name}' is {NOT_UTF8}") from error
            repaired |= wrong
        elif not isinstance(text, str):
            held = "null" if text is None else f"a {type(text).__name__}"
            raise Unusable(f"field '{name}' holds {held}, where a string is needed")
    if rules.whole_record:
        text = json.dumps(dict(zip(rules.text_fields, texts, strict=True)), ensure_ascii=False, default=str)
    else:
        text = texts[0] if len(texts) == 1 else rules.field_separator.join(filter(None, texts))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if not rules.replaces:
            raise Unusable(
                f"character {error.start} is half of a surrogate pair (an escape such as \\ud83d), which no tokenizer"
                " can read; repair or remove the line"
            ) from error
        text, repaired = SURROGATES.sub("\ufffd", text), True
    task = None if rules.task_field is None else _value(record, rules.task_field, rules)
    if isinstance(task, bytes):
        task = task.decode("utf-8", "replace")
    if rules.task_field is not None and not isinstance(task, str | int):
        raise Unusable(f"field '{rules.task_field}' names no task; set corpus.sources.*.task_field")
    return _document(text, place, repaired=repaired, task=None if task is None else str(task))


def kind_of(file: BinaryFile) -> str:
    """The extension that says what a file is, below its compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _document(text: str, place: str, *, repaired: bool, task: str | None = None) -> Document:
    if not repaired and task is None:
        return Document(text, place)
    document = MarkedDocument(text, place)
    document.task = task
    document.repair = REPAIRED if repaired else None
    return document


def _usable(
    row: object, rules: RowRules, place: str, quarantine: Quarantine, *, ends: bool = True
) -> Iterator[Document]:
    """The document of a row, bytes of a JSON line or a parsed record; none where the row is quarantined."""
    try:
        record, repaired = _parsed(row, rules, ends=ends) if isinstance(row, bytes) else (row, False)
        document = document_of(record, rules, place, repaired=repaired)
    except Unusable as problem:
        quarantine.add(place, str(problem))
        return
    yield document


def _parsed(line: bytes, rules: RowRules, *, ends: bool) -> tuple[object, bool]:
    """The record of a JSON line, and whether bytes of it were replaced."""
    try:
        text, repaired = _decoded(line, rules)
        return json.loads(text), repaired
    except UnicodeDecodeError as error:
        raise Unusable(f"byte {error.start} is {NOT_UTF8}") from error
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg} at column {error.colno})"
        if ends:
            raise Unusable(f"{problem}; each line must be one JSON object") from error
        raise Unusable(f"{problem}, and the file ends inside this line; is it complete?") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise Unusable(f"not JSON that can be read ({error})") from error


def _decoded(content: bytes, rules: RowRules) -> tuple[str, bool]:
    try:
        return content.decode("utf-8"), False
    except UnicodeDecodeError:
        if not rules.replaces:
            raise
        return content.decode("utf-8", "replace"), True


def _numbered_lines(handle: Any, max_bytes: int, span: Span | None) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers; None in place of one that is too long, which is read over in pieces."""
    number, left = (1, None) if span is None else (span.first_row, span.end - span.start)
    while (left is None or left > 0) and (line := handle.readline(max_bytes + 1)):
        size, too_long = len(line), len(line) > max_bytes
        if too_long:
            piece, line = line, b""
            while piece and not piece.endswith(b"\n"):
                piece = handle.readline(1 << 20)
                size += len(piece)
            yield number, None
        else:
            yield number, line
        number += 1
        left = None if left is None else left - size


def _start_of(handle: Any, max_bytes: int) -> bytes:
    """At most so many bytes; one `read` of that size would reserve them all."""
    blocks, left = [], max_bytes
    while left > 0 and (block := handle.read(min(left, 1 << 20))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _too_long(rules: RowRules) -> str:
    return f"longer than {rules.max_document_bytes} bytes; split it or raise corpus.sources.*.max_document_bytes"


def _value(record: dict[Any, Any], name: str, rules: RowRules) -> Any:
    """A field by its name, or by its path."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise Unusable(_missing(name, record, rules))
        value = value[part]
    return value


def _missing(name: str, there: Any, rules: RowRules) -> str:
    names = sorted(map(str, there))
    if len(names) > 20:
        names = [*names[:20], "…"]
    key = SET_FIELD if name in rules.text_fields else "set corpus.sources.*.task_field"
    key = "set corpus.sources.*.fields" if rules.whole_record and name in rules.text_fields else key
    return f"no field '{name}' (it has {names}); {key}"


def _batch_rows(group: Any) -> int:
    """Rows of a Parquet row group that are decoded together."""
    return max(1, min(1024, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))


def _has_column(schema: Any, name: str) -> bool:
    """Whether a Parquet file has a column of this name or path."""
    import pyarrow

    names, found = schema.names, schema
    for part in [name] if name in names else name.split("."):
        if part not in names:
            return False
        kind = found.field(part).type
        found, names = kind, [child.name for child in kind] if pyarrow.types.is_struct(kind) else []
    return True


def _column(batch: Any, name: str) -> Sequence[Any]:
    """The values of a column, with strings as their bytes: one wrong byte must not stop the other rows."""
    import pyarrow
    import pyarrow.compute as compute

    parts = [name] if name in batch.schema.names else name.split(".")
    column = batch.column(parts[0])
    for part in parts[1:]:
        column = compute.struct_field(column, part)  # type: ignore[attr-defined]  # made at import
    if pyarrow.types.is_string(column.type):
        return column.cast(pyarrow.binary()).to_pylist()
    if pyarrow.types.is_large_string(column.type):
        return column.cast(pyarrow.large_binary()).to_pylist()
    return column.to_pylist()
