import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from datamodules.conversations.conversation import Conversation
from datamodules.corpora import instructions
from datamodules.corpora.base import Corpus, Quarantine, shards_of
from datamodules.corpora.instructions import TASKS, InstructionCorpus
from datamodules.tasks.exercises import is_held_out
from tests.datamodules.tasks.conversation_solver import STATED, solve, turns

READING_TASKS = ("key_values", "what_follows", "which_document", "document_facts")


@dataclass(frozen=True)
class Novels:
    """Texts of numbered words, so that a sentence is at one place only, in sentences of 3 to 60 words."""

    num_texts: int = 4
    num_words: int = 4_000

    def fingerprint(self) -> str:
        return f"novels {self.num_texts} {self.num_words}"

    def texts(self) -> Iterator[str]:
        for text in range(self.num_texts):
            rng = np.random.default_rng(text)
            words = [f"w{text}x{i}" for i in range(self.num_words)]
            ends = [*np.cumsum(rng.integers(3, 20, self.num_words // 12)).tolist(), self.num_words]
            lines = [" ".join(words[a:b]) + rng.choice([".", "!", "?", '."']) for a, b in pairwise([0, *ends]) if b > a]
            yield "".join(line + rng.choice([" ", "\n", "\n\n"]) for line in lines)


def make_corpus(**changes: Any) -> InstructionCorpus:
    options: dict[str, Any] = {
        "haystack": Novels(),
        "tasks": dict.fromkeys(TASKS, 1 / len(TASKS)),
        "num_conversations": 160,
        "min_length": 80,
        "max_length": 1_200,
        "max_questions": 3,
        "seed": 7,
    }
    return InstructionCorpus(**(options | changes))


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(("facts", "wording"), [("words", "question"), ("numbers", "question"), ("words", "line")])
def test_every_answer_can_be_read_off_the_text(held_out: bool, facts: str, wording: str):
    corpus = make_corpus(held_out=held_out, facts=facts, wording=wording)
    assert isinstance(corpus, Corpus)
    asked = Counter()
    for k, document in enumerate(corpus.texts()):
        exercise = corpus[k]
        answers = [answer for _, answer in turns(document)]
        assert solve(document) == answers == [exchange.answer for exchange in exercise.exchanges]
        asked[exercise.task] += len(answers)
        if exercise.task == "key_values":
            values = {value for _, value in STATED.findall(exercise.text)}
            assert {exchange.num_choices for exchange in exercise.exchanges} == {len(values)}
    assert set(asked) == set(TASKS)
    assert min(asked.values()) >= 8
    assert asked["key_values"] > asked["table_retrieval"], "several questions are asked about one text"


def test_a_line_that_is_completed_stands_in_the_text_like_that():
    corpus = make_corpus(tasks={"key_values": 0.5, "document_facts": 0.5}, wording="line")
    for k, document in enumerate(corpus.texts()):
        assert all(answer in corpus[k].text for _, answer in turns(document))


def test_documents_are_conversations_in_the_form_that_the_tokeniser_reads():
    for document in make_corpus().texts():
        conversation = Conversation.from_json(document)
        assert conversation.to_json() == document
        assert len(conversation.turns) % 2 == 0


@pytest.mark.parametrize("task", READING_TASKS)
@pytest.mark.parametrize("held_out", [False, True])
def test_the_fact_that_is_asked_for_is_anywhere_in_the_text(task: str, held_out: bool):
    """A quarter of the facts in each quarter of the text; 600 of them stray by 2 % in standard deviation."""
    corpus = make_corpus(tasks={task: 1.0}, min_length=800, max_length=1_200, max_questions=1, held_out=held_out)
    rng = np.random.default_rng(0)
    depths = []
    for _ in range(600):
        exercise = corpus.of_words(task, 1_000, rng)
        (exchange,) = exercise.exchanges
        assert exchange.depth is not None
        if task != "document_facts":  # where documents may state the same
            said = f"The pair is {exchange.fact}." if task == "key_values" else exchange.fact
            assert exercise.text.index(said) / len(exercise.text) == exchange.depth
        depths.append(exchange.depth)
    shares = np.histogram(depths, bins=4, range=(0, 1))[0] / len(depths)
    assert np.abs(shares - 0.25).max() < 0.07, shares


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_lengths_are_log_uniform_between_the_two(unit: str):
    tasks = dict.fromkeys(READING_TASKS, 0.25)
    corpus = make_corpus(
        tasks=tasks, num_conversations=400, min_length=150, max_length=2_400, length_unit=unit, tokens_per_word=1.25
    )
    per_unit = 1 if unit == "words" else 1 / 1.25
    words = np.array([sum(map(len, map(str.split, sum(turns(text), ())))) for text in corpus.texts()])
    assert words.max() <= 2_400 * per_unit + 8
    assert words.min() >= 150 * per_unit - 60
    quarters = np.histogram(words, bins=np.geomspace(150, 2_400, 5) * per_unit)[0] / len(words)
    assert np.abs(quarters - 0.25).max() < 0.1, quarters


def test_a_conversation_depends_on_seed_and_index_alone():
    corpus = make_corpus()
    assert make_corpus(num_conversations=10)[3] == corpus[3]
    assert make_corpus(seed=8)[3] != corpus[3]
    assert len(set(corpus.texts())) == 160
    with pytest.raises(IndexError):
        corpus[160]


def test_training_and_held_out_conversations_never_share_a_fact():
    """Over the same texts and with the same seed; the same numbers of facts without the rule share hundreds."""
    sides = []
    for held_out in (False, True):
        corpus = make_corpus(held_out=held_out, num_conversations=240, min_length=200, max_questions=8)
        exercises = [corpus[k] for k in range(len(corpus))]
        facts = {exchange.fact for exercise in exercises for exchange in exercise.exchanges}
        stated = {" ".join(pair) for exercise in exercises for pair in STATED.findall(exercise.text)}
        assert len(stated) > 500
        assert {is_held_out(fact) for fact in facts | stated} == {held_out}
        sides.append(facts | stated)
    assert not sides[0] & sides[1]


def test_one_fact_in_eight_is_held_out():
    share = np.mean([is_held_out(f"fact {i}") for i in range(8_000)])
    assert abs(share - 1 / 8) < 0.02
    assert is_held_out("sun  ship") == is_held_out("sun ship")


def test_tasks_come_in_their_shares():
    tasks = {"key_values": 0.5, "word_drills": 0.3, "which_document": 0.2, "table_global": 0.0}
    in_proportion = {task: 10 * share for task, share in tasks.items()}
    corpus = make_corpus(tasks=in_proportion, num_conversations=1_000, max_length=120)
    counts = Counter(corpus[k].task for k in range(1_000))
    assert all(abs(counts[task] / 1_000 - share) < 0.05 for task, share in tasks.items())


def test_shards_put_together_are_the_corpus_wherever_they_are_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instructions, "CONVERSATIONS_PER_SHARD", 50)
    corpus = make_corpus()
    assert corpus[0]  # what it holds of the haystack does not travel
    sent = pickle.dumps(shards_of(corpus))
    assert len(sent) < 5_000
    shards = pickle.loads(sent)
    assert [(shard.start, shard.end) for shard in shards] == [(0, 50), (50, 100), (100, 150), (150, 160)]
    assert len({shard.name for shard in shards}) == 4
    backwards = [list(shard.documents(Quarantine())) for shard in reversed(shards)]
    documents = [document for read in reversed(backwards) for document in read]
    assert [document.text for document in documents] == list(corpus.texts())
    assert documents[159].place == "synthetic instruction 160"


def test_the_fingerprint_changes_with_all_that_the_conversations_depend_on():
    changes: list[dict[str, Any]] = [
        {},
        {"haystack": Novels(num_texts=3)},
        {"tasks": {"key_values": 1.0}},
        {"num_conversations": 161},
        {"min_length": 81},
        {"max_length": 1_201},
        {"length_unit": "tokens"},
        {"tokens_per_word": 1.5},
        {"table_characters_per_token": 2.0},
        {"max_questions": 4},
        {"facts": "numbers"},
        {"wording": "line"},
        {"held_out": True},
        {"seed": 8},
    ]
    assert len({make_corpus(**change).fingerprint() for change in changes}) == len(changes)
    named = {name for change in changes for name in change}
    assert named == set(InstructionCorpus.__dataclass_fields__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"poems": 1.0}}, "must name one or more of key_values"),
        ({"tasks": {}}, "must name one or more of"),
        ({"tasks": {"key_values": 0.0}}, "must be shares, finite and not negative, one above 0"),
        ({"tasks": {"key_values": 1.5, "word_drills": -0.5}}, "must be shares, finite and not negative"),
        ({"tasks": {"key_values": float("nan")}}, "must be shares, finite and not negative"),
        ({"num_conversations": 0}, "num_conversations=0"),
        ({"max_questions": 0}, "max_questions=0"),
        ({"seed": -1}, "seed=-1"),
        ({"min_length": 10}, "need 20 <= min_length <= max_length"),
        ({"min_length": 10, "length_unit": "tokens"}, "need 28 <= min_length <= max_length"),
        ({"max_length": 79}, "need 20 <= min_length <= max_length"),
        ({"length_unit": "pages"}, "length_unit=pages must be one of words, tokens"),
        ({"facts": "poems"}, "facts=poems must be one of words, numbers"),
        ({"wording": "poem"}, "wording=poem must be one of question, line"),
        ({"tokens_per_word": 0.0}, "tokens_per_word=0.0"),
    ],
)
def test_what_cannot_be_is_said(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make_corpus(**change)


def test_a_haystack_that_is_too_short_is_said():
    corpus = make_corpus(haystack=Novels(num_words=300), tasks={"key_values": 1.0}, min_length=1_000)
    with pytest.raises(ValueError, match=r"the longest text of the haystack has 300; lower max_length"):
        list(corpus.texts())


def test_texts_without_sentences_are_said():
    @dataclass(frozen=True)
    class Endless(Novels):
        def texts(self) -> Iterator[str]:
            for text in super().texts():
                yield text.translate(str.maketrans("", "", ".!?"))

    corpus = make_corpus(haystack=Endless(), tasks={"what_follows": 1.0})
    with pytest.raises(ValueError, match="have no sentence that can be asked for"):
        list(corpus.texts())


def test_conversations_hold_no_control_characters_that_json_would_not_carry():
    for document in make_corpus(num_conversations=20).texts():
        assert json.loads(document)["messages"]
