"""The labels of our templates, token by token, against the same text encoded and marked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from datamodules.conversations.conversation import Conversation, Message
from datamodules.conversations.encoding import PieceEncoder
from datamodules.conversations.template import LiteralTemplate
from tests.datamodules.conversations.chats import (
    CHATML_MARKED,
    CHATS,
    ROOT,
    SHORT,
    TURNS,
    as_dicts,
    conversation,
    encoded,
    literal,
    llama_like,
    qwen_like,
    unrefused,
    with_tokens,
)
from tests.datamodules.prepare.tokenizers import LLAMA_3, byte_level, sentencepiece_like
from tests.datamodules.toy import make_tokenizer

Parts = list[tuple[str, bool]]


def by_hand(tokenizer: Any, parts: Parts) -> tuple[list[int], list[bool]]:
    """Ids and labels of a text in parts; a token is a label where one of its characters is."""
    text = "".join(part for part, _ in parts)
    learned = [label for part, label in parts for _ in part]
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return made["input_ids"], [any(learned[start:end]) for start, end in made["offset_mapping"]]


def plain_parts(chat: Conversation) -> Parts:
    names = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
    parts: Parts = []
    for role, content in chat.messages:
        answer = role == "assistant"
        parts += [(names[role], False), (f" {content}", answer), ("</s>" if answer else "\n", answer)]
    return parts


def lines_parts(chat: Conversation) -> Parts:
    parts = plain_parts(chat)
    for k in range(1, len(parts), 3):
        parts[k - 1], parts[k] = (parts[k - 1][0] + "\n", False), (parts[k][0][1:], parts[k][1])
    return parts


def chatqa2_parts(chat: Conversation) -> Parts:
    return [("\n\n" if text == "\n" else text, label) for text, label in plain_parts(chat)]


def completion_parts(chat: Conversation) -> Parts:
    parts: Parts = []
    for role, content in chat.messages:
        parts += [(content, role == "assistant"), ("</s>" if role == "assistant" else "", True)]
    return parts


def together_parts(chat: Conversation) -> Parts:
    parts: Parts = []
    for role, content in chat.messages:
        around = {"system": ("", "\n\n"), "user": ("[INST] ", " [/INST]"), "assistant": ("", "</s>")}[role]
        answer = role == "assistant"
        parts += [(around[0], False), (f" {content}" if answer else content, answer), (around[1], answer)]
    return parts


@pytest.mark.parametrize(
    ("name", "parts", "tokenizer"),
    [
        ("plain", plain_parts, make_tokenizer()),
        ("plain", plain_parts, with_tokens(byte_level(add_prefix_space=True), (), None, eos="</s>")),
        ("plain", plain_parts, llama_like()),
        ("plain", plain_parts, llama_like(prepend_scheme="first")),
        ("lines", lines_parts, make_tokenizer()),
        ("lines", lines_parts, llama_like()),
        ("chatqa2", chatqa2_parts, make_tokenizer()),
        ("completion", completion_parts, make_tokenizer()),
        ("completion", completion_parts, llama_like(prepend_scheme="first")),
        ("chatqa2", chatqa2_parts, llama_like(prepend_scheme="always")),
    ],
)
def test_ids_and_labels_are_those_of_the_text_marked_by_hand(name: str, parts: Any, tokenizer: Any):
    chats = [SHORT, conversation(*TURNS.messages[1:])] if name == "completion" else CHATS
    for chat, one in zip(chats, encoded(tokenizer, literal(name), *chats), strict=True):
        ids, labels = by_hand(tokenizer, parts(chat))
        assert one.ids.tolist() == ids
        assert one.mask.tolist() == labels
        assert 0 < sum(labels) < len(labels)


@pytest.mark.parametrize("prepend_scheme", [None, "first"])
def test_together_inst_is_its_text_behind_bos(prepend_scheme: str | None):
    tokenizer = llama_like(prepend_scheme=prepend_scheme)
    for chat, one in zip(CHATS, encoded(tokenizer, literal("together_inst"), *CHATS), strict=True):
        ids, labels = by_hand(tokenizer, together_parts(chat))
        assert one.ids.tolist() == [tokenizer.bos_token_id, *ids]
        assert one.mask.tolist() == [False, *labels]


@pytest.mark.parametrize("prepend_scheme", [None, "first", "always"])
def test_openchatkit_is_what_its_stream_feeds_the_tokenizer(prepend_scheme: str | None):
    """`tokenizer("\\n" + text)` with Llama's BOS, all of it learned, and no EOS."""
    tokenizer = llama_like(prepend_scheme=prepend_scheme)
    text = "Summarise: it was the best of times. A summary."
    (found,) = encoded(tokenizer, literal("openchatkit"), Conversation(text=text))
    fed = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    assert found.ids.tolist() == [tokenizer.bos_token_id, *fed]
    assert found.mask.all()


