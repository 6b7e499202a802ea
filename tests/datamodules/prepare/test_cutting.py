import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from datamodules.prepare import cutting, encoding
from datamodules.prepare.cutting import cut_rule
from datamodules.prepare.encoding import TextEncoder
from tests.datamodules.prepare.tokenizers import (
    LINES,
    LLAMA_3,
    byte_level,
    sentencepiece_like,
    unigram,
    word_piece,
)
from tests.grids import quick_where

NASTY = (
    *(
        "a",
        "b",
        "The",
        "x y",
        " of it",
        "é",
        "e\u0301",
        "\u0301",
        " ",
        " ",
        " ",
        "  ",
        "    ",
        "\n",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
    ),
    *(
        "。",
        "你好",
        "世",
        "…",
        "12",
        "3456",
        "1",
        "!",
        "...",
        "'s",
        "'LL",
        "'",
        "</s>",
        "<s>",
        "👩‍👩‍👧",
        "🙂",
        "\u2028",
    ),
    *("\u00a0", "\u3000", "Привет", "й", "Й", "か\u3099", "한국", "▁", "▁a", "İ", "ﬁ", "Σ", "ς", "\x1c", "\x85"),
    *("\ufeff", "\u200b", "<0x0A>", "_", "[UNK]", "``", "\\", "\u00ad", "²", "½", "ǅ", "א", "ا", "क्ष", "ไทย"),  # noqa: RUF001
)
"""Runs of spaces and line ends, digits, apostrophes, CJK, emoji, combining marks, special tokens, odd white space."""

KINDS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": byte_level,
    "RoBERTa": lambda: byte_level(add_prefix_space=True),
    "Llama 3": lambda: byte_level(pattern=LLAMA_3),
    "Qwen": lambda: byte_level(pattern=LLAMA_3.replace("{1,3}", "")),
    "StarCoder": lambda: byte_level(digits=True),
    "Llama 2": lambda: sentencepiece_like(prepend_scheme=None),
    "Metaspace, first": lambda: sentencepiece_like(prepend_scheme="first"),
    "Metaspace, always": lambda: sentencepiece_like(prepend_scheme="always"),
    "Metaspace, never": lambda: sentencepiece_like(prepend_scheme="never"),
    "Metaspace, words": lambda: sentencepiece_like(prepend_scheme="always", split=True),
    "BERT": word_piece,
    "T5": unigram,
}


def nasty_texts(num_texts: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(NASTY, rng.integers(2, 80))) for _ in range(num_texts)]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def with_normalizer(normalizer: Any) -> Tokenizer:
    tokenizer = byte_level(pattern=LLAMA_3)
    tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "num_texts"),
    quick_where(itertools.product([*KINDS, "NFC", "NFKC", "NFD and lower case"], (400, 1500)), lambda _, n: n == 400),
)
def test_pieces_have_exactly_the_tokens_of_the_whole(kind: str, num_texts: int):
    normalized = {
        "NFC": normalizers.NFC(),
        "NFKC": normalizers.NFKC(),
        "NFD and lower case": normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]),
    }
    tokenizer = with_normalizer(normalized[kind]) if kind in normalized else KINDS[kind]()
    rule = cut_rule(tokenizer)
    assert rule is not None, "this kind can be cut"
    rng, cuts = np.random.default_rng(1), 0
    for text in [*nasty_texts(num_texts), *LINES[:3], "".join(LINES) * 3]:
        pieces = rule.pieces(text, size=int(rng.integers(0, 4)))
        cuts += len(pieces) - 1
        assert [token for piece in pieces for token in ids(tokenizer, piece)] == ids(tokenizer, text), (text, pieces)
    assert cuts > num_texts / 3


def test_pieces_are_about_as_long_as_asked_and_make_up_the_text():
    rule = cut_rule(byte_level())
    assert rule is not None
    text = "word " * 10_000 + "x" * 5_000 + " word" * 100
    pieces = rule.pieces(text, size=100)
    assert "".join(pieces) == text
    lengths = sorted(map(len, pieces[:-1]))
    assert lengths[0] >= 100
    assert lengths[-2] <= 105
    assert 5_000 < lengths[-1] < 5_200  # no place in the run of x
    assert rule.pieces("x" * 5_000, size=100) == ["x" * 5_000]  # no place: whole


def changed(change: Callable[[dict[str, Any]], None], kind: str = "Llama 3") -> Tokenizer:
    description = json.loads(KINDS[kind]().to_str())
    change(description)
    return Tokenizer.from_str(json.dumps(description))


def unknown_pattern(description: dict[str, Any]) -> None:
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": LLAMA_3 + r"|\p{L} \p{L}"}


def merge_over_spaces(description: dict[str, Any]) -> None:
    description["model"]["vocab"]["Q▁"] = len(description["model"]["vocab"])
    description["model"]["merges"].insert(0, ["Q", "▁"])


def dropout(description: dict[str, Any]) -> None:
    description["model"]["dropout"] = 0.1


def no_words(description: dict[str, Any]) -> None:
    description["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }


def strip(description: dict[str, Any]) -> None:
    description["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (unknown_pattern, "Llama 3"),
        (no_words, "Llama 3"),
        (strip, "Llama 3"),
        (dropout, "GPT-2"),
        (merge_over_spaces, "Llama 2"),
        (merge_over_spaces, "Metaspace, always"),
    ],
)
def test_what_is_not_known_to_be_safe_stays_whole(change: Callable[[dict[str, Any]], None], kind: str):
    assert cut_rule(changed(change, kind)) is None


def test_merges_over_spaces_would_have_been_cut_wrongly():
    """The reason for the rule: with such a merge, pieces have other tokens than the whole."""
    tokenizer = changed(merge_over_spaces, "Metaspace, always")
    assert ids(tokenizer, "the Q man") != [*ids(tokenizer, "the Q"), *ids(tokenizer, " man")]


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("best of", normalized=False),
        AddedToken("times", normalized=False),
        AddedToken("<x", normalized=False, lstrip=True),
        AddedToken("x>", normalized=False, rstrip=True),
        AddedToken("\n", normalized=False),
    ],
)
def test_added_tokens_that_may_lie_over_a_place_keep_texts_whole(token: AddedToken):
    tokenizer = byte_level()
    tokenizer.add_tokens([token])
    assert cut_rule(tokenizer) is None or token.content == "<x"


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Llama 3", "Llama 2", "BERT"])
def test_encoder_gives_the_ids_of_whole_texts_in_order(kind: str, num_threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cutting, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(cutting.CutRule.pieces, "__defaults__", (50,))
    monkeypatch.setattr(encoding, "CALL_CHARACTERS", 300)
    texts = [*nasty_texts(60, seed=2), "", "a", "".join(nasty_texts(60, seed=3)), " ", "\n"]
    tokenizer = KINDS[kind]()
    expected = [ids(tokenizer, text) for text in texts]
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer), num_threads=num_threads)
    assert [found.tolist() for found in encoder.encode(texts)] == expected


def test_error_while_texts_are_read_ends_the_encoding():
    def texts():
        yield "fine " * 1000
        raise ValueError("line 2 is bad")

    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_level()), num_threads=2)
    with pytest.raises(ValueError, match="line 2 is bad"):
        list(encoder.encode(texts()))


def test_number_of_threads_is_judged():
    with pytest.raises(
        ValueError, match=r"num_threads=0 must be at least 1, or null; set prepare\.engine\.num_threads"
    ):
        TextEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_level()), num_threads=0)
