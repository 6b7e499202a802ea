from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from datamodules.conversations.corpus import ConversationCorpus
from datamodules.corpora import decontamination
from datamodules.corpora.base import Quarantine
from datamodules.corpora.decontamination import Decontamination, NgramIndex, overlapping_tasks, word_chunks
from datamodules.corpora.files import FileCorpus
from datamodules.corpora.filters import DocumentFilters, Drops, kept, ready_filters


def brute_force(evaluation: list[str], texts: list[str], n: int) -> list[bool]:
    """By sets of strings: words as a regular expression finds them, each ideograph a word."""

    def ngrams(text: str) -> set[str]:
        words = re.findall("[\u3040-\u30ff\u3400-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u9fff]+", text.lower())
        return {" ".join(words[k : k + n]) for k in range(len(words) - n + 1)}

    known = set().union(*map(ngrams, evaluation))
    return [bool(ngrams(text) & known) for text in texts]


WORDS = [
    "a",
    "B",
    "the",
    "The",
    "of",
    "x1",
    "don't",
    "e-mail",
    "Zoë",
    "naïve",
    "中文",
    "日",
    "かな",
    "über",
    "“quoted”",
    "…",
    "_",
    "9",
]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("seed", range(6))
def test_overlaps_are_those_of_a_brute_force_set_of_ngrams(monkeypatch: pytest.MonkeyPatch, n: int, seed: int):
    chance = random.Random(seed)
    monkeypatch.setattr(decontamination, "CHUNK_CHARACTERS", chance.choice([12, 40, 1 << 20]))

    def text(length: int) -> str:
        return "".join(chance.choice(WORDS) + chance.choice([" ", "  ", "\n", ", ", ". "]) for _ in range(length))

    evaluation = [text(chance.randrange(0, 4 * n)) for _ in range(20)]
    texts = [text(chance.randrange(0, 6 * n)) for _ in range(200)]
    for k in range(0, 200, 10):  # some that quote, so that n = 10 has hits
        quoted = chance.choice(evaluation)
        texts[k] = text(3) + quoted.upper() + text(3)
    index = NgramIndex(evaluation, num_words=n)
    found = [index.overlap(text) is not None for text in texts]
    assert found == brute_force(evaluation, texts, n)
    assert any(found)
    assert not all(found) or n == 1


def test_overlap_says_which_words():
    index = NgramIndex(["To be, or not to be: that is the question."], num_words=6)
    assert index.overlap("He asked: TO BE\nor not, to be. So?") == "to be or not to be"
    assert index.overlap("to be or not to bee") is None
    assert index.overlap("or not to be that is") == "or not to be that is"
    assert index.overlap("") is None


def test_ngrams_do_not_run_from_one_evaluation_text_into_the_next():
    index = NgramIndex(["a b c", "d e f", ""], num_words=3)
    assert len(index) == 2
    assert [index.overlap(text) for text in ("b c d", "c d e", "x a b c d")] == [None, None, "a b c"]


def test_equal_hashes_drop_nothing_that_is_not_equal(monkeypatch: pytest.MonkeyPatch):
    """With every n-gram in one place of the table, only the comparison of the words decides."""
    monkeypatch.setattr(
        NgramIndex, "_hashes", lambda self, ids: np.zeros(max(0, len(ids) - self.num_words + 1), np.uint64)
    )
    evaluation = ["a b c d", "b c a", "a b c"]
    index = NgramIndex(evaluation, num_words=3)
    assert len(index) == 3  # abc, bcd, bca; abc only once
    texts = ["a b c", "b c d", "b c a", "c b a", "d c b", "a a a", "c a b"]
    assert [index.overlap(text) is not None for text in texts] == [True, True, True, False, False, False, False]
    assert brute_force(evaluation, texts, 3) == [True, True, True, False, False, False, False]


def test_word_is_not_cut_where_a_long_text_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch):
    text = " ".join(f"word{k}" for k in range(1000))
    whole = [word for chunk in word_chunks(text) for word in chunk]
    for size in (1, 5, 13, 100):
        monkeypatch.setattr(decontamination, "CHUNK_CHARACTERS", max(size, 8))
        assert [word for chunk in word_chunks(text) for word in chunk] == whole


def write(file: Path, records: list[dict]) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


QUESTION = "which of the seven bridges of the old town was built first"  # 12 words


def tasks(tmp_path: Path, **options) -> FileCorpus:
    """Four tasks: one that overlaps, one that quotes the same article, one that is clean, and one in two files."""
    against = FileCorpus(write(tmp_path / "helm.jsonl", [{"text": QUESTION + "?"}, {"text": "too short"}]))
    records = [
        {"task": "bridges", "text": f"Q: {QUESTION.upper()}"},
        {"task": "bridges", "text": "another instance of this task"},
        {"task": "article", "text": f"An article says {QUESTION}, and more."},
        {"task": "article", "text": "who wrote it"},
        {"task": 7, "text": "which of the seven bridges of the old town"},  # 9 words
        {"task": "bridges", "text": "and one more"},
    ]
    decontaminate = Decontamination(against, **options)
    return FileCorpus(
        write(tmp_path / "a.jsonl", records), task_field="task", filters=DocumentFilters(decontaminate=decontaminate)
    )


