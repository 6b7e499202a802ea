"""What becomes of a conversation in a token store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datamodules.conversations.template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHOICES = {
    "too_long": ("error", "split", "truncate_middle", "drop"),
    "loss_on": ("answers", "last_answer", "all"),
    "empty_answers": ("reject", "keep", "drop"),
}
VERSION = 2
"""Changes with whatever changes the tokens or the labels of the same conversation and policy."""


@dataclass(frozen=True)
class ConversationPolicy:
    """How conversations are written, what of them is learned, and how long they may be.

    Args:
        template: Writes them.
        context_length: Most tokens of a sample; None lets them be as long as they are.
        too_long: What happens to longer ones: `error`, `split` into samples of whole turns, `truncate_middle` of the
            longest question, or `drop`. Whatever is cut or dropped is counted in `meta.json`.
        loss_on: `answers` with the tokens that end them, only the `last_answer`, or `all` tokens.
        empty_answers: An answer without text makes the conversation unusable (`reject`), has its end as its label
            (`keep`), or is left out with its question (`drop`).
    """

    template: ChatTemplate
    context_length: int | None = None
    too_long: str = "error"
    loss_on: str = "answers"
    empty_answers: str = "reject"

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"{key}={getattr(self, key)} is not known; set data.token_policy.{key} to one of"
                    f" {', '.join(allowed)}"
                )
        length = self.context_length
        if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 2):
            raise ValueError(
                f"context_length={length} must be a whole number of at least 2, or null; set"
                " data.token_policy.context_length"
            )

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer without the tokens or the template that this takes.

        Raises:
            ValueError: It lacks something.
        """
        self.template.bind(tokenizer)

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that decides the samples, as plain values: part of a store's key and of its `meta.json`."""
        own = {key: getattr(self, key) for key in ("context_length", *CHOICES)}
        if self.context_length is None:
            own["too_long"] = None
        return {"conversations": VERSION, **own, "template": self.template.describe(tokenizer)}
