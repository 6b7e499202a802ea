"""ChatQA's own training data: turns about a document, and the last answer apart from them.

    {"document": "…", "messages": [{"role": "user", "content": "…"}, …], "answers": ["…"]}

    system      the system's sentence, a blank line, the document
    user        the instruction of the data set, a space, the first question
    …           the turns as they are
    assistant   the first answer

That is the order in which Llama3-ChatQA-2's card prompts: system, context, turns. The data set's card gives each of its
parts an instruction for the user's turn; that it stands in front of the first question alone is recalled, unverified.
Answers are texts, lists of texts (NarrativeQA) or objects with a `text` (SQuAD). No file of it was opened here: the
fields are those that other readers of it use. Cost: that of reading the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from datamodules.conversations.conversation import ASSISTANT, SYSTEM, USER, BadConversation, Conversation, Message
from datamodules.conversations.corpus import ConversationShard
from datamodules.corpora.base import Quarantine
from datamodules.corpora.files import FileCorpus
from datamodules.corpora.filters import DocumentFilters
from datamodules.corpora.hub import HubCorpus

FIELDS = ("messages", "answers")


@dataclass(frozen=True)
class ChatQACorpus:
    """The conversations of one part of ChatQA's data.

    Args:
        rows: Where they are; `text_field` is not used.
        document: The field with the text that the turns are about; None where a part has none.
        instruction: Stands in front of the first question; None adds nothing.
        system: What the system message says before the document; None leaves the document alone in it.
    """

    rows: FileCorpus | HubCorpus
    document: str | None = "document"
    instruction: str | None = None
    system: str | None = None

    @cached_property
    def _rows(self) -> FileCorpus | HubCorpus:
        fields = [*FIELDS, *([self.document] if self.document else [])]
        return replace(self.rows, text_field=fields, whole_record=True)

    @property
    def filters(self) -> DocumentFilters | None:
        """Those of the rows."""
        return self.rows.filters

    @property
    def max_quarantined(self) -> float:
        """That of the rows."""
        return self.rows.max_quarantined

    def fingerprint(self) -> str:
        own = json.dumps([self.document, self.instruction, self.system])
        return hashlib.sha256(f"chatqa {self._rows.fingerprint()} {own}".encode()).hexdigest()

    def shards(self) -> Sequence[ConversationShard]:
        """The shards of the rows."""
        records = cast(Any, self)  # a shard asks for a record's conversation alone
        return [ConversationShard(shard, records) for shard in self._rows.shards()]

    def texts(self) -> Iterator[str]:
        quarantine = Quarantine(strict=True)
        for shard in self.shards():
            yield from (document.text for document in shard.documents(quarantine))

    def conversation(self, record: Mapping[str, Any]) -> Conversation:
        """The conversation of a record.

        Raises:
            BadConversation: It is none.
        """
        turns = list(Conversation.of([*_list(record, "messages"), _said(ASSISTANT, _answer(record))]).messages)
        said = turns.pop(0).content if turns[0].role == SYSTEM else None
        if self.instruction:
            turns[0] = Message(USER, f"{self.instruction} {turns[0].content}")
        about = record.get(self.document) if self.document else None
        if about is not None and not isinstance(about, str):
            raise BadConversation(f"field '{self.document}' holds a {type(about).__name__}, where a text is needed")
        system = "\n\n".join(part for part in (self.system, said, about) if part)
        return Conversation((*([Message(SYSTEM, system)] if system else []), *turns))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _list(record: Mapping[str, Any], name: str) -> list[Any]:
    held = record.get(name)
    if not isinstance(held, list):
        raise BadConversation(f"field '{name}' holds a {type(held).__name__}, where a list is needed")
    return held


def _answer(record: Mapping[str, Any]) -> str:
    """The first answer that is not empty; SQuAD has objects, NarrativeQA lists of texts."""
    pending = _list(record, "answers")
    while pending:
        first, *pending = pending
        if isinstance(first, list):
            pending = [*first, *pending]
        text = first.get("text") if isinstance(first, dict) else first
        if isinstance(text, str) and text.strip():
            return text
    raise BadConversation("field 'answers' holds no answer")
