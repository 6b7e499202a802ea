"""A conversation: turns of a user and an assistant, perhaps behind a system message; or a text that is learned whole.

What a corpus of conversations gives is JSON, one conversation a document:

    {"messages": [{"role": "system", "content": "…"}, {"role": "user", "content": "…"},
                  {"role": "assistant", "content": "…"}]}
    {"text": "…"}                                            every token is a label

The rules are those that chat templates share: one system message at most, at the start; then user and assistant in
turns, a user first; at least one answer. What breaks them is said with the number of the message, counted from 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


class BadConversation(ValueError):
    """What is wrong with a conversation; whoever knows its place puts it in front."""


class Message(NamedTuple):
    """What one side says."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages in order, or one text.

    Args:
        messages: As the header says; empty where there is a text.
        text: A text of which every token is learned.

    Raises:
        BadConversation: The messages break a rule.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None:
            if self.messages:
                raise BadConversation("both messages and a text; a conversation is one of the two")
            _check_characters(self.text, "the text")
            return
        if not self.messages:
            raise BadConversation("no messages")
        for number, message in enumerate(self.messages, 1):
            _check(number, message)
        _check_order([message.role for message in self.messages])

    @property
    def system(self) -> Message | None:
        """The system message."""
        return self.messages[0] if self.messages and self.messages[0].role == SYSTEM else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system message: a user's and an assistant's, by turns."""
        return self.messages[1:] if self.system else self.messages

    def to_json(self) -> str:
        """The conversation as a document of a corpus."""
        if self.text is not None:
            return json.dumps({"text": self.text}, ensure_ascii=False)
        return json.dumps({"messages": [message._asdict() for message in self.messages]}, ensure_ascii=False)

    def readable(self) -> str:
        """All that is said, without roles: what filters judge."""
        return self.text if self.text is not None else "\n\n".join(message.content for message in self.messages)

    @classmethod
    def from_json(cls, document: str) -> Conversation:
        """What `to_json` gave.

        Raises:
            BadConversation: It is something else.
        """
        try:
            record = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise BadConversation(f"not the JSON of a conversation ({error})") from error
        if not isinstance(record, dict) or record.keys() not in ({"messages"}, {"text"}):
            raise BadConversation("a conversation is a JSON object with `messages` or with `text`")
        return cls(text=record["text"]) if "text" in record else cls.of(record["messages"])

    @classmethod
    def of(cls, messages: Any, *, role: str = "role", content: str = "content") -> Conversation:
        """The conversation of a list of objects.

        Args:
            messages: Such as `[{"role": "user", "content": "…"}, …]`; a content may be a list of text blocks.
            role: The field of the role.
            content: The field of the content.

        Raises:
            BadConversation: It is no such list, or breaks a rule.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise BadConversation(f"the messages are {_kind(messages)}, where a list is needed")
        return cls(tuple(_message(number, one, role, content) for number, one in enumerate(messages, 1)))


def _message(number: int, given: Any, role: str, content: str) -> Message:
    if not isinstance(given, dict):
        raise BadConversation(f"message {number} is {_kind(given)}, where an object with '{role}' is needed")
    for field in (role, content):
        if given.get(field) is None:
            raise BadConversation(f"message {number} has no '{field}' (it has {sorted(map(str, given))})")
    said = given[content]
    if isinstance(said, list):
        if not all(isinstance(block, dict) and isinstance(block.get("text"), str) for block in said):
            raise BadConversation(f"message {number} holds more than text")
        said = "".join(block["text"] for block in said)
    return Message(given[role], said)


def _check(number: int, message: Message) -> None:
    if message.role not in ROLES:
        raise BadConversation(f"message {number} has the unknown role {message.role!r}; known are {', '.join(ROLES)}")
    if not isinstance(message.content, str):
        raise BadConversation(f"message {number} holds {_kind(message.content)}, where a text is needed")
    _check_characters(message.content, f"message {number}")


def _check_characters(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise BadConversation(f"{where} is {_kind(text)}, where a text is needed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadConversation(
            f"{where}: character {error.start} is half of a surrogate pair, which no tokenizer can read"
        ) from error


def _check_order(roles: list[str]) -> None:
    first = 1 if roles[0] == SYSTEM else 0
    for number, role in enumerate(roles[first:], first + 1):
        expected = (ASSISTANT, USER)[(number - first) % 2]
        if role == SYSTEM:
            raise BadConversation(f"message {number} is a system message, which may stand only at the start")
        if role != expected:
            before = f"follows another of the {role}" if number > first + 1 else "opens the conversation"
            raise BadConversation(f"message {number} of the {role} {before}, where one of the {expected} is needed")
    if ASSISTANT not in roles:
        raise BadConversation("there is no turn of the assistant to learn from")


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
