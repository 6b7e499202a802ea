"""How a conversation becomes one sequence: pieces of text and control tokens, of which some are learned.

A template of ours writes what stands around the contents of each role, for instance ChatML:

    system     <|im_start|> "system\\n"    {content} <|im_end|> "\\n"
    user       <|im_start|> "user\\n"      {content} <|im_end|> "\\n"
    assistant  <|im_start|> "assistant\\n" {content} <|im_end|> "\\n"
    label                                  ^^^^^^^^^^^^^^^^^^^^

Control tokens are ids from the start and never text, so no content can write one. An answer's label ends with the
control tokens that follow it directly; spaces in front of an answer belong to it, because tokenizers join them to its
first word. What the model is asked with (`prompt`) therefore ends before them.

The alternative is the tokenizer's own template, in Jinja (`jinja_template.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from datamodules.conversations.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTENT = "{content}"
NAMED_TOKENS = ("bos", "eos", "unk", "pad")
"""Control tokens that every tokenizer calls by the same name."""


class Piece(NamedTuple):
    """A part of a rendered conversation, a text or one control token.

    `message` counts from 0, and is -1 for what belongs to none.
    """

    text: str = ""
    token: int | None = None
    label: bool = False
    content: bool = False  # what someone said, and not the template
    message: int = -1


class Rendered(NamedTuple):
    """A rendered conversation.

    Attributes:
        pieces: In order.
        whole: The tokenizer reads `text` as one, and finds control tokens in it by itself.
        starts_behind_tokens: Text behind control tokens that open everything, as BOS, is read as the start of a text.
    """

    pieces: Sequence[Piece]
    whole: bool = False
    starts_behind_tokens: bool = True

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class BoundTemplate(Protocol):
    """A template with the ids of one tokenizer."""

    @property
    def texts_apart(self) -> bool:
        """Whether every text between control tokens is the start of a text of its own."""
        ...

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """What no content may write, with its ids."""
        ...

    def render(self, conversations: Sequence[Conversation]) -> Sequence[Rendered | str]:
        """Each conversation's pieces, or why there are none."""
        ...

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """What the model reads before it answers the last of the messages, a user's.

        Raises:
            ValueError: The template cannot write it.
        """
        ...


class ChatTemplate(Protocol):
    """How conversations are written."""

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that decides the pieces, as plain values."""
        ...

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> BoundTemplate:
        """The template with the ids of the tokenizer.

        Raises:
            ValueError: The tokenizer lacks what it takes.
        """
        ...

    def to_jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The template for other programs, which gives in plain transformers the ids that training has.

        Raises:
            ValueError: There is none, and why.
        """
        ...


