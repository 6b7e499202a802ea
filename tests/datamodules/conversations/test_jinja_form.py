"""Templates of ours in Jinja: what plain transformers reads with them, against the ids and labels of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from datamodules.conversations.conversation import Conversation
from datamodules.conversations.encoding import PieceEncoder
from datamodules.conversations.jinja_form import exact_jinja, jinja_form
from datamodules.conversations.jinja_template import TokenizerTemplate
from datamodules.conversations.template import LiteralTemplate
from tests.datamodules.conversations.chats import (
    CHATML,
    CHATML_TOKENS,
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
    with_tokens,
)
from tests.datamodules.prepare.tokenizers import LLAMA_3, byte_level, sentencepiece_like
from tests.datamodules.toy import make_tokenizer

pytestmark = pytest.mark.usefixtures("rendered_by_a_fork")

SPACES = conversation(
    ("system", " Two spaces  "),
    ("user", "  begins with spaces"),
    ("assistant", ""),
    ("user", "\u2581marked, 'quoted' and \"quoted\" \\n {{ x }} {% raw %}"),
    ("assistant", " ends with one "),
)
LLAMA_3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama_3_like() -> Any:
    return with_tokens(byte_level(pattern=LLAMA_3), LLAMA_3_TOKENS, None, eos="</s>")


def chatml_like(template: Any) -> Any:
    return with_tokens(byte_level(pattern=LLAMA_3), CHATML_TOKENS, template, eos="<|im_end|>")


def index_like(prepend_scheme: str | None) -> Any:
    backend = sentencepiece_like(prepend_scheme=prepend_scheme)
    return with_tokens(backend, ("reserved_0", "reserved_1"), None, bos="<s>", eos="</s>", unk="<unk>")


TOKENIZERS: dict[str, Any] = {
    "toy": make_tokenizer,
    "spaces in front": lambda: with_tokens(byte_level(add_prefix_space=True), (), None, bos="<s>", eos="</s>"),
    "normaliser": llama_like,
    "first": lambda: llama_like(prepend_scheme="first"),
    "always": lambda: llama_like(prepend_scheme="always"),
}
PAIRS = [
    *((name, kind, make) for name in ("plain", "lines", "completion", "chatqa2") for kind, make in TOKENIZERS.items()),
    *(("together_inst", kind, make) for kind, make in TOKENIZERS.items() if kind != "toy"),
    *(("openchatkit", kind, make) for kind, make in TOKENIZERS.items() if kind != "toy"),
    *(("skywork", kind, make) for kind, make in TOKENIZERS.items() if kind != "toy"),
    ("chatml", "qwen", qwen_like),
    ("llama3", "llama3", llama_3_like),
    ("index", "normaliser", lambda: index_like(None)),
    ("index", "first", lambda: index_like("first")),
]


def reloaded(tokenizer: Any, jinja: str, folder: Path) -> Any:
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
    return AutoTokenizer.from_pretrained(folder)


def test_every_template_of_conf_is_compared() -> None:
    names = {file.stem for file in (ROOT / "conf" / "chat_template").glob("*.yaml")}
    assert {name for name, *_ in PAIRS} | {"tokenizer"} == names
    assert len(names) == 11


@pytest.mark.parametrize(("name", "kind", "make"), PAIRS, ids=[f"{name}-{kind}" for name, kind, _ in PAIRS])
def test_plain_transformers_reads_the_ids_and_labels_of_training(
    name: str, kind: str, make: Any, tmp_path: Path
) -> None:
    tokenizer, template = make(), literal(name)
    plain = reloaded(tokenizer, template.to_jinja(tokenizer), tmp_path)
    bound = template.bind(tokenizer)
    chats = [*CHATS, SPACES]
    if template.system is None:
        chats = [Conversation(chat.turns) for chat in chats]
    for chat, ours in zip(chats, encoded(tokenizer, template, *chats), strict=True):
        theirs = plain.apply_chat_template(as_dicts(chat), return_dict=True, return_assistant_tokens_mask=True)
        assert ours.ids.tolist() == theirs["input_ids"]
        labels = [place for place, label in enumerate(ours.mask) if label]
        marked = [place for place, label in enumerate(theirs["assistant_masks"]) if label]
        assert marked == labels
        assert 0 < len(labels) < len(ours.ids)
        asked = plain.apply_chat_template(as_dicts(chat)[:-1], add_generation_prompt=True)["input_ids"]
        (prompt,) = PieceEncoder(tokenizer, bound).encode([bound.prompt(chat.messages[:-1])])
        assert not isinstance(prompt, str)
        assert asked == prompt.ids.tolist()


@pytest.mark.parametrize(("name", "prepend_scheme"), [("together_inst", "first"), ("index", "first")])
def test_spaces_that_training_puts_behind_control_tokens_are_written(name: str, prepend_scheme: str) -> None:
    """Without them the ids differ, so the form without is not the one that is used."""
    tokenizer, template = index_like(prepend_scheme), literal(name)
    bare = jinja_form(template.bind(tokenizer), tokenizer)  # type: ignore[arg-type]
    (ours,) = encoded(tokenizer, template, SHORT)
    ids = [
        tokenizer.apply_chat_template(as_dicts(SHORT), chat_template=jinja)["input_ids"]
        for jinja in (bare, template.to_jinja(tokenizer))
    ]
    assert ids[0] != ours.ids.tolist()
    assert ids[1] == ours.ids.tolist()


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        # a text of the template would become a control token, which it was not in training
        (qwen_like(), LiteralTemplate("own", user=["<|im_end|>{content}"], assistant=["{content}", {"token": "eos"}])),
        # the name of a token that the tokenizer does not look for in texts
        (make_tokenizer(), LiteralTemplate("own", user=[{"token": "a"}, "{content}"], assistant=["{content}"])),
    ],
)
def test_template_that_no_text_can_say_is_refused(tokenizer: Any, template: LiteralTemplate) -> None:
    with pytest.raises(ValueError, match="chat template own has no form in Jinja"):
        exact_jinja(template.bind(tokenizer), tokenizer)


def test_token_that_takes_white_space_away_is_refused() -> None:
    from tokenizers import AddedToken

    backend = byte_level(pattern=LLAMA_3)
    backend.add_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True)])
    tokenizer = with_tokens(backend, (), None, eos="</s>")
    template = LiteralTemplate("own", user=["{content}", {"token": "<|end|>"}], assistant=["{content}"])
    with pytest.raises(ValueError, match="chat template own has no form in Jinja"):
        template.to_jinja(tokenizer)


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("plain", [{"role": "tool", "content": "a"}]),
        ("plain", [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]),
        ("completion", [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
    ],
)
def test_message_that_has_no_place_is_refused(name: str, messages: list[dict[str, str]]) -> None:
    tokenizer: Any = make_tokenizer()
    with pytest.raises(TemplateError, match=f"chat template {name} has no place for this message"):
        tokenizer.apply_chat_template(messages, chat_template=literal(name).to_jinja(tokenizer))


def test_marks_are_written_as_programs_know_them_that_only_take_them_away(tmp_path: Path) -> None:
    """text-generation-inference does so, and then the text is the same."""
    jinja = literal("chatml").to_jinja(qwen_like())
    bare = jinja.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert "generation %}" not in bare
    first, second = (
        qwen_like().apply_chat_template(as_dicts(TURNS), chat_template=one, tokenize=False) for one in (jinja, bare)
    )
    assert first == second
    assert first.startswith("<|im_start|>system\nBe brief.")


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_it_is_read_back_as_a_tokenizers_own_template(name: str, tmp_path: Path) -> None:
    """What `chat` and a next stage of training read in a folder that was copied away."""
    tokenizer = qwen_like()
    own = reloaded(chatml_like(None), literal(name).to_jinja(tokenizer), tmp_path)
    for chat in CHATS:
        (first,) = encoded(tokenizer, literal(name), chat)
        (second,) = encoded(own, TokenizerTemplate(), chat)
        assert first.ids.tolist() == second.ids.tolist()
        assert first.mask.tolist() == second.mask.tolist()


def test_a_tokenizers_own_template_goes_out_with_the_arguments_of_training() -> None:
    own = "{% if thinks %}{{ '<think>' }}{% endif %}{{ today }}" + CHATML
    tokenizer = chatml_like({"default": CHATML, "other": own})
    template = TokenizerTemplate(name="other", arguments={"thinks": True, "today": 'it\'s "May"'})
    jinja = template.to_jinja(tokenizer)
    (ours,) = encoded(tokenizer, template, SHORT)
    assert tokenizer.apply_chat_template(as_dicts(SHORT), chat_template=jinja)["input_ids"] == ours.ids.tolist()
    changed = tokenizer.apply_chat_template(as_dicts(SHORT), chat_template=jinja, tokenize=False, thinks=False)
    assert changed.startswith('it\'s "May"<|im_start|>user')
