"""A tokenizer from its SentencePiece model, for repositories whose tokenizer class is code of their own.

Index-1.9B is one: its `tokenization_index.py` wraps `tokenizer.model` and adds neither BOS nor EOS (second-hand, from
PaddleFormers' port; the file itself was never read here). transformers' Llama tokenizer reads a `tokenizer.model`
without such code, but leaves out the text normalisation that the file may ask for, so what it makes of a few texts is
compared with SentencePiece itself. Two differences stay: no further space is put in front of a text that begins with
one, nor of a text that follows a special token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerBase

PROBES = (
    "It is 12.5 kg;  two  spaces,\ttab,\nline\n\n\tend ",
    "向量 \uff21\uff22\uff0c①②。「引用」",
    "naïve ﬁligree é 🙂",
    "x = [1, 2]  # ok\n",
)
"""Texts in which runs of spaces, line breaks, full-width forms and ligatures show a normalisation."""


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """The tokenizer of a folder or hub name that holds a `tokenizer.model`; nothing else there is run.

    Args:
        name_or_path: Hub name or folder.
        revision: Branch, tag or commit of a hub name.
    """

    name_or_path: str
    revision: str | None = None

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which agrees with SentencePiece on a few telling texts.

        Raises:
            ValueError: If it does not, the file cannot be read, or a package is missing.
        """
        try:
            import sentencepiece  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(
                f"tokenizer {self.name_or_path} needs a package that is missing; run pip install sentencepiece"
            ) from error
        try:
            tokenizer: Any = LlamaTokenizer.from_pretrained(self.name_or_path, revision=self.revision or "main")
            reference = sentencepiece.SentencePieceProcessor(model_file=tokenizer.vocab_file)
        except Exception as error:  # of the network, the hub, JSON and SentencePiece
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"tokenizer {self.name_or_path} cannot be read ({reason}); set model.tokenizer.name_or_path"
            ) from error
        for text in PROBES:
            if tokenizer.encode(text, add_special_tokens=False) != reference.encode(text):
                raise ValueError(
                    f"tokenizer {self.name_or_path} normalises text in a way that is not carried over ({text!r});"
                    " point model.tokenizer at datamodules.tokens.tokenizer.PretrainedTokenizer and a folder with"
                    " tokenizer.json"
                )
        tokenizer.init_kwargs.pop("auto_map", None)  # would send readers of an export to code that is not there
        return tokenizer
