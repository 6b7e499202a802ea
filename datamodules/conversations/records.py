"""The forms in which conversations are published.

    messages           {"messages": [{"role": "user", "content": "…"}, …]}
    sharegpt           {"conversations": [{"from": "human", "value": "…"}, …]}; `from` is human, gpt or system
    prompt_completion  {"prompt": "…", "completion": "…"}
    question_answer    {"question": "User: …\\n\\nAssistant:", "answer": "…" or ["…", …]}
    text               {"text": "…"}, learned whole

`prompt_completion` is also the form of the BookSum and multi-document-QA files of Together's Long-Data-Collections
(`fine-tune/booksum.jsonl.zst`, `fine-tune/natural_questions_10_200_docs.jsonl.zst`), which hold `prompt`, `completion`
and their concatenation `text`; OpenChatKit trains on the `text`, with a loss on every token. `question_answer` is that
of ChatQA2's long SFT data. Neither was opened here: their fields are known from descriptions of them, so every name is
an argument. Of several answers to a question, as NarrativeQA has, the first that is not empty is learned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datamodules.conversations.conversation import ASSISTANT, USER, BadConversation, Conversation, Message

FORMS: dict[str, dict[str, str]] = {
    "messages": {"messages": "messages", "role": "role", "content": "content"},
    "sharegpt": {"messages": "conversations", "role": "from", "content": "value"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
    "question_answer": {"question": "question", "answer": "answer"},
    "text": {"text": "text"},
}
"""Form -> what it is made of -> the field that holds it."""

ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's words for who speaks."""

ASKS, ANSWERS = re.compile(r"^\s*User:[ ]?"), re.compile(r"\s*Assistant:\s*$")


@dataclass(frozen=True)
class Records:
    """How a record becomes a conversation.

    Args:
        form: One of `FORMS`.
        fields: What the form is made of -> the field that holds it, where that has another name.
        roles: Other names of roles -> `system`, `user` or `assistant`.
    """

    form: str
    fields: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(
                f"records={self.form} is not known; set corpus.sources.*.records to one of {', '.join(FORMS)}"
            )
        if unknown := set(self.fields) - set(FORMS[self.form]):
            raise ValueError(
                f"fields names {sorted(unknown)}, but records={self.form} is made of {sorted(FORMS[self.form])}; set"
                " corpus.sources.*.fields"
            )

    @property
    def read(self) -> list[str]:
        """The fields of a row that are read."""
        return [self._field(part) for part in FORMS[self.form] if part not in ("role", "content")]

    def conversation(self, record: Mapping[str, Any]) -> Conversation:
        """The conversation of a record.

        Raises:
            BadConversation: It is none.
        """
        if self.form == "text":
            return Conversation(text=_text(record, self._field("text")))
        if self.form == "prompt_completion":
            asked, answered = (_text(record, self._field(part)) for part in ("prompt", "completion"))
        elif self.form == "question_answer":
            asked = _question(_text(record, self._field("question")))
            answered = _answer(record, self._field("answer"))
        else:
            return self._messages(record)
        return Conversation((Message(USER, asked), Message(ASSISTANT, answered)))

    def _messages(self, record: Mapping[str, Any]) -> Conversation:
        role, content = self._field("role"), self._field("content")
        given = record.get(self._field("messages"))
        known = {**(ROLES if self.form == "sharegpt" else {}), **self.roles}
        if isinstance(given, list):
            given = [
                {**one, role: known.get(one[role], one[role])} if isinstance(one, dict) and _is_name(one, role) else one
                for one in given
            ]
        return Conversation.of(given, role=role, content=content)

    def _field(self, part: str) -> str:
        return self.fields.get(part, FORMS[self.form][part])


def _is_name(message: Mapping[str, Any], role: str) -> bool:
    return isinstance(message.get(role), str)


def _text(record: Mapping[str, Any], name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        held = "null" if text is None else f"a {type(text).__name__}"
        raise BadConversation(f"field '{name}' holds {held}, where a text is needed; set corpus.sources.*.fields")
    return text


def _question(text: str) -> str:
    """What the user asks, without the names of the speakers, which the template writes."""
    asked = ASKS.match(text)
    return ANSWERS.sub("", text[asked.end() :]) if asked else text


def _answer(record: Mapping[str, Any], name: str) -> str:
    answers = record.get(name)
    if not isinstance(answers, list):
        return _text(record, name)
    texts = [answer for answer in answers if isinstance(answer, str) and answer.strip()]
    if not texts:
        raise BadConversation(f"field '{name}' holds no answer")
    return texts[0]
