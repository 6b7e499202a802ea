"""Conversations in files or hub data sets, as documents of a corpus.

Rows are read, checked, dealt out in shards and set aside as those of text are (`corpora/rows.py`); a row whose
conversation breaks a rule is quarantined with its place, or stops everything where none may be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from datamodules.conversations.conversation import BadConversation
from datamodules.conversations.records import Records
from datamodules.corpora.base import Document, Quarantine, Shard
from datamodules.corpora.files import FileCorpus
from datamodules.corpora.filters import DocumentFilters
from datamodules.corpora.hub import HubCorpus
from datamodules.corpora.rows import MarkedDocument


@dataclass(frozen=True)
class ConversationCorpus:
    """The conversations of a corpus that reads rows.

    Args:
        rows: Where they are. Its `text_field` is not used; its filters judge what is said, and its `max_quarantined` is
            the share of rows that may be unusable, here too.
        records: The form of a row: `messages`, `sharegpt`, `prompt_completion`, `question_answer` or `text`.
        fields: What the form is made of -> the field that holds it, where that has another name (`records.FORMS`).
        roles: Other names of roles -> `system`, `user` or `assistant`.
    """

    rows: FileCorpus | HubCorpus
    records: str = "messages"
    fields: Mapping[str, str] | None = None
    roles: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        _ = self._records  # names of fields are checked here

    @cached_property
    def _records(self) -> Records:
        return Records(self.records, dict(self.fields or {}), dict(self.roles or {}))

    @cached_property
    def _rows(self) -> FileCorpus | HubCorpus:
        return replace(self.rows, text_field=self._records.read, whole_record=True)

    @property
    def filters(self) -> DocumentFilters | None:
        """Those of the rows."""
        return self.rows.filters

    @property
    def max_quarantined(self) -> float:
        """That of the rows."""
        return self.rows.max_quarantined

    def fingerprint(self) -> str:
        own = json.dumps(asdict(self._records), sort_keys=True)
        return hashlib.sha256(f"conversations {self._rows.fingerprint()} {own}".encode()).hexdigest()

    def shards(self) -> Sequence[ConversationShard]:
        """The shards of the rows."""
        return [ConversationShard(shard, self._records) for shard in self._rows.shards()]

    def texts(self) -> Iterator[str]:
        quarantine = Quarantine(strict=True)
        for shard in self.shards():
            yield from (document.text for document in shard.documents(quarantine))


@dataclass(frozen=True)
class ConversationShard:
    """Rows of a shard as conversations."""

    shard: Shard
    records: Records

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def num_bytes(self) -> int | None:
        """Of text, about; None where nobody knows."""
        return getattr(self.shard, "num_bytes", None)

    @property
    def num_documents(self) -> int | None:
        """Rows; None where nobody has counted them."""
        return getattr(self.shard, "num_documents", None)

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        for row in self.shard.documents(quarantine):
            try:
                conversation = self.records.conversation(json.loads(row.text))
            except BadConversation as problem:
                quarantine.add(row.place, str(problem))
                continue
            document = MarkedDocument(conversation.to_json(), row.place)
            document.readable = conversation.readable()
            document.task, document.repair = getattr(row, "task", None), getattr(row, "repair", None)
            yield document
