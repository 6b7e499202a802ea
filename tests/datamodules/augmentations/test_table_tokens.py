"""Tables put together of tokenised pieces are, token for token, what the tokenizer makes of their text."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.augmentations.table_tokens import JoinedPieces, WholeText, table_tokens
from datamodules.tasks.table_formats import FORMATS, render
from datamodules.tasks.tables import draft_problem, make_problem
from tests.datamodules.prepare.tokenizers import LLAMA_3, byte_level, unigram, word_piece
from tests.grids import covering, quick_where

ROOT = Path(__file__).parents[3]
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def tables_text() -> list[str]:
    """What tokenizers are trained on here, so that they merge as much of a table as they may."""
    return [make_problem((77, k), num_characters=3000).text for k in range(60)]


def on_tables(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same kind of byte-level tokenizer, with merges learned from tables."""
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tables_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def without_words(*, punctuation_apart: bool) -> PreTrainedTokenizerFast:
    """BPE over whole texts as Llama 2's, in whose tokens letters, digits and punctuation are apart or not."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    parts: list[Any] = [pre_tokenizers.Metaspace(split=True)]
    if punctuation_apart:
        parts += [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    single_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *single_bytes], show_progress=False
    )
    lines = [text.replace("\n", " ") for text in tables_text()]  # so that a line end is a byte, as there
    tokenizer.train_from_iterator([*lines, "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ + = . ?"], trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = description["added_tokens"][:3]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    parts = [{"type": "Prepend", "prepend": "▁"}, replace]
    description["normalizer"] = {"type": "Sequence", "normalizers": parts}
    description["pre_tokenizer"] = None
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))


CUTTABLE = {
    "demo": lambda: AutoTokenizer.from_pretrained(ROOT / "lightning_modules" / "models" / "demo"),
    "gpt-2": lambda: on_tables(byte_level()),
    "llama-3": lambda: on_tables(byte_level(pattern=LLAMA_3)),
    "qwen": lambda: on_tables(byte_level(pattern=QWEN)),
    "gpt-4o": lambda: on_tables(byte_level(pattern=GPT_4O)),
    "starcoder": lambda: on_tables(byte_level(digits=True)),
    "llama-2": lambda: without_words(punctuation_apart=True),
}


@functools.cache
def cuttable(kind: str) -> PreTrainedTokenizerFast:
    return CUTTABLE[kind]()


def assert_tokens_are_those_of_the_text(tokenizer: PreTrainedTokenizerFast, made_by: Any, *, num_problems: int) -> None:
    for seed in range(num_problems):
        draft = draft_problem((seed,), max_columns=4 + seed % 5)
        table = draft.draw(num_rows=(3, 40, 200)[seed % 3])
        rows = made_by.measure(table, draft.format, draft.sample)
        for num_rows in {2, table.num_rows}:
            question = draft.ask(table.head(num_rows))
            before, behind = draft.around(question)
            text = before + render(table.head(num_rows), draft.format).text + f"{behind} {question.answer}"
            tokens = rows.problem(before, num_rows, f"{behind} {question.answer}")
            assert tokens.tolist() == tokenizer.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize(
    ("kind", "num_problems"),
    quick_where(itertools.product(CUTTABLE, (15, 45)), lambda kind, num_problems: num_problems == 15),
)
def test_joined_pieces_are_the_tokens_of_the_text(kind: str, num_problems: int):
    tokenizer = cuttable(kind)
    pieces = table_tokens(tokenizer)
    assert isinstance(pieces, JoinedPieces), "not known to be cut here"
    assert_tokens_are_those_of_the_text(tokenizer, pieces, num_problems=num_problems)
    again = pickle.loads(pickle.dumps(pieces))
    assert_tokens_are_those_of_the_text(tokenizer, again, num_problems=6)


@pytest.mark.parametrize(("kind", "written"), covering(itertools.product(["llama-3", "llama-2"], FORMATS)))
def test_a_long_table_too_and_its_row_ends_are_those_of_its_tokens(kind: str, written: Any):
    tokenizer = cuttable(kind)
    draft = draft_problem((1, [*FORMATS].index(written)), max_columns=8, formats=[written])
    table = draft.draw(12_000)  # keys of six digits
    rows = table_tokens(tokenizer).measure(table, written, draft.sample)
    whole = tokenizer.encode(render(table, written).text, add_special_tokens=False)
    tail = "" if written != "json" else "\n]"
    assert rows.problem("", 12_000, "").tolist() == whole
    shorter = render(table.head(500), written).text.removesuffix(tail)
    longer = render(table.head(600), written).text.removesuffix(tail)
    grown = len(tokenizer.encode(longer + ",")) - len(tokenizer.encode(shorter + ","))
    assert rows.ends[599] - rows.ends[499] == grown


def added(*names: str) -> PreTrainedTokenizerFast:
    tokenizer = on_tables(byte_level())
    tokenizer.add_tokens(list(names))
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: without_words(punctuation_apart=False),  # merges a letter and a comma
        lambda: PreTrainedTokenizerFast(tokenizer_object=word_piece(), unk_token="[UNK]"),
        lambda: PreTrainedTokenizerFast(tokenizer_object=unigram(), unk_token="<unk>"),
        lambda: added("-07"),
        lambda: added("h | 2"),
        lambda: added("12"),
    ],
)
def test_tokenizers_that_may_join_pieces_are_given_the_text(make: Any):
    tokenizer = make()
    whole = table_tokens(tokenizer)
    assert isinstance(whole, WholeText)
    assert_tokens_are_those_of_the_text(tokenizer, whole, num_problems=12)


def test_added_tokens_that_no_table_holds_change_nothing():
    assert isinstance(table_tokens(added("<|im_start|>", "    ", "é")), JoinedPieces)


def test_a_token_over_an_end_of_a_piece_would_give_other_tokens():
    """So the choice between the two kinds matters."""
    tokenizer = added("| 2", ": 1")
    with pytest.raises(AssertionError):
        assert_tokens_are_those_of_the_text(tokenizer, JoinedPieces(table_tokens(tokenizer).encode), num_problems=12)


def test_what_was_tokenised_before_changes_nothing():
    tokenizer = cuttable("gpt-2")
    fresh, used = table_tokens(tokenizer), table_tokens(tokenizer)
    for seed in range(20):
        draft = draft_problem((3, seed), max_columns=8)
        used.measure(draft.draw(300), draft.format, draft.sample)
    draft = draft_problem((4,), max_columns=8)
    first, second = (
        kind.measure(draft.draw(500), draft.format, draft.sample).problem("", 500, "\n\nAnswer:")
        for kind in (fresh, used)
    )
    np.testing.assert_array_equal(first, second)
