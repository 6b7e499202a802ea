from __future__ import annotations

import sys

import pytest

from datamodules.tokens.sentencepiece_tokenizer import SentencePieceTokenizer


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
    with pytest.raises(ValueError, match="tokenizer somewhere needs a package that is missing; run pip install"):
        SentencePieceTokenizer("somewhere").load()
