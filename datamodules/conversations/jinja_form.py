"""A template of ours in Jinja, so that other programs ask a fine-tuned model as it was trained.

    LiteralTemplate   user: [{token: <|im_start|>}, "user\\n{content}", {token: <|im_end|>}, "\\n"]
    Jinja             {%- if message['role'] == 'user' %}
                      {{- "<|im_start|>user\\n" + message['content'] + "<|im_end|>\\n" }}

Jinja writes a text, and the tokenizer finds the control tokens in it by their names. Two things differ from training.
A content that holds such a name becomes the token, here as with every template of others. And SentencePiece puts a
space in front of a text: in training also behind BOS, or with `texts_apart` behind every control token, where plain
transformers puts none; a form of the template writes these spaces itself.

Nothing is taken on trust: a few telling conversations are tokenised in both ways, and a form that differs in one token
is not used. Cost: a second, nearly all of it for copies of the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from datamodules.conversations.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message
from datamodules.conversations.encoding import PieceEncoder
from datamodules.conversations.template import BoundLiterals, Piece, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spaces = Literal["none", "opening", "every"]
"""Where a form writes a space in front of a text by itself: nowhere, behind the first control tokens, behind all."""

ASKED = (
    ("What is 2 + 3?", "It is 5."),
    ("  Who wasn't there, they'LL say?\n", "\nZoë 🙂 was; 你好世界。  "),
    ("…", ""),
    ("\t{{ x }} {% y %} 'a' \"b\" \\n", "12345"),
)
"""Questions and answers in which white space at the ends, scripts, quotes and an empty answer show a difference."""


def exact_jinja(bound: BoundLiterals, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in Jinja, giving in plain transformers the ids that training has.

    Args:
        bound: To the same tokenizer.
        tokenizer: Has every control token of the template by name.

    Raises:
        ValueError: No form gives the same ids.
    """
    encoder = PieceEncoder(tokenizer, bound)
    forms: tuple[Spaces, ...] = ("none", "every" if bound.texts_apart else "opening")
    for spaces in forms:
        jinja = jinja_form(bound, tokenizer, spaces=spaces)
        if _agrees(jinja, bound, encoder, tokenizer):
            return jinja
    raise ValueError(
        f"chat template {bound.template.name} has no form in Jinja whose text this tokenizer reads as the tokens of"
        " training"
    )


def jinja_form(bound: BoundLiterals, tokenizer: PreTrainedTokenizerBase, *, spaces: Spaces = "none") -> str:
    """The template as text, with `add_generation_prompt` and, around what is learned, `{% generation %}`.

    Args:
        bound: The template with its ids.
        tokenizer: Tells the names of the ids.
        spaces: What the form writes by itself.
    """
    writer = _Writer(tokenizer, spaces)
    # A dash takes the line break in front away in every program, whatever it does with white space otherwise.
    lines = ["{%- set ns = namespace(begins=true) %}"] if spaces != "none" else []
    lines += writer.written(bound.opening())
    lines += ["{%- for message in messages %}"]
    for role, check in ((SYSTEM, " and loop.first"), (USER, ""), (ASSISTANT, "")):
        if role == SYSTEM and bound.template.system is None:
            continue
        keyword = "elif" if lines[-1] != "{%- for message in messages %}" else "if"
        lines += [f"{{%- {keyword} message['role'] == '{role}'{check} %}}"]
        lines += writer.written(bound.turn(Message(role, "x"), 0))
    lines += ["{%- else %}"]
    refusal = f"chat template {bound.template.name} has no place for this message: "
    lines += [f"{{{{- raise_exception({_quoted(refusal)} + message['role']) }}}}", "{%- endif %}", "{%- endfor %}"]
    turn = bound.turn(Message(ASSISTANT, "x"), 0)
    asked = turn[: next(k for k, piece in enumerate(turn) if piece.label)]
    if asked:
        lines += ["{%- if add_generation_prompt %}", *writer.written(asked), "{%- endif %}"]
    return "\n".join(lines)


