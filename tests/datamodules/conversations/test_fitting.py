"""Conversations longer than the context: what is kept, what is learned, what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from datamodules.conversations.conversation import Conversation
from datamodules.conversations.encoding import Encoded
from datamodules.conversations.jinja_template import TokenizerTemplate
from datamodules.conversations.policy import ConversationPolicy
from datamodules.conversations.samples import ConversationSamples, Made
from tests.datamodules.conversations.chats import CHATML, conversation, literal, llama_like, qwen_like
from tests.datamodules.toy import make_tokenizer

pytestmark = pytest.mark.usefixtures("rendered_by_a_fork")

WORDS = "it was the best of times, it was the worst of times; the age of wisdom. "
QUESTION = "\n\nWhat was it?"
TOY = make_tokenizer()
TEMPLATES = [
    (TOY, literal("plain")),
    (qwen_like(CHATML), TokenizerTemplate()),
    (llama_like(prepend_scheme="first"), literal("together_inst")),
    (llama_like(), literal("together_inst")),
]


MAKERS: dict[tuple[int, str], ConversationSamples] = {}


def made(chat: Conversation, tokenizer: Any, template: Any, **policy: Any) -> Made:
    wanted = ConversationPolicy(template=template, **policy)
    key = (id(tokenizer), repr(wanted))
    if key not in MAKERS:  # a process of its own for each template in Jinja
        MAKERS[key] = ConversationSamples(tokenizer, wanted, num_threads=1)
    (found,) = MAKERS[key].make([chat])
    return found


def labels(samples: Any) -> list[int]:
    return [int(token) for sample in samples for token in sample.ids[sample.mask]]


def contains(sample: Encoded, other: Encoded | np.ndarray) -> bool:
    wanted = other.tolist() if isinstance(other, np.ndarray) else other.ids.tolist()
    ids = sample.ids.tolist()
    return any(ids[k : k + len(wanted)] == wanted for k in range(len(ids) - len(wanted) + 1))


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    MAKERS.clear()


def many_turns(num_turns: int) -> Conversation:
    rng = np.random.default_rng(0)
    messages = [("system", "Be wise.")]
    for k in range(num_turns):
        messages += [("user", f"{k}: " + WORDS * int(rng.integers(1, 4))), ("assistant", f"the answer {k} is {k * k}")]
    return conversation(*messages)


@pytest.mark.parametrize(("tokenizer", "template"), TEMPLATES)
def test_split_learns_every_answer_once_behind_the_system_message(tokenizer: Any, template: Any):
    chat = many_turns(12)
    (whole,) = made(chat, tokenizer, template).samples
    length = len(whole.ids) // 3
    found = made(chat, tokenizer, template, context_length=length, too_long="split")
    assert 3 <= len(found.samples) <= 6
    assert labels(found.samples) == labels([whole])
    assert all(len(sample.ids) <= length and sample.has_label for sample in found.samples)
    assert found.num_lost == 0
    assert found.changed == f"split into samples: longer than context_length={length}"
    assert all(sample.ids[:8].tolist() == whole.ids[:8].tolist() for sample in found.samples)


@pytest.mark.parametrize(("tokenizer", "template"), TEMPLATES)
def test_split_samples_are_conversations_of_their_turns(tokenizer: Any, template: Any):
    """Each sample is, token for token, what the conversation of some consecutive turns gives."""
    chat = many_turns(6)
    messages = [(message.role, message.content) for message in chat.messages]
    (whole,) = made(chat, tokenizer, template).samples
    found = made(chat, tokenizer, template, context_length=len(whole.ids) // 2, too_long="split")
    parts = [
        conversation(messages[0], *messages[1 + 2 * first : 1 + 2 * last])
        for first in range(6)
        for last in range(first + 1, 7)
    ]
    possible = {made(part, tokenizer, template).samples[0].ids.tobytes() for part in parts}
    assert all(sample.ids.tobytes() in possible for sample in found.samples)


@pytest.mark.parametrize(("tokenizer", "template"), TEMPLATES)
@pytest.mark.parametrize("too_long", ["truncate_middle", "split"])
def test_long_question_loses_its_middle_and_nothing_else(tokenizer: Any, template: Any, too_long: str):
    chat = conversation(("user", f"Start. {WORDS * 40}End.{QUESTION}"), ("assistant", "the age of wisdom"))
    (whole,) = made(chat, tokenizer, template).samples
    for length in (120, 121, 200, len(whole.ids) - 1):
        found = made(chat, tokenizer, template, context_length=length, too_long=too_long)
        (sample,) = found.samples
        assert length - 3 <= len(sample.ids) <= length
        assert labels([sample]) == labels([whole])
        head, tail = (length - 70) // 2, (length - 10) // 2
        assert sample.ids[:head].tolist() == whole.ids[:head].tolist()
        assert sample.ids[-tail:].tolist() == whole.ids[-tail:].tolist()
        assert found.num_lost == len(whole.ids) - len(sample.ids)


def test_question_at_the_end_stays_whole_however_little_is_left():
    tokenizer = TOY
    question = "\n\n" + WORDS * 2 + "?"
    chat = conversation(("user", WORDS * 40 + question), ("assistant", "wisdom"))
    (whole,) = made(chat, tokenizer, literal("plain")).samples
    kept = len(tokenizer(question)["input_ids"]) + 20
    found = made(chat, tokenizer, literal("plain"), context_length=kept, too_long="truncate_middle")
    (sample,) = found.samples
    end = len(tokenizer(question.strip())["input_ids"]) - 2
    assert sample.ids[-end:].tolist() == whole.ids[-end:].tolist()
    found = made(chat, tokenizer, literal("plain"), context_length=kept - 30, too_long="truncate_middle")
    assert "what must stay of it, answers and questions, has" in found.refused


def test_next_longest_question_is_cut_where_one_is_not_enough():
    tokenizer = TOY
    chat = conversation(
        ("user", WORDS * 4 + QUESTION), ("assistant", "a"), ("user", WORDS * 5 + QUESTION), ("assistant", "b")
    )
    (sample,) = made(chat, tokenizer, literal("plain"), context_length=100, too_long="truncate_middle").samples
    assert len(sample.ids) <= 100
    text = tokenizer.decode(sample.ids)
    assert text.count("What was it?") == 2
    assert text.count("</s>") == 2


@pytest.mark.parametrize(("tokenizer", "template"), TEMPLATES)
def test_split_goes_on_with_an_answer_that_is_longer_than_the_context(tokenizer: Any, template: Any):
    """Every token of the answer is learned once, in samples that begin with the question."""
    chat = conversation(("user", "Tell me all." + QUESTION), ("assistant", WORDS * 20))
    (whole,) = made(chat, tokenizer, template).samples
    found = made(chat, tokenizer, template, context_length=100, too_long="split")
    assert len(found.samples) > 3
    assert labels(found.samples) == labels([whole])
    prompt = int(np.argmax(whole.mask))
    for number, sample in enumerate(found.samples):
        assert len(sample.ids) <= 100
        assert sample.ids[:prompt].tolist() == whole.ids[:prompt].tolist()
        assert int(np.argmax(sample.mask)) == prompt + bool(number)


@pytest.mark.parametrize("length", [2, 3, 7, 39])
def test_text_is_split_so_that_every_token_is_predicted_once(length: int):
    tokenizer = TOY
    chat = Conversation(text=WORDS * 2)
    (whole,) = made(chat, tokenizer, literal("plain")).samples
    found = made(chat, tokenizer, literal("plain"), context_length=length, too_long="split")
    predicted = [int(token) for sample in found.samples for token in sample.ids[1:][sample.mask[1:]]]
    assert predicted == whole.ids[1:].tolist()
    assert all(len(sample.ids) <= length for sample in found.samples)


def test_text_loses_its_middle():
    tokenizer = TOY
    (whole,) = made(Conversation(text=WORDS * 9), tokenizer, literal("plain")).samples
    (sample,) = made(
        Conversation(text=WORDS * 9), tokenizer, literal("plain"), context_length=41, too_long="truncate_middle"
    ).samples
    assert sample.ids.tolist() == [*whole.ids[:21], *whole.ids[-20:]]
    assert np.flatnonzero(~sample.mask).tolist() == [21]


@pytest.mark.parametrize("too_long", ["error", "split", "truncate_middle", "drop"])
def test_conversation_of_exactly_the_context_length_stays_as_it_is(too_long: str):
    chat, tokenizer = many_turns(2), TOY
    (whole,) = made(chat, tokenizer, literal("plain")).samples
    length = len(whole.ids)
    found = made(chat, tokenizer, literal("plain"), context_length=length, too_long=too_long)
    assert [sample.ids.tolist() for sample in found.samples] == [whole.ids.tolist()]
    found = made(chat, tokenizer, literal("plain"), context_length=length - 1, too_long=too_long)
    assert (found.changed or found.dropped or found.error).endswith(f"context_length={length - 1}") or found.error
    assert all(len(sample.ids) < length for sample in found.samples)


def test_last_answer_alone_is_learned_where_asked_also_of_a_split_conversation():
    chat, tokenizer = many_turns(6), TOY
    (every,) = made(chat, tokenizer, literal("plain")).samples
    (last,) = made(chat, tokenizer, literal("plain"), loss_on="last_answer").samples
    assert every.ids.tolist() == last.ids.tolist()
    assert str(tokenizer.decode(last.ids[last.mask])).strip() == "the answer 5 is 25</s>"
    options = {"loss_on": "last_answer", "context_length": len(every.ids) // 2, "too_long": "split"}
    found = made(chat, tokenizer, literal("plain"), **options)
    (sample,) = found.samples
    assert labels([sample]) == labels([last])
    assert found.num_lost > 0


def test_all_tokens_are_learned_where_asked():
    (sample,) = made(many_turns(2), TOY, literal("plain"), loss_on="all").samples
    assert sample.mask.all()


def test_system_message_longer_than_the_context_is_refused():
    chat = conversation(("system", WORDS * 20), ("user", "q"), ("assistant", "a"))
    for too_long in ("split", "truncate_middle"):
        found = made(chat, TOY, literal("plain"), context_length=64, too_long=too_long)
        assert found.refused.startswith("longer than context_length=64: what must stay of it")


def test_splitting_does_not_encode_a_conversation_again_for_every_turn(monkeypatch: pytest.MonkeyPatch):
    """Tokens that are encoded grow as the conversation, not as its square."""
    policy = ConversationPolicy(template=literal("plain"), context_length=400, too_long="split")
    maker = ConversationSamples(make_tokenizer(), policy, num_threads=1)
    read: list[int] = []
    encode = maker.pieces._encode
    monkeypatch.setattr(
        maker.pieces, "_encode", lambda ways: [read.append(len(one.ids)) or one for one in encode(ways)]
    )
    sizes = {}
    for num_turns in (50, 200):
        read.clear()
        maker.make([many_turns(num_turns)])
        sizes[num_turns] = sum(read)
    assert sizes[200] < 4.4 * sizes[50]
