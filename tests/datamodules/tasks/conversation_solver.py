"""Answers the questions of a synthetic conversation by reading it, with nothing of the code that made it."""

from __future__ import annotations

import json
import re

from tests.datamodules.tasks import table_solver

STATED = re.compile(r"The pair is (.+?) (\w+)\.")
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]


def turns(document: str) -> list[tuple[str, str]]:
    """Question and answer of each turn of a document; the first question has the text with it."""
    messages = json.loads(document)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    contents = [message["content"] for message in messages]
    return list(zip(contents[::2], contents[1::2], strict=True))


def solve(document: str) -> list[str]:
    """The answers of all turns."""
    (first, _), *others = turns(document)
    if "Question: " in first:
        return [table_solver.solve(_as_prompt(first)).answer]
    if "\n\n" in first:
        text, question = first.rsplit("\n\n", 1)
    else:
        text, question = "", first
    return [answer(text, question) for question in [question, *(asked for asked, _ in others)]]


def answer(text: str, question: str) -> str:
    """What the text says."""
    if match := re.fullmatch(r"Which (word|number) is paired with (.+)\?", question):
        return _only(value for key, value in STATED.findall(text) if key == match[2])
    if match := re.fullmatch(r"In Document (\d+), which (word|number) is paired with (.+)\?", question):
        return _only(value for key, value in STATED.findall(documents(text)[int(match[1])]) if key == match[3])
    if match := re.fullmatch(r'Which document contains "(.+)"\?', question):
        return _only(f"Document {number}" for number, body in documents(text).items() if match[1] in body)
    if match := re.fullmatch(r"What completes this line\?\nThe pair is (.+)", question):
        return f"The pair is {match[1]} {_only(value for key, value in STATED.findall(text) if key == match[1])}."
    if match := re.fullmatch(r"In Document (\d+), what completes this line\?\n(.+)", question):
        return answer(documents(text)[int(match[1])], f"What completes this line?\n{match[2]}")
    if match := re.fullmatch(r"Which document holds this line\?\n(.+)", question):
        return answer(text, f'Which document contains "{match[1]}"?')
    if match := re.fullmatch(r"Read on from this line:\n(.+)", question):
        following = answer(text, f'Which sentence follows "{match[1]}"?')
        return f"{match[1]} {following}"
    if match := re.fullmatch(r'Which sentence follows "(.+)"\?', question):
        body = _only(body for body in documents(text).values() if match[1] in body)
        following = re.match(r"""\s+(.*?[.!?]["')\]]?)(?=\s|$)""", body.split(match[1], 1)[1])
        assert following
        return following[1]
    return _drill(question)


def documents(text: str) -> dict[int, str]:
    """The numbered documents of a text."""
    parts = re.split(r"(?:^|\n\n)Document (\d+)\n", text)
    assert parts[0] == ""
    return {int(number): body for number, body in zip(parts[1::2], parts[2::2], strict=True)}


def _drill(question: str) -> str:
    asked, listed = question.split(": ")
    words = listed.split()
    if asked == "Repeat these words":
        return listed
    if match := re.fullmatch(r"What is the (\w+) word of", asked):
        return words[-1] if match[1] == "last" else words[ORDINALS.index(match[1])]
    match = re.fullmatch(r"Which word comes after (\w+) in", asked)
    assert match, question
    return words[words.index(match[1]) + 1]


def _only(found) -> str:
    (one,) = found
    return one


def _as_prompt(content: str) -> str:
    return f"{content}\n\nAnswer:" if content.startswith("Question: ") else f"{content}\nAnswer:"
