"""Conversations, chat templates and tokenizers that the tests of conversations share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from datamodules.conversations.conversation import Conversation, Message
from datamodules.conversations.encoding import Encoded, PieceEncoder
from datamodules.conversations.template import LiteralTemplate
from tests.datamodules.prepare.tokenizers import LLAMA_3, byte_level, sentencepiece_like

ROOT = Path(__file__).parents[3]
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen2's, without its default system message."""

CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2's: the system message inside of the first question, white space at the ends taken away."""

LLAMA_2_MARKED = LLAMA_2.replace(
    "{{ ' ' + message['content'].strip() + ' ' + eos_token }}",
    "{{ ' ' }}{% generation %}{{ message['content'].strip() + ' ' + eos_token }}{% endgeneration %}",
)


def conversation(*messages: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(*message) for message in messages))


SHORT = conversation(("user", "What is 2 + 3?"), ("assistant", "It is 5."))
TURNS = conversation(
    ("system", "Be brief.\nBe right."),
    ("user", "  Who wasn't there, they'LL say?\n"),
    ("assistant", "Zoë 🙂 was; 你好世界。"),
    ("user", "…"),
    ("assistant", "\nTwo lines\n\nand more!  "),
    ("user", "It was the best of times, it was the worst of times"),
    ("assistant", "12345"),
)
CHATS = (SHORT, TURNS)


@cache
def qwen_like(template: str = CHATML) -> Any:
    """Byte-level with the tokens of ChatML."""
    return with_tokens(byte_level(pattern=LLAMA_3), CHATML_TOKENS, template, eos="<|im_end|>")


@cache
def llama_like(template: str = LLAMA_2, *, prepend_scheme: str | None = None) -> Any:
    """SentencePiece's BPE with `<s>` and `</s>`."""
    return with_tokens(sentencepiece_like(prepend_scheme=prepend_scheme), (), template, bos="<s>", eos="</s>")


def with_tokens(
    backend: Tokenizer, tokens: Sequence[str], template: str | None, *, special: bool = True, **named: str
) -> Any:
    backend.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    names = {f"{name}_token": token for name, token in named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def literal(name: str) -> LiteralTemplate:
    """A template of `conf/chat_template`."""
    settings = yaml.safe_load((ROOT / "conf" / "chat_template" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert settings.pop("_target_").endswith(".LiteralTemplate")
    return LiteralTemplate(**settings)


def encoded(tokenizer: Any, template: Any, *conversations: Conversation) -> list[Encoded]:
    """Ids and labels of conversations that the template can write."""
    bound = template.bind(tokenizer)
    found = PieceEncoder(tokenizer, bound).encode([unrefused(one) for one in bound.render(conversations)])
    return [unrefused(one) for one in found]


def unrefused(value: Any) -> Any:
    assert not isinstance(value, str), value
    return value


def as_dicts(conversation: Conversation) -> list[dict[str, str]]:
    return json.loads(conversation.to_json())["messages"]
