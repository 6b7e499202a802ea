from __future__ import annotations

import json
from typing import Any

import pytest

from datamodules.conversations.conversation import BadConversation, Conversation, Message
from tests.datamodules.conversations.chats import SHORT, TURNS

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize("conversation", [SHORT, TURNS, Conversation(text="all\u2028 of\n it 🙂")])
def test_json_gives_the_conversation_back(conversation: Conversation):
    assert Conversation.from_json(conversation.to_json()) == conversation
    assert "\n" not in conversation.to_json()


def test_json_is_the_form_of_messages():
    assert json.loads(SHORT.to_json()) == {
        "messages": [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5."}]
    }


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER, USER, ANSWER], "message 2 of the user follows another of the user, where one of the assistant"),
        ([USER, ANSWER, ANSWER], "message 3 of the assistant follows another of the assistant, where one of the user"),
        ([ANSWER, USER], "message 1 of the assistant opens the conversation, where one of the user is needed"),
        ([SYSTEM, ANSWER], "message 2 of the assistant opens the conversation"),
        ([USER, SYSTEM, ANSWER], "message 2 is a system message, which may stand only at the start"),
        ([SYSTEM, SYSTEM, USER, ANSWER], "message 2 is a system message"),
        ([USER, {"role": "tool", "content": "x"}], "message 2 has the unknown role 'tool'; known are system, user"),
        ([{"content": "q"}, ANSWER], r"message 1 has no 'role' \(it has \['content'\]\)"),
        ([USER, {"role": "assistant"}], r"message 2 has no 'content'"),
        ([USER, {"role": "assistant", "content": None}], "message 2 has no 'content'"),
        ([USER, {"role": "assistant", "content": 5}], "message 2 holds a int, where a text is needed"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "message 2 holds more than text"),
        ([USER, {"role": "assistant", "content": "\ud83d"}], "message 2: character 0 is half of a surrogate pair"),
        ([USER, "a"], "message 2 is a str, where an object with 'role' is needed"),
        ([USER], "no turn of the assistant to learn from"),
        ([SYSTEM], "no turn of the assistant"),
        ([], "no messages"),
        (None, "the messages are null, where a list is needed"),
        ("hello", "the messages are a str, where a list is needed"),
    ],
)
def test_broken_rule_is_said_with_the_number_of_the_message(messages: Any, problem: str):
    with pytest.raises(BadConversation, match=problem):
        Conversation.of(messages)


def test_text_blocks_are_joined():
    blocks = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert Conversation.of([{"role": "user", "content": blocks}, ANSWER]).messages[0] == Message("user", "one two")


def test_question_at_the_end_may_stay_without_an_answer():
    assert len(Conversation.of([USER, ANSWER, USER]).turns) == 3


@pytest.mark.parametrize(
    "document", ["", "[]", "{}", '{"messages": [], "text": ""}', '{"text": 5}', "not JSON", '{"prompt": ""}']
)
def test_other_json_is_no_conversation(document: str):
    with pytest.raises(BadConversation):
        Conversation.from_json(document)


def test_filters_see_what_is_said():
    assert SHORT.readable() == "What is 2 + 3?\n\nIt is 5."
    assert Conversation(text="t").readable() == "t"