@dataclass(frozen=True)
class LiteralTemplate:
    """A template of ours.

    Each argument is a list of texts and of control tokens, `{"token": …}` with `bos`, `eos`, `unk`, `pad` or a token of
    the vocabulary; `{content}` in a text is what was said.

    Args:
        name: What messages call it.
        user: Around a user's content.
        assistant: Around an answer.
        system: Around the system message; None refuses conversations that have one.
        start: In front of everything.
        text: Around a text that is learned whole; None puts EOS behind it.
        texts_apart: Each text between control tokens is encoded as a text of its own, at whose start SentencePiece
            puts a space; else as the tokenizer itself reads a text that goes on behind a control token.
    """

    name: str
    user: Sequence[Any]
    assistant: Sequence[Any]
    system: Sequence[Any] | None = None
    start: Sequence[Any] = ()
    text: Sequence[Any] | None = None
    texts_apart: bool = False

    def __post_init__(self) -> None:
        for part in ("user", "assistant", "system", "text"):
            given = getattr(self, part)
            if given is not None and sum(str(item).count(CONTENT) for item in given if isinstance(item, str)) != 1:
                raise ValueError(
                    f"chat template {self.name}: {part} must hold {CONTENT} once; set data.token_policy.template.{part}"
                )

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that decides the pieces, as plain values."""
        parts = {key: value for key, value in asdict(self).items() if key != "name"}
        return {"literal": parts, "ids": dict(self._tokens(tokenizer))}

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> BoundLiterals:
        """The template with the ids of the tokenizer.

        Raises:
            ValueError: The tokenizer has no such token.
        """
        return BoundLiterals(self, dict(self._tokens(tokenizer)), control_tokens_of(tokenizer))

    def to_jinja(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The template for other programs, which gives in plain transformers the ids that training has.

        Raises:
            ValueError: The tokenizer reads no text as these ids.
        """
        from datamodules.conversations.jinja_form import exact_jinja  # which reads templates

        return exact_jinja(self.bind(tokenizer), tokenizer)

    def _tokens(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
        parts = [self.start, self.system or (), self.user, self.assistant, self.text or ()]
        if self.text is None and tokenizer.eos_token_id is not None:
            yield "eos", int(tokenizer.eos_token_id)  # type: ignore[arg-type]
        for name in dict.fromkeys(_token_name(item, self.name) for part in parts for item in part):
            if name is not None:
                yield name, _id_of(name, tokenizer, self.name)


@dataclass(frozen=True)
class BoundLiterals:
    """A `LiteralTemplate` with the ids of one tokenizer."""

    template: LiteralTemplate
    ids: Mapping[str, int]  # by the names that the template uses
    special_tokens: Mapping[str, int]

    @property
    def texts_apart(self) -> bool:
        return self.template.texts_apart

    @property
    def control_tokens(self) -> dict[str, int]:
        """What no content may write."""
        return {**self.special_tokens, **{name: self.ids[name] for name in self.ids if name not in NAMED_TOKENS}}

    def render(self, conversations: Sequence[Conversation]) -> list[Rendered | str]:
        """Each conversation's pieces, or why there are none."""
        found: list[Rendered | str] = []
        for conversation in conversations:
            if conversation.text is not None and self.template.text is None and "eos" not in self.ids:
                found.append("a text is learned with EOS behind it, which the tokenizer lacks; set chat_template.text")
            elif conversation.system and self.template.system is None:
                found.append(f"chat template {self.template.name} has no place for a system message")
            else:
                found.append(Rendered(self._pieces(conversation)))
        return found

    def prompt(self, messages: Sequence[Message]) -> Rendered:
        """What the model reads before it answers the last of the messages, a user's.

        Raises:
            ValueError: The messages break a rule, or the template has no place for a system message.
        """
        (rendered,) = self.render([Conversation((*messages, Message(ASSISTANT, "")))])
        if isinstance(rendered, str):
            raise ValueError(rendered)
        answer = len(messages)
        label = next(k for k, piece in enumerate(rendered.pieces) if piece.label and piece.message == answer)
        return Rendered(rendered.pieces[:label])

    def opening(self) -> list[Piece]:
        """What stands in front of everything."""
        return list(self._filled(self.template.start, "", -1))

    def turn(self, message: Message, number: int) -> list[Piece]:
        """One message with what stands around it, and its labels.

        Args:
            message: Not a system message where the template has no place for one.
            number: Of the message, from 0.
        """
        parts = {SYSTEM: self.template.system or (), USER: self.template.user, ASSISTANT: self.template.assistant}
        turn = list(self._filled(parts[message.role], message.content, number))
        return labelled(turn) if message.role == ASSISTANT else turn

    def _pieces(self, conversation: Conversation) -> list[Piece]:
        if conversation.text is not None:
            text = self._filled(self.template.text or (CONTENT, {"token": "eos"}), conversation.text, 0)
            return [piece._replace(label=True) for piece in (*self.opening(), *text)]
        pieces = self.opening()
        for number, message in enumerate(conversation.messages):
            pieces += self.turn(message, number)
        return pieces

    def _filled(self, part: Sequence[Any], content: str, number: int) -> Iterator[Piece]:
        for item in part:
            name = _token_name(item, self.template.name)
            if name is not None:
                yield Piece(token=self.ids[name], message=number)
                continue
            before, inside, after = str(item).partition(CONTENT)
            for text, said in ((before, False), (content if inside else "", True), (after, False)):
                if text or (said and inside):
                    yield Piece(text, content=said, message=number)


def labelled(turn: Sequence[Piece]) -> list[Piece]:
    """The pieces of an answer with its label: its content, spaces in front, control tokens right behind."""
    where = next(k for k, piece in enumerate(turn) if piece.content)
    before, after = list(turn[:where]), list(turn[where + 1 :])
    if before and before[-1].token is None:
        literal = before.pop()
        text = literal.text.rstrip(" ")
        spaces = literal.text[len(text) :]
        before += [literal._replace(text=text)] * bool(text) + [literal._replace(text=spaces, label=True)] * bool(
            spaces
        )
    ends = next((k for k, piece in enumerate(after) if piece.token is None), len(after))
    end = [piece._replace(label=True) for piece in after[:ends]]
    return [*before, turn[where]._replace(label=True), *end, *after[ends:]]


def control_tokens_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that no text may write: those that the tokenizer calls special."""
    return {str(token.content): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def _token_name(item: Any, template: str) -> str | None:
    if isinstance(item, str):
        return None
    if not isinstance(item, Mapping) or list(item) != ["token"]:
        raise ValueError(
            f"chat template {template} holds {item!r}; allowed are texts and {{token: …}}; set"
            " data.token_policy.template"
        )
    return str(item["token"])


def _id_of(name: str, tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    found = getattr(tokenizer, f"{name}_token_id") if name in NAMED_TOKENS else tokenizer.get_vocab().get(name)
    if found is None:
        raise ValueError(
            f"chat template {template} needs the token {name}, which the tokenizer lacks; set chat_template to another"
        )
    return int(found)
