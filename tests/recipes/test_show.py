"""What a recipe looks like before it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise

import pytest
from omegaconf import OmegaConf

from recipes.compose import compose, options, presets
from recipes.list import names, table
from recipes.quick_compose import preset_values
from recipes.show import show

INDEX, TOGETHER = "recipe=index_1p9b_32k/pretrain", "recipe=together_llama2_7b_32k/pretrain"


def sections(*words: str) -> tuple[list[str], list[str]]:
    """The lines above the section on RoPE, and the section without its comment signs."""
    lines = show(compose(words)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# What this RoPE means"))
    assert lines[start - 1] == "#"
    return lines[: start - 1], [line[2:] for line in lines[start:]]


def test_header_comes_first() -> None:
    lines = show(compose([TOGETHER])).splitlines()
    assert lines[0].startswith("# Paper    LLaMA-2-7B-32K (Together AI 2023)")
    first_key = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert [line[2:9].strip() for line in lines[:first_key] if line[2] != " "] == [
        *("Paper", "Source", "Run", "Expect", "Differs", "Numbers"),
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
    before, _ = sections(INDEX, word)
    assert before[-2:] == ["# The command line changed:", f"#   {change}"]


def test_without_words_nothing_is_said_to_change() -> None:
    assert "command line" not in show(compose([INDEX]))


@pytest.mark.parametrize("words", [[INDEX], [TOGETHER], ["recipe=demo/extend"], ["recipe=demo/extend", "rope=yarn"]])
def test_it_ends_with_what_the_rope_means_in_100_columns(words: list[str]) -> None:
    lines = show(compose(words)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# What this RoPE means: rope="))
    assert all(line.startswith("#") and len(line) <= 100 for line in lines[start:])
    assert len(lines) - start < 60
    shown = OmegaConf.create("\n".join(lines))
    assert "rope" in shown
    assert len(shown) > 10


def test_index_is_read_with_its_paper() -> None:
    section = " ".join(" ".join(sections(INDEX)[1]).split())
    assert "rope=adjusted_base, 4,096 -> 32,768 tokens" in section
    assert "rope_type=default, rope_theta=320000" in section
    for number in ("92 of 128", "56,886", "148,544", "192,144", "82,685", "first 16,350", "629,979"):
        assert number in section
    assert "not on this disk, model.head_dim=128, model.original_rope_theta=10000.0" in section


def test_the_rope_of_the_command_line_is_the_one_that_is_explained() -> None:
    changed = "\n".join(sections(INDEX, "rope.rope_theta=5e5")[1])
    assert "rope_theta=500000" in changed
    assert "78,400  satisfied" in changed
    linear = "\n".join(sections("recipe=demo/extend", "rope=linear")[1])
    assert "rope_type=linear, rope_theta=10000, factor=8" in linear
    assert "do not" in linear
    assert "the model's config.json" in linear


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([INDEX, "rope=unchanged"], "context_length=32768 is beyond the 4096 that the base model"),
        ([TOGETHER, "rope=adjusted_base"], "rope.rope_theta has no value; add rope.rope_theta=…"),
        ([INDEX, "rope.rope_theta=few"], "rope.rope_theta=few must be a number"),
        ([INDEX, "rope.rope_theta=1"], "rope_theta=1.0 is not above 1"),
        ([INDEX, "rope.rope_theta=-1"], "rope.rope_theta=-1 is not a positive number"),
        ([INDEX, "+rope.factr=2"], "rope.factr is not an argument of"),
        ([INDEX, "rope._target_=os.getcwd"], "rope._target_=os.getcwd is not allowed"),
        ([INDEX, "model=hugging_face"], "model.original_context_length has no value; add"),
        ([INDEX, "context_length=few"], "context_length=few must be a whole number"),
        ([INDEX, "context_length=${nothing}"], "Interpolation key 'nothing' not found"),
        ([INDEX, "model.head_dim=7"], "7 rotary dimensions are not pairs"),
    ],
)
def test_what_cannot_be_explained_is_said_and_the_rest_is_shown(words: list[str], sentence: str) -> None:
    before, section = sections(*words)
    assert section[0].startswith("What this RoPE means cannot be said: ")
    assert sentence in " ".join(section)
    assert "rope:" in before


def test_showing_loads_no_model_and_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from recipes.compose import compose; from recipes.show import show;"
        f"show(compose(['{INDEX}'])); show(compose(['{TOGETHER}']));"
        "print({'torch', 'transformers', 'lightning'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


def test_table_has_a_row_for_each_preset() -> None:
    header, rule, *rows = table(width=200).splitlines()
    assert " ".join(header.split()) == "recipe paper base model context RoPE packing stage tokens"
    assert set(rule) == {"-", " "}
    assert sorted(row.split()[0] for row in rows if row[0] != " ") == presets()
    found = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    for recipe, cells in (
        (
            "together_llama2_7b_32k/pretrain",
            "LLaMA-2-7B-32K LLaMA-2-7B 4K -> 32K linear concat_chunk full CPT 1/3 1.5 B",
        ),
        (
            "index_1p9b_32k/pretrain",
            "Index-1.9B-32K Index-1.9B 4K -> 32K adjusted_base concat_chunk masked CPT 1/2 10 B",
        ),
        ("utk_qwen2_7b_128k/pretrain", "Untie the Knots Qwen2-7B 32K -> 128K adjusted_base concat_chunk full CPT"),
        ("demo/base", "none nothing (trained from scratch) 512 unchanged concat_chunk masked CPT 16.4 M"),
    ):
        assert found[recipe].startswith(cells)
    assert found["index_1p9b_32k/sft"].endswith("best_fit masked SFT 2/2 2 epochs")


def test_table_is_readable_at_160_columns() -> None:
    lines = table().splitlines()
    assert max(map(len, lines)) <= 160
    assert max(map(len, table(width=140, wrap=True).splitlines())) <= 140
    assert max(map(len, names().splitlines())) <= 160


def test_reported_scores_stand_below_their_recipe() -> None:
    lines = table(width=1000).splitlines()
    reported = {name: config.about.reported for name in presets() if (config := preset_values(name).config)}
    reported = {name: score for name, score in reported.items() if score}
    assert {
        line.split()[0]: below.strip().removeprefix("reported: ")
        for line, below in pairwise(lines)
        if below.startswith("    reported: ")
    } == reported


def test_every_pipeline_variant_and_ablation_is_named() -> None:
    said = " ".join(names().split())
    for group in ("pipeline", "variant", "ablation"):
        for name in options(group):
            assert name == "none" or re.search(rf"[:,] {name}(,| |$)", said), name


def test_length_that_the_paper_counts_from_is_said_beside_that_of_the_models_configuration() -> None:
    said = "The paper counts from 32,768 tokens; the lengths above are of the model's configuration, 131,072."
    assert f"# {said}" in show(compose(["recipe=utk_qwen2_7b_128k/pretrain"])).splitlines()
    for words in (["recipe=index_1p9b_32k/pretrain"], ["recipe=utk_qwen2_7b_128k/pretrain", "scale=toy"]):
        assert "The paper counts from" not in show(compose(words))