@pytest.mark.parametrize("prepend_scheme", [None, "first"])
def test_skywork_is_the_text_of_its_demo(prepend_scheme: str | None):
    tokenizer: Any = llama_like(prepend_scheme=prepend_scheme)
    (found,) = encoded(tokenizer, literal("skywork"), conversation(("user", "why"), ("assistant", "so it is")))
    text = "</s><s>[USER]why[SEP][BOT]<s>so it is</s>"  # cli_demo.py of github.com/SkyworkAI/Skywork
    assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = len(tokenizer(text.removesuffix("so it is</s>"), add_special_tokens=False)["input_ids"])
    assert found.mask.tolist() == [False] * answer + [True] * (len(found.ids) - answer)


@pytest.mark.parametrize("chat", CHATS)
def test_chatml_is_that_of_transformers_with_generation_marks(chat: Conversation):
    (found,) = encoded(qwen_like(), literal("chatml"), chat)
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    theirs = qwen_like(CHATML_MARKED).apply_chat_template(as_dicts(chat), **options)
    assert found.ids.tolist() == theirs["input_ids"]
    assert found.mask.astype(int).tolist() == theirs["assistant_masks"]


LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_3_MARKED = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|eot_id|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("chat", CHATS)
def test_llama3_is_that_of_transformers_with_generation_marks(chat: Conversation):
    tokenizer = with_tokens(byte_level(pattern=LLAMA_3), LLAMA_3_TOKENS, LLAMA_3_MARKED, eos="<|eot_id|>")
    (found,) = encoded(tokenizer, literal("llama3"), chat)
    theirs = tokenizer.apply_chat_template(as_dicts(chat), return_dict=True, return_assistant_tokens_mask=True)
    assert found.ids.tolist() == theirs["input_ids"]
    assert found.mask.astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize("prepend_scheme", [None, "first", "always"])
def test_index_is_ids_and_texts_each_tokenised_alone(prepend_scheme: str | None):
    """`[0] + system + [3] + question + [4] + answer + [2]`, as its demo; SentencePiece puts a space before each."""
    backend = sentencepiece_like(prepend_scheme=prepend_scheme)
    tokenizer = with_tokens(backend, ("reserved_0", "reserved_1"), None, bos="<s>", eos="</s>", unk="<unk>")
    ids_of = {"user": "reserved_0", "assistant": "reserved_1"}
    for chat, one in zip(CHATS, encoded(tokenizer, literal("index"), *CHATS), strict=True):
        ids, labels = [tokenizer.unk_token_id], [False]
        for role, content in chat.messages:
            text = tokenizer(content, add_special_tokens=False)["input_ids"]
            head = [tokenizer.convert_tokens_to_ids(ids_of[role])] if role in ids_of else []
            tail = [tokenizer.eos_token_id] if role == "assistant" else []
            ids += [*head, *text, *tail]
            labels += [False] * len(head) + [role == "assistant"] * (len(text) + len(tail))
        assert one.ids.tolist() == ids
        assert one.mask.tolist() == labels


