"""What a recipe looks like before it runs."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recipes.compose import compose, presets
from recipes.list import table
from recipes.show import show

INDEX, TOGETHER = "recipe=index_1p9b_32k/pretrain", "recipe=together_llama2_7b_32k/pretrain"


def test_header_comes_first() -> None:
    lines = show(compose([TOGETHER])).splitlines()
    assert lines[0].startswith("# Paper    LLaMA-2-7B-32K (Together AI 2023)")
    assert [line[2:9].strip() for line in lines if line.startswith("# ") and line[2] != " "] == [
        *("Paper", "Source", "Run", "Expect", "Differs"),
    ]


def test_references_are_followed_and_bundled_files_are_not() -> None:
    shown = OmegaConf.to_container(OmegaConf.create(show(compose([TOGETHER, "scale=toy"]))), resolve=False)
    assert isinstance(shown, dict)
    assert shown["context_length"] == 4096
    assert shown["packing"]["max_seqlen"] == 4096
    assert shown["data"]["packing"] == "${packing}"
    assert shown["data"]["seed"] == 47
    assert shown["model"]["tokenizer"]["name_or_path"] == "${bundled:demo_model}"
    assert shown["corpus"]["sources"]["book"]["path"] == "${bundled:classics/train.jsonl.zst}"
    assert shown["optimizer"]["betas"] == [0.9, 0.95]


def test_keys_without_a_value_are_shown_as_such() -> None:
    shown = OmegaConf.to_container(OmegaConf.create(show(compose([INDEX, "model=hugging_face"]))), resolve=False)
    assert isinstance(shown, dict)
    assert shown["model"]["source"]["name_or_path"] == "???"
    assert shown["model"]["tokenizer"]["name_or_path"] == "${model.source.name_or_path}"
    assert shown["context_length"] == 32768


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("scale=toy", "scale: paper -> toy"),
        ("rope=linear", "rope: adjusted_base -> linear"),
        ("packing.document_mask=false", "packing.document_mask: true -> false"),
        ("rope.rope_theta=5e5", "rope.rope_theta: 320000.0 -> 500000.0"),
        ("corpus.sources.documents.path=a", "corpus.sources.documents.path: ??? -> a"),
        ("trainer.num_threads=2", "trainer.num_threads: null -> 2"),
        ("seed=47", "seed=47 is what it was"),
    ],
)
def test_changes_of_the_command_line_are_named(word: str, change: str) -> None:
    assert show(compose([INDEX, word])).splitlines()[-2:] == ["# The command line changed:", f"#   {change}"]


def test_without_words_nothing_is_said_to_change() -> None:
    assert "command line" not in show(compose([INDEX]))


def test_table_has_a_row_for_each_preset() -> None:
    header, rule, *rows = table().splitlines()
    assert " ".join(header.split()) == "recipe paper extends context RoPE packing documents masked tokens"
    assert set(rule) == {"-", " "}
    assert len(rows) == len(presets())
    (row,) = (row for row in rows if row.startswith("together_llama2_7b_32k/pretrain"))
    assert " ".join(row.split()[1:]) == "LLaMA-2-7B-32K LLaMA-2-7B 4096 -> 32768 linear concat_chunk no 1.5 B"
