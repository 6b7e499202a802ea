"""Questions about one text: what was said before, what there is room for, and what need not be read again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from lightning_modules.evaluation.generation import Decoding, Generation, Interrupted, generate
from lightning_modules.evaluation.prefix_cache import PrefixCache
from recipes.chatting.fitting import Cut, Fitted, cut_in_words, fit
from recipes.chatting.forms import PromptForm, Turn
from recipes.chatting.opening import Opened
from recipes.chatting.text_file import TextFile

ROOM_FOR_TURNS = 8
"""Of a text that is too long, so that something is cut anyway, an eighth of the room is kept for further questions."""


class Asked(NamedTuple):
    """What a question came to; its seconds count from the question on, the reading of the file included."""

    generation: Generation
    interrupted: bool


class Session:
    """A conversation about a file.

    The keys and values of what was read stay, so that a further question costs its own tokens and not the text's. The
    file is read again when it has changed; what was said about the old text is then forgotten, and of the keys and
    values those in front of the change stay.

    Args:
        opened: The model.
        form: How its prompts are written.
        file: The text.
        decoding: How answers are drawn; what ends them is added.
        say: Called with what the user should know, a sentence each.
        several: Whether more than one question is to be expected.
    """

    def __init__(
        self,
        opened: Opened,
        form: PromptForm,
        file: TextFile,
        *,
        decoding: Decoding,
        say: Callable[[str], None],
        several: bool = True,
    ) -> None:
        self.opened, self.form, self.file = opened, form, file
        self.turns: list[Turn] = []
        self._say = say
        self._several = several
        self._cache = PrefixCache()
        self._cut: Cut | None = None
        self._decoding = replace(decoding, stop_ids=(*form.stop_ids, *_ends_of_sequence(opened)))
        self._room = opened.context_length - decoding.max_new_tokens

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Asked:
        """The answer to one question.

        Args:
            question: In the words of the user.
            on_text: Called with each piece of the answer as it comes.

        Raises:
            ValueError: The question is too long, or does not go with the model.
        """
        started = time.perf_counter()
        self._look_at_file()
        token_ids = self._prompt(question)
        self._check(token_ids)
        decoding = replace(self._decoding, stop_strings=self.form.stop_strings(question))
        preparing, interrupted = time.perf_counter() - started, False
        model, tokenizer = self.opened.model, self.opened.tokenizer
        try:
            found = generate(model, tokenizer, token_ids, decoding=decoding, cache=self._cache, on_text=on_text)
        except Interrupted as interruption:
            found, interrupted = interruption.generation, True
        except torch.OutOfMemoryError as error:
            self._cache = PrefixCache()
            raise ValueError(
                f"there is no memory for the keys and values of {len(token_ids)} tokens; lower context_length, or set"
                " dtype=bf16 or another device"
            ) from error
        if found.text.strip():
            self.turns.append(Turn(question, found.text))
        return Asked(
            found._replace(
                first_token_seconds=preparing + found.first_token_seconds, seconds=preparing + found.seconds
            ),
            interrupted,
        )

    def _look_at_file(self) -> None:
        known = self.file.text
        try:
            changed = self.file.read()
        except ValueError as error:
            self._say(f"{error}; answering from what was read before")
            return
        if changed:
            before, now = (len(self.form.characters(text)) for text in (known, self.file.text))
            forgotten = ", and what was said so far is forgotten" if self.turns else ""
            self._say(f"{self.file.path} has changed: read again, {now} tokens where it had {before}{forgotten}")
            self.turns, self._cut = [], None

    def _prompt(self, question: str) -> list[int]:
        """The tokens of the text, of the turns that there is room for and of the question."""
        text = self.file.text if self._cut is None else self._cut.of(self.file.text)
        token_ids = self.form.encode(text, self.turns, question)
        num_turns = len(self.turns)
        while len(token_ids) > self._room and self.turns:
            self.turns.pop(0)
            token_ids = self.form.encode(text, self.turns, question)
        if num_turns > len(self.turns):
            gone = num_turns - len(self.turns)
            self._say(f"{gone} of {num_turns} earlier questions are forgotten, to leave room for the text")
        if len(token_ids) <= self._room:
            return token_ids
        fitted = self._fit(question)
        if fitted.cut is not None:
            self._cut = fitted.cut
            self._say(
                f"text and question are longer than the {self.opened.context_length} tokens that are read, of which"
                f" {self._decoding.max_new_tokens} are kept free for the answer:"
                f" {cut_in_words(fitted.cut, self.file.text)}"
            )
        return fitted.token_ids

    def _fit(self, question: str) -> Fitted:
        encode = lambda text: self.form.encode(text, [], question)  # noqa: E731
        text = self.file.text
        if self._several:
            try:
                fitted = fit(text, encode, self.form.characters, room=self._room - self._room // ROOM_FOR_TURNS)
            except ValueError:  # a question that needs the whole room gets it
                pass
            else:
                if fitted.cut is None or fitted.cut.num_tokens < fitted.cut.text_tokens:
                    return fitted
        return fit(text, encode, self.form.characters, room=self._room)

    def _check(self, token_ids: list[int]) -> None:
        embeddings = self.opened.model.get_input_embeddings()
        size = int(embeddings.weight.shape[0])  # type: ignore[union-attr]
        if max(token_ids) >= size:
            raise ValueError(
                f"the tokenizer of model={self.opened.place.name} gives token {max(token_ids)}, and the model has"
                f" {size}; put the tokenizer that belongs to the model into its folder"
            )


def _ends_of_sequence(opened: Opened) -> tuple[int, ...]:
    """The tokens with which the model says that it is done, by its own files."""
    named = [opened.tokenizer.eos_token_id]
    for source in (opened.model.generation_config, opened.model.config):
        value = getattr(source, "eos_token_id", None)
        named += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(token for token in named if isinstance(token, int)))
