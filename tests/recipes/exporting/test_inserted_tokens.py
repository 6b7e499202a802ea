"""What an augmentation put in has its names in an exported tokenizer that can take them, and else in the model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from transformers import AutoTokenizer

from datamodules.augmentations.token_names import with_names
from datamodules.augmentations.ul2_denoising import UL2Denoising
from datamodules.augmentations.untie_the_knots import UntieTheKnots
from datamodules.prepare.cutting import PROBE
from recipes.build import build_augmentation
from recipes.compose import compose
from recipes.exporting.hugging_face import export_hugging_face
from recipes.exporting.inserted_tokens import exported_tokenizer, token_sections
from tests.datamodules.toy import make_tokenizer
from tests.lightning_modules.tiny_models import tiny_model

KNOTS = ["<D>", "</D>", "<S>", "<s>", "</S>", "<t1>", "<h2>", "<t2>", "<h3>"]
UNCUT = ["packing.document_mask=false", "packing.reset_positions=false"]
HTML = "<s>gone</s> <h2>A heading</h2> <S> <t1>\n"


def knots(vocab_size: int, tokenizer: Any) -> UntieTheKnots:
    return UntieTheKnots().with_tokenizer(tokenizer, vocab_size=vocab_size)


def test_a_reloaded_export_knows_the_inserted_tokens_by_name_and_all_else_as_before(tmp_path: Path) -> None:
    ours = make_tokenizer(300)
    size = len(ours)
    augmentation = knots(size + 20, ours)
    folder = export_hugging_face(
        tiny_model("llama"), with_names(ours, augmentation.inserted_ids), tmp_path / "export", context_length=64
    )
    again = AutoTokenizer.from_pretrained(folder)
    names = [f"<|utk:{name}|>" for name in KNOTS]
    assert again.convert_tokens_to_ids(names) == list(range(size, size + 9))
    assert again.get_vocab() == ours.get_vocab() | dict(zip(names, range(size, size + 9), strict=True))
    assert (again.bos_token, again.eos_token) == (ours.bos_token, ours.eos_token)
    for text in (PROBE, HTML):
        assert again.encode(text, add_special_tokens=False) == ours.encode(text, add_special_tokens=False)
    row = [*ours.encode("one ", add_special_tokens=False), size + 5, *ours.encode("two", add_special_tokens=False)]
    assert again.decode(row) == "one <|utk:<t1>|>two"
    assert again.decode(row, skip_special_tokens=True) == "one two"
    assert len(ours) == size, "the run's own tokenizer was changed"


def test_the_next_stage_finds_the_same_rows_in_an_export(tmp_path: Path) -> None:
    ours = make_tokenizer(300)
    size = len(ours)
    first = knots(size + 20, ours)
    with_names(ours, first.inserted_ids).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert knots(size + 20, again).inserted_ids == first.inserted_ids
    more = UntieTheKnots(chunk_count_probabilities=[0, 0.5, 0.25, 0.25]).with_tokenizer(again, vocab_size=size + 20)
    assert more.inserted_ids == first.inserted_ids | {"<|utk:<t3>|>": size + 9, "<|utk:<h4>|>": size + 10}


def test_sentinels_and_mode_tokens_have_the_names_of_the_configuration(tmp_path: Path) -> None:
    ours = make_tokenizer(300)
    size = len(ours)
    augmentation = UL2Denoising(probability=1.0, num_sentinels=200).with_tokenizer(ours, vocab_size=size + 300)
    with_names(ours, augmentation.inserted_ids).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert {name: again.get_vocab()[name] for name in augmentation.inserted_ids} == augmentation.inserted_ids
    assert again.get_vocab()[augmentation.sentinel.format(199)] >= size
    repeated = UL2Denoising(probability=1.0, num_sentinels=200).with_tokenizer(again, vocab_size=size + 300)
    assert repeated.inserted_ids == augmentation.inserted_ids
    assert (repeated.sentinel_ids, repeated.mode_ids) == (augmentation.sentinel_ids, augmentation.mode_ids)


def test_rows_that_have_a_token_and_rows_that_cannot_be_numbered_leave_the_tokenizer_as_it_is() -> None:
    ours = make_tokenizer(300)
    size = len(ours)
    full = knots(size, ours)
    assert with_names(ours, full.inserted_ids) is ours, "impossible bytes keep their names"
    assert with_names(ours, {"<|a|>": size + 1}) is ours, "the tokenizer would give it the row before"
    assert with_names(ours, {"<s>": size}) is ours, "there is one of this name"
    assert with_names(ours, {}) is ours


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """The demo's vocabulary is full: there the knots are bytes that no text holds."""
    return compose(["recipe=demo/extend", "augmentation=untie_the_knots", *UNCUT]).config


def test_a_full_vocabulary_is_exported_as_it_is_and_the_card_says_what_its_rows_mean(config: DictConfig) -> None:
    tokenizer = exported_tokenizer(config)
    assert len(tokenizer) == 4096
    (section,) = token_sections(config)
    augmentation: Any = build_augmentation(config, tokenizer)
    rows = re.findall(r"^\| `(.*?)` \| (\d+) \| `(.*?)` \|$", section, re.M)
    assert [(name.replace("\\|", "|"), int(row)) for name, row, _ in rows] == list(augmentation.inserted_ids.items())
    assert [tokenizer.convert_tokens_to_ids(called) for *_, called in rows] == [int(row) for _, row, _ in rows]
    assert "has the one in the last column, or none" in section


def test_the_card_says_that_the_tokenizer_has_them_where_it_has(
    config: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.exporting.inserted_tokens.build_tokenizer", lambda config: make_tokenizer(300))
    size = len(make_tokenizer(300))
    assert exported_tokenizer(config).convert_tokens_to_ids("<|utk:<D>|>") == size
    (section,) = token_sections(config)
    assert "The tokenizer has them under these names" in section
    assert rf"| `<\|utk:<h2>\|>` | {size + 6} | `<\|utk:<h2>\|>` |" in section


def test_without_inserted_tokens_there_is_no_section() -> None:
    for name in ("none", "chunk_interleaving"):
        assert token_sections(compose(["recipe=demo/extend", f"augmentation={name}", *UNCUT]).config) == ()
