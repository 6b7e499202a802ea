"""A data set of the Hugging Face hub, by name, through `datasets`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass


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
        return hashlib.sha256(f"hub {json.dumps(asdict(self), sort_keys=True)}".encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        import datasets

        data_files = list(self.data_files) if isinstance(self.data_files, (list, tuple)) else self.data_files
        try:
            rows = datasets.load_dataset(
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                data_files=data_files,
                streaming=self.streaming,
            )
            for number, row in enumerate(rows):
                if number == self.max_documents:
                    return
                text = row.get(self.text_field)  # type: ignore[union-attr]
                if not isinstance(text, str):
                    raise ValueError(
                        f"row {number} of {self.name} has no text in field '{self.text_field}' (it has {sorted(row)});"
                        " set corpus.sources.*.text_field"
                    )
                yield text
        except (OSError, datasets.exceptions.DatasetsError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(
                f"hub data set {self.name} (revision {self.revision or 'main'}) cannot be read:"
                f" {str(error).splitlines()[0]}; check corpus.sources.*.name and the network, or use corpus=local"
            ) from error
