"""A data set of the Hugging Face hub, by name, through `datasets`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.corpora.files import content_digest


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
        streaming: Read over the network row by row instead of downloading the whole split first.
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
        return hashlib.sha256(f"hub {json.dumps(own, sort_keys=True)}".encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        for number, row in enumerate(islice(self._rows(), self.max_documents)):
            text = row.get(self.text_field)
            if not isinstance(text, str):
                raise ValueError(
                    f"row {number} of {self.name} has no text in field '{self.text_field}' (it has {sorted(row)});"
                    " set corpus.sources.*.text_field"
                )
            yield text

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        data_files = list(self.data_files) if isinstance(self.data_files, (list, tuple)) else self.data_files
        try:
            yield from datasets.load_dataset(  # type: ignore[misc]  # a split is an iterable of dicts
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                data_files=data_files,
                streaming=self.streaming,
            )
        except Exception as error:  # of the network, the hub, `datasets`, Arrow: no common base
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"hub data set {self.name} (split {self.split}, revision {self.revision or 'main'}) cannot be read:"
                f" {reason[:300]}; check corpus.sources.* and the network, or use corpus=local"
            ) from error
