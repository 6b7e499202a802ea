"""What a model card says about other programs."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.exporting.clients import client_section, clients

YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
ORDER = ("transformers 5", "transformers 4.57", "vLLM", "llama.cpp", "CTranslate2", "ONNX Runtime GenAI")


def config(model_type: str = "llama", **rope: Any) -> dict[str, Any]:
    return {"model_type": model_type, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **rope}}


@pytest.mark.parametrize(
    ("rope", "reads"),
    [
        ({}, "yes yes yes yes yes yes"),
        ({"rope_theta": 32e4}, "yes yes yes yes yes yes"),
        ({"rope_type": "linear", "factor": 8.0}, "yes yes yes yes yes no"),
        (YARN, "yes yes yes yes refuses no"),
        ({**YARN, "truncate": False}, "yes yes yes no refuses no"),
        ({**YARN, "attention_factor": 1.3}, "yes yes yes no refuses no"),
        ({"rope_type": "llama3", "factor": 8.0}, "yes yes yes yes no not"),
        ({"rope_type": "dynamic", "factor": 8.0}, "yes yes no no not not"),
        ({"rope_type": "longrope"}, "yes yes not no not not"),
    ],
)
def test_each_rope_has_the_readers_that_were_measured(rope: dict[str, Any], reads: str) -> None:
    rows = clients(config(**rope), context_length=4096)
    assert tuple(row.name for row in rows) == ORDER
    assert " ".join(row.reads.split()[0] for row in rows) == reads


def test_the_launch_lines_have_the_length_and_the_file() -> None:
    section = client_section(config(**YARN), context_length=4096, gguf="model-f32.gguf")
    assert "`vllm serve <this folder> --max-model-len 4096`" in section
    assert "`llama-cli -m model-f32.gguf -c 4096`" in section
    assert "RoPE: yarn, theta 10000, factor 8, original length 512." in section
    assert "yarn_beta_fast" not in section


def test_betas_of_their_own_are_said_for_llama_cpp_python() -> None:
    section = client_section(config(**{**YARN, "beta_fast": 16.0, "beta_slow": 2.0}), context_length=4096)
    assert "`Llama(..., yarn_beta_fast=16, yarn_beta_slow=2)`" in section


def test_what_was_tried_with_llama_alone_is_not_claimed_for_others() -> None:
    reads = {row.name: row.reads for row in clients(config("qwen2"), context_length=4096)}
    assert reads["transformers 4.57"] == "yes"
    assert {reads[name] for name in ORDER[2:]} == {"not measured"}
    reads = {row.name: row.reads for row in clients(config("olmo2", **YARN), context_length=4096)}
    assert reads["transformers 4.57"] == "refuses it"


def test_a_native_index_is_read_by_this_repository_alone() -> None:
    section = client_section(config("index"), context_length=32768)
    assert "| this repository | yes |" in section
    assert "| any other program | no | export it anew with `export.layout=portable` |" in section
    assert "vLLM" not in section
