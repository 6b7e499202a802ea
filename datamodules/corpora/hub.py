"""A data set of the Hugging Face hub, by name, through `datasets`.

`datasets` finds the files of a split and reads those that carry types, such as Parquet. JSON it would read in pieces of
10 MB and give each piece types of its own: one number among the texts put quotes around every text near it, texts that
look like dates became dates, and no error named a line. So JSON files go through our own reader (`files.py`), line by
line, local or over the network.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

from datamodules.corpora.files import BadDocument, content_digest, read_json

FSSPEC_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")


@dataclass(frozen=True)
class HubCorpus:
    """Documents of one split of a hub data set.

    Args:
        name: Repository, such as `togethercomputer/Long-Data-Collections`; a local data set folder works too.
        config: Configuration (subset) of the data set, if it has several.
        split: Split to read.
        revision: Branch, tag or commit. Pin it: published collections lose files.
        data_files: Files inside the repository to restrict the reading to.
        text_field: The field that holds the text.
        streaming: Read over the network row by row instead of downloading whole files first.
        max_documents: Read no more than this many documents; None reads all.
    """

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | list[str] | None = None
    text_field: str = "text"
    streaming: bool = True
    max_documents: int | None = None

    def fingerprint(self) -> str:
        own = asdict(self)
        del own["streaming"]  # how the texts travel, not what they are
        if (
            folder := Path(self.name)
        ).is_dir():  # by content, as for local files; a hub name is trusted to its revision
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            own["name"] = [[file.relative_to(folder).as_posix(), content_digest(file).hex()] for file in files]
        # "by line": stores that were made while `datasets` read JSON may hold texts in quotes.
        return hashlib.sha256(f"hub by line {json.dumps(own, sort_keys=True)}".encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        yield from islice(self._texts(), self.max_documents)

    def _texts(self) -> Iterator[str]:
        try:
            builder = self._builder()
            if _is_json_lines(builder):
                for file in self._files(builder):
                    # Not a Path, but it has what the reader asks of one.
                    yield from read_json(cast(Path, file), self.text_field)
            else:
                yield from self._texts_of_rows(builder)
        except BadDocument:
            raise
        except Exception as error:  # of the network, the hub, `datasets`, Arrow, zstd: no common base
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"hub data set {self.name} (split {self.split}, revision {self.revision or 'main'}) cannot be read:"
                f" {reason[:300]}; check corpus.sources.* and the network, or use corpus=local"
            ) from error

    def _builder(self) -> Any:
        """What `datasets` makes of the name: which files each split has, and of which kind they are."""
        import datasets

        data_files = list(self.data_files) if isinstance(self.data_files, (list, tuple)) else self.data_files
        return datasets.load_dataset_builder(self.name, self.config, revision=self.revision, data_files=data_files)

    def _files(self, builder: Any) -> Iterator[DataFile]:
        """The JSON files of the split, in order."""
        import datasets

        splits = builder.config.data_files
        if self.split not in splits:
            raise ValueError(f"there is no split {self.split!r} but {sorted(map(str, splits))}; set max_documents")
        for url in map(str, splits[self.split]):
            yield DataFile(url, url if self.streaming else str(datasets.DownloadManager().download(url)))

    def _texts_of_rows(self, builder: Any) -> Iterator[str]:
        if self.streaming:
            rows = builder.as_streaming_dataset(split=self.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=self.split)
        for number, row in enumerate(rows):
            text = row.get(self.text_field)
            if not isinstance(text, str):
                raise BadDocument(
                    f"row {number} of {self.name} has no text in field '{self.text_field}' (it has {sorted(row)});"
                    " set corpus.sources.*.text_field"
                )
            yield text


class DataFile:
    """One file of a data set, here or on the hub, with as much of `pathlib.Path` as `read_json` needs.

    Args:
        url: What messages call it, such as `hf://datasets/<name>@<commit>/train.jsonl.zst`.
        place: Where its bytes are: the same, or a local copy.
    """

    def __init__(self, url: str, place: str) -> None:
        self.url, self.place = url, place
        suffixes = [suffix.lower() for suffix in PurePosixPath(url).suffixes]
        if suffixes and suffixes[-1] in ARCHIVES:
            raise BadDocument(f"{url} is an archive; unpack it and use corpus=local")
        # What fsspec unpacks is plain to the reader; .zst stays, as only the reader's own notices a missing end.
        self.compression = FSSPEC_COMPRESSIONS.get(suffixes[-1]) if suffixes else None
        self.suffixes = suffixes[:-1] if self.compression else suffixes
        self.suffix = self.suffixes[-1] if self.suffixes else ""

    def open(self, mode: str) -> io.BufferedReader:
        import fsspec

        return _Opened(fsspec.open(self.place, mode, compression=self.compression))

    def __str__(self) -> str:
        return self.url


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
