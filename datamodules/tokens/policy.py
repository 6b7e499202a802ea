"""What stands around each document of a token store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenPolicy:
    """What stands around each document.

    Args:
        prepend_bos: Start every document with the tokenizer's BOS token.
        append_eos: End every document with the tokenizer's EOS token.
        separator: Text in front of every document, as OpenChatKit's "\\n".
    """

    prepend_bos: bool = False
    append_eos: bool = True
    separator: str = ""

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer without the tokens that the policy names.

        Raises:
            ValueError: There is no such token.
        """
        for wanted, token, key in (
            (self.prepend_bos, tokenizer.bos_token_id, "prepend_bos"),
            (self.append_eos, tokenizer.eos_token_id, "append_eos"),
        ):
            if wanted and token is None:
                raise ValueError(f"data.token_policy.{key}=true, but the tokenizer has no such token; set it to false")

    def around(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Ids before and after each document, BOS and EOS, of a tokenizer that passed `check`."""
        head = [tokenizer.bos_token_id] if self.prepend_bos else []
        tail = [tokenizer.eos_token_id] if self.append_eos else []
        return head, tail  # type: ignore[return-value]

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """All that decides what stands around, as plain values: part of a store's key and of its `meta.json`."""
        return asdict(self)
