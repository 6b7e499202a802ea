"""ChatQA's records as conversations: document and system first, the instruction in front of the first question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.conversations.chatqa import ChatQACorpus
from datamodules.conversations.conversation import BadConversation, Conversation
from datamodules.corpora.base import Quarantine
from datamodules.corpora.files import FileCorpus

TURNS = [
    {"role": "user", "content": "Who came?"},
    {"role": "assistant", "content": "A ship."},
    {"role": "user", "content": "When?"},
]
RECORD = {"document": "It was grey.", "messages": TURNS, "answers": ["Slowly."], "ground_truth_ctx": {"index": 0}}


def corpus_of(folder: Path, *records: dict[str, Any], **settings: Any) -> ChatQACorpus:
    """As the published files are: one list."""
    (folder / "train.json").write_text(json.dumps(list(records)), encoding="utf-8")
    quarantined = settings.pop("max_quarantined", 0.0)
    return ChatQACorpus(rows=FileCorpus(path=str(folder / "train.json"), max_quarantined=quarantined), **settings)


def said(corpus: ChatQACorpus) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in Conversation.from_json(text).messages] for text in corpus.texts()]


def test_document_stands_behind_the_system_and_the_answer_behind_the_turns(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, RECORD, system="Be polite.", instruction="Answer with a short span.")
    assert said(corpus) == [
        [
            ("system", "Be polite.\n\nIt was grey."),
            ("user", "Answer with a short span. Who came?"),
            ("assistant", "A ship."),
            ("user", "When?"),
            ("assistant", "Slowly."),
        ]
    ]


def test_system_message_of_a_record_joins_the_others_and_the_question_keeps_its_instruction(tmp_path: Path) -> None:
    record = {**RECORD, "messages": [{"role": "system", "content": "You sail."}, TURNS[0]]}
    assert said(corpus_of(tmp_path, record, system="Be polite.", instruction="In short:")) == [
        [
            ("system", "Be polite.\n\nYou sail.\n\nIt was grey."),
            ("user", "In short: Who came?"),
            ("assistant", "Slowly."),
        ]
    ]


@pytest.mark.parametrize("answers", [["Slowly."], [["Slowly.", "late"]], [{"text": "Slowly."}], ["", " ", "Slowly."]])
def test_forms_of_answers(answers: list[Any], tmp_path: Path) -> None:
    assert said(corpus_of(tmp_path, {**RECORD, "answers": answers}))[0][-1] == ("assistant", "Slowly.")


def test_general_instructions_need_no_document(tmp_path: Path) -> None:
    record = {"messages": TURNS[:1], "answers": ["Men."]}
    assert said(corpus_of(tmp_path, record, document=None)) == [[("user", "Who came?"), ("assistant", "Men.")]]
    without = said(corpus_of(tmp_path, {**record, "document": None}, system="Be polite."))
    assert without[0][0] == ("system", "Be polite.")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answers": []}, "holds no answer"),
        ({"answers": "Slowly."}, "field 'answers' holds a str, where a list is needed"),
        ({"document": 3}, "field 'document' holds a int, where a text is needed"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "Now."}]}, "message"),
    ],
)
def test_record_that_is_no_conversation_is_named_or_set_aside(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=problem):
        said(corpus_of(tmp_path, {**RECORD, **change}))
    with pytest.raises(BadConversation, match=problem):
        corpus_of(tmp_path).conversation({**RECORD, **change})
    corpus = corpus_of(tmp_path, RECORD, {**RECORD, **change}, max_quarantined=1.0)
    quarantine = Quarantine(strict=False)
    documents = [document for shard in corpus.shards() for document in shard.documents(quarantine)]
    assert len(documents) == 1


def test_fingerprint_changes_with_everything_that_is_said(tmp_path: Path) -> None:
    settings = [{}, {"instruction": "Answer."}, {"system": "Be polite."}, {"document": None}]
    prints = [corpus_of(tmp_path, RECORD, **one).fingerprint() for one in settings]
    prints.append(corpus_of(tmp_path, RECORD, RECORD).fingerprint())
    assert len(set(prints)) == len(prints)