class _Writer:
    """Writes pieces as expressions of Jinja.

    Args:
        tokenizer: Tells the names of the ids.
        spaces: What the form writes by itself; `ns.begins` then says that a text begins here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spaces: Spaces) -> None:
        self._tokenizer, self._spaces = tokenizer, spaces

    def written(self, pieces: Sequence[Piece]) -> list[str]:
        """One line, so that nothing stands between the pieces; none for no pieces."""
        line, learned = "", False
        for label, group in _groups(pieces):
            if label != learned:
                line += "{% generation %}" if label else "{% endgeneration %}"
                learned = label
            line += "".join(self._expressions(group))
        line += "{% endgeneration %}" if learned else ""
        if not line.startswith("{{"):  # text-generation-inference knows the marks without a dash alone
            line = '{{ "" }}' + line
        return [line.replace("{{", "{{-", 1)] if pieces else []

    def _expressions(self, pieces: Sequence[Piece]) -> Iterator[str]:
        if self._spaces == "none":
            yield f"{{{{ {' + '.join(map(self._term, _joined(pieces, self._name)))} }}}}"
            return
        for piece in pieces:
            yield from self._with_space(piece)

    def _with_space(self, piece: Piece) -> Iterator[str]:
        content, says = "message['content']", "{% set ns.begins = false %}"
        if piece.token is not None:
            yield f"{{{{ {_quoted(self._name(piece.token))} }}}}"
            if self._spaces == "every":
                yield "{% set ns.begins = true %}"
        elif piece.content:
            begins = f"ns.begins and {content}[0] not in ' \u2581'"
            space = f"{{% if {begins} %}}{{{{ ' ' }}}}{{% endif %}}"
            yield f"{{% if {content} %}}{space}{{{{ {content} }}}}{says}{{% endif %}}"
        else:
            space = "" if piece.text[0] in " \u2581" else "{% if ns.begins %}{{ ' ' }}{% endif %}"
            yield f"{space}{{{{ {_quoted(piece.text)} }}}}{says}"

    def _term(self, piece: Piece) -> str:
        return "message['content']" if piece.content else _quoted(piece.text)

    def _name(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))


def _groups(pieces: Sequence[Piece]) -> Iterator[tuple[bool, list[Piece]]]:
    """Pieces in a row that are labels, or are not."""
    group: list[Piece] = []
    for piece in pieces:
        if group and piece.label != group[-1].label:
            yield group[-1].label, group
            group = []
        group.append(piece)
    if group:
        yield group[-1].label, group


def _joined(pieces: Sequence[Piece], name: Any) -> list[Piece]:
    """Texts and names of control tokens as one text, where no content stands between."""
    found: list[Piece] = []
    for piece in pieces:
        text = name(piece.token) if piece.token is not None else piece.text
        if found and not piece.content and not found[-1].content:
            found[-1] = Piece(found[-1].text + text)
        else:
            found.append(Piece(text, content=piece.content))
    return found


def _agrees(jinja: str, bound: BoundLiterals, encoder: PieceEncoder, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether telling conversations, and their prompts, are the same ids in both ways."""
    turns = [message for asked, answer in ASKED for message in (Message(USER, asked), Message(ASSISTANT, answer))]
    chats = [turns, *(turns[k : k + 2] for k in range(0, len(turns), 2))]
    if bound.template.system is not None:
        chats += [[Message(SYSTEM, system), *turns] for system in ("Be brief.\nBe right. ", "  You are …", "")]
    for chat in chats:
        (rendered,) = bound.render([Conversation(tuple(chat))])
        for messages, ours in ((chat, rendered), (chat[:-1], bound.prompt(chat[:-1]))):
            if _ids(encoder, ours) != _plain_ids(jinja, messages, tokenizer, prompt=ours is not rendered):
                return False
    return True


def _ids(encoder: PieceEncoder, rendered: Rendered | str) -> list[int]:
    (encoded,) = (rendered,) if isinstance(rendered, str) else encoder.encode([rendered])
    return [] if isinstance(encoded, str) else encoded.ids.tolist()


def _plain_ids(jinja: str, messages: Sequence[Message], tokenizer: Any, *, prompt: bool) -> list[int]:
    chat = [message._asdict() for message in messages]
    options = {"chat_template": jinja, "add_generation_prompt": prompt, "return_dict": True}
    quiet = {"verbose": False}  # nobody reads these with a model, however long they are
    return list(tokenizer.apply_chat_template(chat, tokenizer_kwargs=quiet, **options)["input_ids"])


def _quoted(text: str) -> str:
    """A string of Jinja, which reads the escapes of JSON and characters as they are."""
    return json.dumps(text, ensure_ascii=False)
