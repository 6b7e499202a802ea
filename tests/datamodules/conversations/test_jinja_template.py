import subprocess
from typing import Any

import numpy as np
import pytest

from datamodules.conversations import jinja_process
from datamodules.conversations.conversation import Message
from datamodules.conversations.encoding import PieceEncoder
from datamodules.conversations.jinja_process import JinjaProcess
from datamodules.conversations.jinja_template import UNTRACEABLE, TokenizerTemplate
from tests.datamodules.conversations.chats import (
    CHATML,
    CHATML_MARKED,
    CHATS,
    LLAMA_2,
    LLAMA_2_MARKED,
    SHORT,
    as_dicts,
    conversation,
    encoded,
    llama_like,
    qwen_like,
)

pytestmark = pytest.mark.usefixtures("rendered_by_a_fork")

MARKED = [
    (qwen_like, CHATML, CHATML_MARKED, {}),
    (llama_like, LLAMA_2, LLAMA_2_MARKED, {"prepend_scheme": None}),
    (llama_like, LLAMA_2, LLAMA_2_MARKED, {"prepend_scheme": "first"}),
    (llama_like, LLAMA_2, LLAMA_2_MARKED, {"prepend_scheme": "always"}),
]


@pytest.mark.parametrize(("make", "plain", "marked", "options"), MARKED)
def test_ids_and_labels_are_those_of_transformers_with_generation_marks(
    make: Any, plain: str, marked: str, options: dict[str, Any]
):
    """The labels are found with the marks and without them."""
    for template in (marked, plain):
        found = encoded(make(template, **options), TokenizerTemplate(), *CHATS)
        for chat, one in zip(CHATS, found, strict=True):
            theirs = make(marked, **options).apply_chat_template(
                as_dicts(chat), return_dict=True, return_assistant_tokens_mask=True
            )
            assert one.ids.tolist() == theirs["input_ids"]
            assert one.mask.astype(int).tolist() == theirs["assistant_masks"]
            assert 0 < one.mask.sum() < len(one.mask)


@pytest.mark.parametrize(("make", "template"), [(qwen_like, CHATML), (llama_like, LLAMA_2)])
def test_prompt_is_what_transformers_asks_with_and_begins_the_trained_text(make: Any, template: str):
    tokenizer = make(template)
    bound = TokenizerTemplate().bind(tokenizer)
    rendered = bound.prompt(SHORT.messages[:1])
    (asked,) = PieceEncoder(tokenizer, bound).encode([rendered])
    theirs = tokenizer.apply_chat_template(as_dicts(SHORT)[:1], add_generation_prompt=True)["input_ids"]
    assert not isinstance(asked, str)
    assert asked.ids.tolist() == theirs
    (trained,) = encoded(tokenizer, TokenizerTemplate(), SHORT)
    assert trained.ids[: len(theirs)].tolist() == theirs
    assert not trained.mask[: len(theirs)].any()
    assert trained.mask[len(theirs)]


@pytest.mark.parametrize(
    "template",
    [
        # takes thoughts out of earlier answers, as Qwen3's
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | replace('5', 'five') }}<|im_end|>{% endfor %}",
        "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'and more' if '5' in messages[-1].content }}",
        "{{ 'first of all' if '5' in messages[-1].content }}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_template_that_changes_what_was_said_is_refused(template: str):
    chat = conversation(("system", "s"), ("user", "q"), ("assistant", "<think>2 + 3</think>It is 5."))
    (found,) = TokenizerTemplate().bind(qwen_like(template)).render([chat])
    assert found == UNTRACEABLE


def test_what_the_template_raises_refuses_that_conversation_only():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    first, second = (
        TokenizerTemplate()
        .bind(qwen_like(template))
        .render([conversation(("system", "s"), ("user", "q"), ("assistant", "a")), SHORT])
    )
    assert first == "the chat template refuses it: no system here"
    assert not isinstance(second, str)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * (2**33) }}", "writes far more than the conversation holds"),
        ("{{ 'a' * (2**27) }}", "writes far more than the conversation holds"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes longer than 1 seconds",
        ),
    ],
)
def test_hostile_template_is_ended(monkeypatch: pytest.MonkeyPatch, template: str, message: str):
    process = JinjaProcess("{% if messages[0].content == 'go' %}" + template + "{% endif %}", {})
    process.render([SHORT.messages])  # starting is not counted
    if "range" in template:
        monkeypatch.setattr(jinja_process, "SECONDS", 1.0)
    with pytest.raises(ValueError, match=rf"chat template {message}.*; set chat_template to one of"):
        process.render([SHORT.messages, [Message("user", "go")]])
    assert process.render([SHORT.messages])[0].error == ""


def test_template_cannot_reach_python(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jinja_process, "subprocess", subprocess)  # an interpreter of its own, as users have it
    template = "{{ messages.__class__.__base__.__subclasses__() }}"
    (found,) = JinjaProcess(template, {}).render([SHORT.messages])
    assert "unsafe" in found.error


def test_tokenizer_without_a_template_is_refused():
    with pytest.raises(ValueError, match="has no chat template; set chat_template"):
        TokenizerTemplate().bind(qwen_like(None))  # type: ignore[arg-type]


def test_template_that_writes_the_date_needs_one():
    tokenizer = qwen_like("{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + CHATML)
    with pytest.raises(ValueError, match=r"chat_template\.arguments\.date_string"):
        TokenizerTemplate().describe(tokenizer)
    (found,) = TokenizerTemplate(arguments={"date_string": "1 May 1900"}).bind(tokenizer).render([SHORT])
    assert not isinstance(found, str)
    assert found.text.startswith("1 May 1900<|im_start|>user")


def test_long_conversation_is_rendered_in_linear_time():
    """1,000 turns of a kilobyte: each is rendered, traced and encoded once."""
    tokenizer = qwen_like(CHATML_MARKED)
    chat = conversation(*((("user", "assistant")[k % 2], f"{k} it was the best of times. " * 40) for k in range(1000)))
    (found,) = encoded(tokenizer, TokenizerTemplate(), chat)
    assert np.diff(found.mask.astype(int)).clip(0).sum() == 500