def left(corpus: FileCorpus) -> tuple[list[str], dict[str, int]]:
    """Beginnings of the documents that are kept, and how many were dropped for which reason."""
    drops, filters = Drops(), ready_filters(corpus)
    found = []
    for shard in corpus.shards():
        found += [document.text[:9] for document in kept(shard.documents(Quarantine()), filters=filters, drops=drops)]
    return found, {reason: count.documents for reason, count in drops.dropped.items()}


ALONE = "shares 10 words in a row with an evaluation text"


def test_tasks_that_overlap_are_dropped_whole_and_then_instances_that_do(tmp_path: Path):
    found, dropped = left(tasks(tmp_path, drop_tasks=True))
    assert found == ["which of "]
    assert dropped == {f"of a task that {ALONE}": 5}


def test_task_that_only_shares_an_article_keeps_its_other_instances(tmp_path: Path):
    found, dropped = left(tasks(tmp_path, drop_tasks=True, keep_tasks=["article"]))
    assert found == ["who wrote", "which of "]
    assert dropped == {f"of a task that {ALONE}": 3, ALONE: 1}


def test_without_tasks_only_instances_are_dropped(tmp_path: Path):
    found, dropped = left(tasks(tmp_path))
    assert found == ["another i", "who wrote", "which of ", "and one m"]
    assert dropped == {ALONE: 2}


def test_number_of_words_decides(tmp_path: Path):
    found, dropped = left(tasks(tmp_path, num_words=9))
    assert "which of " not in found
    assert dropped == {"shares 9 words in a row with an evaluation text": 3}


def test_words_of_conversations_overlap_and_the_form_that_they_are_kept_in_does_not(tmp_path: Path):
    """In it, the end of a line is an n before the next one's first word, and the names of its fields are words."""
    words = QUESTION.split()
    lines = " ".join(words[:5]) + "\n" + " ".join(words[5:])

    def talk(question: str, answer: str) -> ConversationCorpus:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        path = write(tmp_path / f"{answer}.jsonl", [{"messages": messages, "task": "t"}])
        return ConversationCorpus(rows=FileCorpus(path, task_field="task"), records="messages")

    asked = Decontamination(talk(QUESTION, "no")).index
    assert overlapping_tasks(talk(lines, "yes"), asked) == {"t"}
    assert overlapping_tasks(talk(" ".join(words[-6:]), "no"), asked) == set()


def test_dropping_tasks_needs_their_field(tmp_path: Path):
    against = FileCorpus(write(tmp_path / "helm.jsonl", [{"text": QUESTION}]))
    filters = DocumentFilters(decontaminate=Decontamination(against, drop_tasks=True))
    with pytest.raises(
        ValueError, match=r"needs the field that names a record's task; set corpus\.sources\.\*\.task_fi"
    ):
        FileCorpus("a", filters=filters)


def test_record_without_a_task_is_set_aside(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"text": "a", "task": None}, {"text": "b"}, {"text": "c", "task": "t"}])
    (shard,) = FileCorpus(path, task_field="task", max_quarantined=1.0).shards()
    quarantine = Quarantine(strict=False)
    assert [document.text for document in shard.documents(quarantine)] == ["c"]
    assert [row.reason for row in quarantine.rows] == [
        "field 'task' names no task; set corpus.sources.*.task_field",
        "no field 'task' (it has ['text']); set corpus.sources.*.task_field",
    ]


def test_filters_that_are_not_ready_drop_no_task_silently(tmp_path: Path):
    corpus = tasks(tmp_path, drop_tasks=True)
    assert corpus.filters is not None
    with pytest.raises(RuntimeError, match="needs ready_filters"):
        corpus.filters.reason_to_drop("some text")


def test_evaluation_without_a_single_ngram_is_refused(tmp_path: Path):
    against = FileCorpus(write(tmp_path / "helm.jsonl", [{"text": "too short"}]))
    corpus = FileCorpus(
        write(tmp_path / "a.jsonl", [{"text": "a"}]), filters=DocumentFilters(decontaminate=Decontamination(against))
    )
    with pytest.raises(ValueError, match=r"no text of filters\.decontaminate\.against has 10 words"):
        ready_filters(corpus)


@pytest.mark.parametrize(("name", "field", "key"), [("no.jsonl", "text", "path"), ("a.jsonl", "b", "text_field")])
def test_evaluation_that_cannot_be_read_names_its_own_key(tmp_path: Path, name: str, field: str, key: str):
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    against = FileCorpus(str(tmp_path / name), text_field=field)
    corpus = FileCorpus(path, filters=DocumentFilters(decontaminate=Decontamination(against)))
    with pytest.raises(ValueError, match=rf"set corpus\.sources\.\*\.filters\.decontaminate\.against\.{key}$"):
        ready_filters(corpus)
    if key == "path":
        with pytest.raises(ValueError, match=r"set corpus\.sources\.\*\.filters\.decontaminate\.against\.path$"):
            corpus.fingerprint()


@pytest.mark.parametrize("num_words", [0, -1, 2.5, True])
def test_impossible_number_of_words_names_the_key(num_words: object):
    with pytest.raises(ValueError, match=r"set corpus\.sources\.\*\.filters\.decontaminate\.num_words"):
        Decontamination(FileCorpus("a"), num_words=num_words)  # type: ignore[arg-type]
