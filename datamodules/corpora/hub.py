"""A data set of the Hugging Face hub, by name, through `datasets`.

`datasets` finds the files of a split and reads those that carry types, such as Parquet. JSON it would read in pieces of
10 MB and give each piece types of its own: one number among the texts put quotes around every text near it, texts that
look like dates became dates, and no error named a line. So JSON files go through our own reader (`rows.py`), line by
line, local or over the network.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.corpora.base import BadDocument, Document, Quarantine
from datamodules.corpora.decompress import DECOMPRESSORS
from datamodules.corpora.files import ReadCorpus, content_digest
from datamodules.corpora.pieces import Blame, Signature, read_unchanged, signature_of, unreadable
from datamodules.corpora.rows import RowRules, Span, Unusable, document_of, read_json

ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
PREPARED_SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class HubCorpus(ReadCorpus):
    """Documents of one split of a hub data set.

    The other arguments are those of `RowRules` and `ReadCorpus`.

    Args:
        name: Repository, such as `togethercomputer/Long-Data-Collections`; a local data set folder works too.
        config: Configuration (subset) of the data set, if it has several.
        split: Split to read.
        revision: Branch, tag or commit. Pin it: published collections lose files.
        data_files: Files inside the repository to restrict the reading to.
        streaming: Read over the network row by row instead of downloading whole files first.
        max_documents: Read no more than this many documents; None reads all. Where it ends depends on all that came
            before, so one process reads them.
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | list[str] | None = None
    streaming: bool = True
    max_documents: int | None = None

    def fingerprint(self) -> str:
        """A string that changes with the name, the revision, and every setting that may change the documents."""
        own: dict[str, Any] = {
            key: getattr(self, key) for key in ("name", "config", "split", "revision", "data_files", "text_field")
        }
        own["max_documents"] = self.max_documents
        # Not `streaming`: how the texts travel, not what they are.
        if (folder := Path(self.name)).is_dir():
            # By content, as for local files; a hub name is trusted to its revision.
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            own["name"] = [[file.relative_to(folder).as_posix(), content_digest(file).hex()] for file in files]
        # "by line": stores that were made while `datasets` read JSON may hold texts in quotes.
        content = f"hub by line {json.dumps(own, sort_keys=True)}{self.settings_digest()}"
        return hashlib.sha256(content.encode()).hexdigest()

    def shards(self) -> list[HubShard]:
        """One a JSON file, or one a file or range of rows that `datasets` deals out; in order.

        Raises:
            ValueError: The data set is not there.
        """
        try:
            builder = self._builder()
            parts = list(self._files(builder)) if _is_json_lines(builder) else list(self._rows(builder))
        except Exception as error:  # of the network, the hub and `datasets`: no common base
            raise unreadable(error, self._blame) from error
        if self.max_documents is not None:
            return [HubShard(tuple(parts), self.rules, self._blame, self.max_documents)]
        return [HubShard((part,), self.rules, self._blame) for part in parts]

    def texts(self) -> Iterator[str]:
        """Yield the documents in order.

        Raises:
            ValueError: A row cannot be used, or the data set not read; the message names the place.
        """
        quarantine = Quarantine(strict=True)
        for shard in self.shards():
            yield from (document.text for document in shard.documents(quarantine))

    @property
    def _blame(self) -> Blame:
        where = f"split {self.split}, revision {self.revision or 'main'}"
        return Blame(
            f"hub data set {self.name} ({where})", "check corpus.sources.* and the network, or use corpus=local"
        )

    def _builder(self) -> Any:
        """What `datasets` makes of the name: which files each split has, and of which kind they are."""
        import datasets

        data_files = list(self.data_files) if isinstance(self.data_files, (list, tuple)) else self.data_files
        return datasets.load_dataset_builder(self.name, self.config, revision=self.revision, data_files=data_files)

    def _files(self, builder: Any) -> Iterator[DataFile]:
        """The JSON files of the split, in order."""
        splits = builder.config.data_files
        if self.split not in splits:
            raise ValueError(f"there is no split {self.split!r} but {sorted(map(str, splits))}; set max_documents")
        for url in map(str, splits[self.split]):
            yield DataFile(url, url if self.streaming else None)

    def _rows(self, builder: Any) -> Iterator[DataRows]:
        """The split in the parts that `datasets` knows, in order."""
        if self.streaming:
            rows = builder.as_streaming_dataset(split=self.split)
            num_shards = max(1, rows.num_shards)
            counted = (builder.info.splits or {}).get(self.split)  # where the data set's card tells
            num_rows = None if counted is None or self.data_files is not None else counted.num_examples
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=self.split)
            num_rows = len(rows)
            num_shards = max(1, min(len(rows), -(-(rows.data.nbytes or 0) // PREPARED_SHARD_BYTES)))
        if num_shards == 1 or self.max_documents is not None:
            yield DataRows(rows, self.name, num_rows)
            return
        share = None if num_rows is None else round(num_rows / num_shards)
        for k in range(num_shards):
            yield DataRows(rows.shard(num_shards, k, contiguous=True), f"part {k + 1} of {self.name}", share)


@dataclass(frozen=True)
class HubShard:
    """Files or rows of a data set."""

    parts: tuple[DataFile | DataRows, ...]
    rules: RowRules
    blame: Blame
    max_documents: int | None = None

    @property
    def name(self) -> str:
        """Its file or rows."""
        return str(self.parts[0]) if len(self.parts) == 1 else f"{self.blame.subject}, {len(self.parts)} files"

    @property
    def num_bytes(self) -> int | None:
        """Of text, about; None where it is rows, or not read to its end."""
        if self.max_documents is not None:
            return None
        sizes = [part.num_bytes for part in self.parts if isinstance(part, DataFile)]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(self.parts) else None

    @property
    def num_documents(self) -> int | None:
        """At most, about; None where nobody knows."""
        rows = [part.num_rows for part in self.parts if isinstance(part, DataRows) and part.num_rows is not None]
        found = [sum(rows)] if len(rows) == len(self.parts) else []
        found += [] if self.max_documents is None else [self.max_documents]
        return min(found, default=None)

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        """Yield the documents in order, no more than `max_documents`.

        Raises:
            ValueError: The shard cannot be read at all.
        """
        left = self.max_documents
        for part in self.parts:
            if left is not None and left <= 0:
                return
            reader = read_json if isinstance(part, DataFile) else read_rows
            for document in read_unchanged(part, part.signature, reader, self.rules, quarantine, blame=self.blame):
                yield document
                left = None if left is None else left - 1
                if left == 0:
                    return


class DataFile:
    """One file of a data set, here or on the hub, with as much of `pathlib.Path` as `read_json` needs.

    Args:
        url: What messages call it, such as `hf://datasets/<name>@<commit>/train.jsonl.zst`.
        place: Where its bytes are: the same, or a local copy; None downloads it when it is opened.
    """

    def __init__(self, url: str, place: str | None) -> None:
        self.url, self.place = url, place
        suffixes = [suffix.lower() for suffix in PurePosixPath(url).suffixes]
        self.suffix = suffixes[-1] if suffixes else ""
        self._packed = self.suffix in DECOMPRESSORS
        self.suffixes = suffixes[:-1] if self._packed else suffixes
        if self.suffix in ARCHIVES:
            raise BadDocument(f"{url} is an archive; unpack it and use corpus=local")
        # A file of the hub stays what it is: its URL has the commit in it.
        self.signature: Signature | None = signature_of(Path(url)) if Path(url).is_file() else None

    @property
    def num_bytes(self) -> int | None:
        """Of text, about; None where the file system does not tell."""
        import fsspec

        try:
            file_system, path = fsspec.url_to_fs(self.url)
            size = file_system.size(path)
        except Exception:  # of the network and the hub; whoever reads the file says what is wrong
            return None
        return None if size is None else size * (4 if self._packed else 1)

    def open(self, mode: str, /) -> io.BufferedReader:
        """Its bytes, from where they are."""
        import datasets
        import fsspec

        place = self.place
        if place is None:
            place = str(datasets.DownloadManager().download(self.url))
        return _Opened(fsspec.open(place, mode))

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url


class DataRows:
    """Rows that `datasets` reads.

    Args:
        rows: A `Dataset` or `IterableDataset`.
        name: What messages call it.
        num_rows: How many they are, about; None where nobody knows.
    """

    signature = None

    def __init__(self, rows: Any, name: str, num_rows: int | None = None) -> None:
        self.rows, self.name, self.num_rows = rows, name, num_rows

    def __str__(self) -> str:
        return self.name


def read_rows(part: DataRows, rules: RowRules, quarantine: Quarantine, span: Span | None = None) -> Iterator[Document]:
    """One document a row."""
    for number, row in enumerate(part.rows):
        place = f"row {number} of {part.name}"
        try:
            document = document_of(row, rules, place)
        except Unusable as problem:
            reason = str(problem)
            if "surrogate" not in reason and not rules.whole_record:
                fields = " and ".join(f"'{name}'" for name in rules.text_fields)
                reason = f"has no text in field {fields} (it has {sorted(row)}); set corpus.sources.*.text_field"
            quarantine.add(place, reason)
            continue
        yield document


class _Opened(io.BufferedReader):
    """An fsspec file that is closed together with what it is unpacked from."""

    def __init__(self, file: Any) -> None:
        self._file = file
        super().__init__(file.open(), buffer_size=1 << 20)

    def close(self) -> None:
        super().close()
        self._file.close()


def _is_json_lines(builder: Any) -> bool:
    from datasets.packaged_modules.json.json import Json

    # A `field` names a list inside one big object, which has no lines.
    return isinstance(builder, Json) and getattr(builder.config, "field", None) is None