@pytest.mark.parametrize("name", ["plain", "chatqa2", "chatml", "together_inst", "index", "completion"])
def test_prompt_begins_the_trained_sequence_up_to_its_label(name: str):
    tokenizer: Any = qwen_like()
    if name == "together_inst":
        tokenizer = llama_like()
    if name == "index":
        backend = sentencepiece_like(prepend_scheme="first")
        tokenizer = with_tokens(backend, ("reserved_0", "reserved_1"), None, eos="</s>", unk="<unk>")
    bound = literal(name).bind(tokenizer)
    encoder = PieceEncoder(tokenizer, bound)
    for chat in (SHORT, conversation(*TURNS.messages[1:3])):
        (asked,) = encoder.encode([bound.prompt(chat.messages[:-1])])
        (trained,) = encoder.encode([unrefused(one) for one in bound.render([chat])])
        asked, trained = unrefused(asked), unrefused(trained)
        assert trained.ids[: len(asked.ids)].tolist() == asked.ids.tolist()
        assert len(asked.ids) == np.argmax(trained.mask)


def test_empty_answer_has_its_end_as_label():
    tokenizer = make_tokenizer()
    (found,) = encoded(tokenizer, literal("plain"), conversation(("user", "q"), ("assistant", "")))
    assert found.ids[found.mask].tolist() == [*tokenizer(" ")["input_ids"], tokenizer.eos_token_id]
    (found,) = encoded(qwen_like(), literal("chatml"), conversation(("user", "q"), ("assistant", "")))
    assert qwen_like().convert_ids_to_tokens(found.ids[found.mask]) == ["<|im_end|>"]


def test_text_is_learned_whole():
    tokenizer = make_tokenizer()
    (found,) = encoded(tokenizer, literal("plain"), Conversation(text="User: it was </s> the best"))
    pieces = [tokenizer(text)["input_ids"] for text in ("User: it was ", "</", "s", "> the best")]
    assert found.mask.all()
    assert found.ids[-1] == tokenizer.eos_token_id
    assert (found.ids[:-1] != tokenizer.eos_token_id).all()
    assert len(found.ids) - 1 <= sum(map(len, pieces))


def test_template_without_a_place_for_the_system_message_says_so():
    template = LiteralTemplate(name="mine", user=["{content}"], assistant=["{content}"])
    (found,) = template.bind(make_tokenizer()).render([TURNS])
    assert found == "chat template mine has no place for a system message"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"user": ["no place"]}, "user must hold {content} once"),
        ({"user": ["{content}{content}"]}, "user must hold {content} once"),
        ({"assistant": [{"tokens": "eos"}, "{content}"]}, r"holds \{'tokens': 'eos'\}"),
        ({"start": [{"token": "<|nobody|>"}]}, r"needs the token <\|nobody\|>, which the tokenizer lacks"),
    ],
)
def test_fault_of_a_template_names_it(parts: dict[str, Sequence[Any]], message: str):
    options = {"user": ["{content}"], "assistant": ["{content}"], **parts}
    with pytest.raises(ValueError, match=rf"chat template mine.*{message}"):
        LiteralTemplate(name="mine", **options).describe(make_tokenizer())  # type: ignore[arg-type]


def test_every_template_of_conf_is_tried_here():
    files = sorted(file.stem for file in (ROOT / "conf" / "chat_template").glob("*.yaml"))
    tried = "chatml chatqa2 completion index lines llama3 openchatkit plain skywork together_inst tokenizer"
    assert files == tried.split()


def test_prompt_refuses_a_conversation_that_ends_with_an_answer():
    with pytest.raises(ValueError, match="message 3 of the assistant follows another"):
        literal("plain").bind(make_tokenizer()).prompt([*SHORT.messages[:1], Message("assistant", "a")])
