r"""Examples of tasks from the raw records of Natural Instructions, P3 and their like.

    a.jsonl               {"task_name": "add", "definition": "Add.", "inputs": "1 + 2", "targets": "3"}     one a line
    task001_add.json      {"Definition": ["Add."],                                                one task a file
                           "Positive Examples": [{"input": "1 + 2", "output": "3", "explanation": "…"}],
                           "Instances": [{"input": "4 + 4", "output": ["8", "eight"]}]}

A list of strings, as definitions and outputs are in Natural Instructions, stands for its first: outputs behind it say
the same in other words. Of a task in a file of its own, the positive examples come first, then the instances; negative
examples and explanations are not read.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from datamodules.corpora.base import Quarantine
from datamodules.corpora.decompress import BinaryFile, open_decompressed
from datamodules.corpora.rows import kind_of

KINDS = (".jsonl", ".json")
EXAMPLES = {"Positive Examples": "positive example", "Instances": "instance"}
"""The lists of a task's file that hold examples, and what messages call one; the second must be there."""


class Task(NamedTuple):
    """What examples are of; the same name with another definition is another task."""

    name: str
    definition: str


class Example(NamedTuple):
    """One input and what is to come out of it."""

    task: Task
    source: str
    target: str


@dataclass(frozen=True)
class RecordFields:
    """What the fields of a line are called; see `FewShotCorpus`."""

    source: str
    target: str
    definition: str | None
    task: str | None


class BadRecord(Exception):
    """Why a record is no example."""


def read_examples(
    file: BinaryFile, fields: RecordFields, quarantine: Quarantine, *, max_compression_ratio: float
) -> Iterator[Example]:
    """The examples of a file, in order; records that cannot be used go into `quarantine`.

    Args:
        file: Of one of `KINDS`.
        fields: Of a line; a task in a file of its own has the names of Natural Instructions.
        quarantine: Receives place and reason.
        max_compression_ratio: A compressed file that unpacks to more than so many times its size is refused.

    Raises:
        BadDocument: With a strict quarantine.
    """
    with open_decompressed(file, max_compression_ratio=max_compression_ratio) as content:
        if kind_of(file) == ".json":
            yield from _of_task(file, content.read().removeprefix(codecs.BOM_UTF8), quarantine)
            return
        for number, line in enumerate(content, 1):
            line = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
            if not line:
                continue
            try:
                found = _of_line(line, fields)
            except BadRecord as error:
                quarantine.add(f"{file}, line {number}", str(error))
            else:
                yield found


def _of_line(line: bytes, fields: RecordFields) -> Example:
    record = _parsed(line, "each line must be one JSON object")
    source = _text(record, fields.source, _key("input_field"))
    target = _shown(record, fields.target, _key("target_field"))
    task = Task(
        name=_text(record, fields.task, _key("task_field")) if fields.task else "",
        definition=_text(record, fields.definition, _key("definition_field")) if fields.definition else "",
    )
    return Example(task, source, target)


def _of_task(file: BinaryFile, content: bytes, quarantine: Quarantine) -> Iterator[Example]:
    """The examples of a task that has a file of its own."""
    own = "a .json file must be one task of Natural Instructions, records go one a line into a .jsonl file"
    try:
        record = _parsed(content, own)
        task = Task(str(file).rpartition("/")[2].partition(".json")[0], _text(record, "Definition", own))
        lists = {name: _list(record, name, own) for name in EXAMPLES if name in record or name == "Instances"}
    except BadRecord as error:
        quarantine.add(str(file), str(error))
        return
    for name, held in lists.items():
        for number, example in enumerate(held, 1):
            try:
                if not isinstance(example, dict):
                    raise BadRecord(f"a JSON {type(example).__name__}, where an object is needed")
                found = Example(task, _text(example, "input", own), _shown(example, "output", own))
            except BadRecord as error:
                quarantine.add(f"{file}, {EXAMPLES[name]} {number}", str(error))
            else:
                yield found


def _key(name: str) -> str:
    return f"set corpus.sources.*.{name}"


def _parsed(content: bytes, expected: str) -> dict[str, object]:
    try:
        record = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecord(f"byte {error.start} is not valid UTF-8; convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise BadRecord(f"not JSON ({error.msg} at {place}); {expected}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise BadRecord(f"not JSON that can be read ({error})") from error
    if not isinstance(record, dict):
        raise BadRecord(f"a JSON {type(record).__name__}, where {expected}")
    return record


def _list(record: dict[str, object], field: str, remedy: str) -> list[object]:
    held = _held(record, field, remedy)
    if not isinstance(held, list):
        raise BadRecord(f"field '{field}' holds a {type(held).__name__}, where a list is needed")
    return held


def _held(record: dict[str, object], field: str, remedy: str) -> object:
    if field not in record:
        raise BadRecord(f"no field '{field}' (it has {sorted(record)}); {remedy}")
    return record[field]


def _text(record: dict[str, object], field: str, remedy: str) -> str:
    text = _held(record, field, remedy)
    if isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        held = "null" if text is None else f"a {type(text).__name__}"
        raise BadRecord(f"field '{field}' holds {held}, where a string is needed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"field '{field}': character {error.start} is half of a surrogate pair (an escape such as \\ud83d), which"
            " no tokenizer can read"
        ) from error
    return text


def _shown(record: dict[str, object], field: str, remedy: str) -> str:
    target = _text(record, field, remedy)
    if not target.strip():
        raise BadRecord(f"field '{field}' is empty, so that the example shows nothing")
    return target
