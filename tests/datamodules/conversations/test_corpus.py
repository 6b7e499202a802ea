"""Conversations from files and data sets, in the forms in which they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.conversations.conversation import Conversation
from datamodules.conversations.corpus import ConversationCorpus
from datamodules.corpora.base import BadDocument, Quarantine
from datamodules.corpora.files import FileCorpus
from datamodules.corpora.filters import DocumentFilters
from datamodules.corpora.hub import HubCorpus
from tests.datamodules.conversations.chats import SHORT, TURNS, as_dicts, conversation

QUESTION = "User: Text.\n\nQ: what?\n\nAssistant:"
ASKED = conversation(("user", "Text.\n\nQ: what?"), ("assistant", "this"))
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
    for m in as_dicts(TURNS)
]
FORMS: list[tuple[str, dict[str, Any], Conversation, dict[str, Any]]] = [
    ("messages", {"messages": as_dicts(TURNS), "id": 7}, TURNS, {}),
    ("messages", {"chat": as_dicts(TURNS)}, TURNS, {"fields": {"messages": "chat"}}),
    (
        "messages",
        {"messages": [{"who": "Q", "said": "a"}, {"who": "A", "said": "b"}]},
        conversation(("user", "a"), ("assistant", "b")),
        {"fields": {"role": "who", "content": "said"}, "roles": {"Q": "user", "A": "assistant"}},
    ),
    ("sharegpt", {"conversations": SHAREGPT}, TURNS, {}),
    (
        "prompt_completion",
        {"text": "a book, its summary", "prompt": "a book,", "completion": " its summary"},
        conversation(("user", "a book,"), ("assistant", " its summary")),
        {},
    ),
    ("question_answer", {"question": QUESTION, "answer": "this", "word count": 9}, ASKED, {}),
    ("question_answer", {"question": QUESTION, "answer": ["", "this", "that"]}, ASKED, {}),
    ("question_answer", {"question": "Text.\n\nQ: what?", "answer": "this"}, ASKED, {}),
    ("question_answer", {"q": "Text.\n\nQ: what?", "a": "this"}, ASKED, {"fields": {"question": "q", "answer": "a"}}),
    ("text", {"text": "all\nof it"}, Conversation(text="all\nof it"), {}),
]  # fmt: skip


def write(file: Path, records: list[Any]) -> Path:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(records), file)
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def read(corpus: ConversationCorpus) -> list[Conversation]:
    return [Conversation.from_json(text) for text in corpus.texts()]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("form", "record", "expected", "options"), FORMS)
def test_record_is_its_conversation(
    tmp_path: Path, form: str, record: dict[str, Any], expected: Conversation, options: dict[str, Any], suffix: str
):
    file = write(tmp_path / f"rows{suffix}", [record, record])
    assert read(ConversationCorpus(FileCorpus(path=str(file)), records=form, **options)) == [expected, expected]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("streaming", [True, False])
def test_hub_data_set_is_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, streaming: bool):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / f"train{suffix}", [{"messages": as_dicts(chat)} for chat in (SHORT, TURNS)])
    rows = HubCorpus(name=str(folder), streaming=streaming)
    assert read(ConversationCorpus(rows)) == [SHORT, TURNS]


BROKEN = [
    {"messages": as_dicts(SHORT)},
    {"messages": [as_dicts(SHORT)[0], *as_dicts(SHORT)]},
    {"messages": [{"role": "wizard", "content": "q"}]},
    {"messages": None},
    {"other": 1},
    {"messages": as_dicts(TURNS)},
]


def test_broken_conversation_is_quarantined_with_its_line(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", BROKEN)
    corpus = ConversationCorpus(FileCorpus(path=str(file), max_quarantined=0.9))
    quarantine = Quarantine(strict=False)
    found = [document for shard in corpus.shards() for document in shard.documents(quarantine)]
    assert [document.place for document in found] == [f"{file}, line 1", f"{file}, line 6"]
    assert [row.place for row in quarantine.rows] == [f"{file}, line {line}" for line in (2, 3, 4, 5)]
    reasons = [row.reason for row in quarantine.rows]
    assert "message 2 of the user follows another of the user" in reasons[0]
    assert "unknown role 'wizard'" in reasons[1]
    assert "the messages are null" in reasons[2]
    assert "no field 'messages' (it has ['other']); set corpus.sources.*.fields" in reasons[3]


def test_first_broken_conversation_stops_everything_where_none_may_be(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", BROKEN)
    with pytest.raises(BadDocument, match=r"rows.jsonl, line 2: message 2 of the user"):
        list(ConversationCorpus(FileCorpus(path=str(file))).texts())


def test_broken_conversation_in_parquet_is_quarantined_with_its_row(tmp_path: Path):
    file = write(tmp_path / "rows.parquet", [BROKEN[0], BROKEN[2], BROKEN[3]])
    with pytest.raises(BadDocument, match=r"rows.parquet, row 2: message 1 has the unknown role 'wizard'"):
        list(ConversationCorpus(FileCorpus(path=str(file))).texts())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"records": "chats"}, "records=chats is not known; set corpus.sources.\\*.records to one of messages"),
        ({"fields": {"prompt": "p"}}, r"fields names \['prompt'\], but records=messages is made of"),
    ],
)
def test_fault_of_the_settings_is_said_at_once(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ConversationCorpus(FileCorpus(path="nowhere.jsonl"), **options)


def test_fingerprint_changes_with_content_form_and_fields(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", [{"messages": as_dicts(SHORT), "text": "t"}])
    other = write(tmp_path / "other.jsonl", [{"messages": as_dicts(TURNS), "text": "t"}])
    corpora = [
        ConversationCorpus(FileCorpus(path=str(one))),
        ConversationCorpus(FileCorpus(path=str(other))),
        ConversationCorpus(FileCorpus(path=str(one)), records="text"),
        ConversationCorpus(FileCorpus(path=str(one)), fields={"role": "from"}),
        ConversationCorpus(FileCorpus(path=str(one)), roles={"Q": "user"}),
        ConversationCorpus(FileCorpus(path=str(one), filters=DocumentFilters(drop_duplicates=True))),
    ]
    assert len({corpus.fingerprint() for corpus in corpora}) == len(corpora)
    again = ConversationCorpus(FileCorpus(path=str(one), text_field="other"))
    assert again.fingerprint() == corpora[0].fingerprint()


def test_reading_text_has_the_fingerprint_of_before(tmp_path: Path):
    """A field that conversations need and texts do not is no part of what texts are."""
    file = write(tmp_path / "one.jsonl", [{"text": "t"}])
    assert FileCorpus(path=str(file)).settings_digest() == ""
    assert FileCorpus(path=str(file), whole_record=True).settings_digest() == '{"whole_record": true}'
