"""What an export's config.json says to readers of the newer and of the older keys, for every family and RoPE method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, PreTrainedTokenizerFast

from lightning_modules.rope.certificate import expected_tables, same_table
from lightning_modules.rope.patch import extend_rope
from recipes.exporting.hugging_face import export_hugging_face, write_both_dialects
from recipes.verifying.dialects import as_config, newer_dialect, older_keys, without
from tests.grids import covering
from tests.lightning_modules.rope.shapes import CASES, CELLS, LONG_FACTOR, SHORT_FACTOR, logits, shaped_model

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}


def exported(family: str, name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A model with its RoPE changed, and the config.json of its export."""
    model = shaped_model(family)
    extended = extend_rope(model, CASES[name].method, CASES[name].context_length)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    export_hugging_face(model, tokenizer, folder, context_length=extended.covered_length)
    return model, json.loads((folder / "config.json").read_text("utf-8"))


@pytest.mark.parametrize(("family", "name"), covering(CELLS))
def test_both_dialects_say_the_rope_that_was_exported(family: str, name: str, tmp_path: Path) -> None:
    model, config = exported(family, name, tmp_path / "export")
    expected = expected_tables(model.config)
    for dialect in (config, newer_dialect(config), without(config, "rope_parameters")):
        tables = expected_tables(as_config(dialect))
        assert tables.keys() == expected.keys()
        assert all(same_table(tables[kind], expected[kind]) for kind in expected)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    longest = CASES[name].context_length  # where longrope and dynamic compute another table than at short lengths
    assert torch.equal(logits(again, longest), logits(model, longest))
    assert type(config["max_position_embeddings"]) is int


def test_the_grid_is_whole() -> None:
    assert len(CELLS) == 70


@pytest.mark.parametrize(
    ("parameters", "model_type", "keys"),
    [
        ({"rope_type": "default", "rope_theta": 5e6}, "llama", {"rope_theta": 5e6, "rope_scaling": None}),
        (
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            "llama",
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        ({**YARN, "rope_theta": 1e4}, "qwen2", {"rope_theta": 1e4, "rope_scaling": YARN}),
        (  # OLMo-2's older config takes these two keys and no other
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            "olmo2",
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 8.0}},
        ),
        (  # Phi-3's these three, with the length before scaling beside them
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "short_factor": SHORT_FACTOR,
                "long_factor": LONG_FACTOR,
            },
            "phi3",
            {
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_scaling": {"type": "longrope", "short_factor": SHORT_FACTOR, "long_factor": LONG_FACTOR},
            },
        ),
        (
            {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
            "gemma3_text",
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 2e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        ({"main": {"rope_type": "default", "rope_theta": 1e4}}, "of_other_layer_kinds", {}),
    ],
)
def test_the_older_keys(parameters: dict[str, Any], model_type: str, keys: dict[str, Any]) -> None:
    assert older_keys(parameters, model_type=model_type) == keys


def test_a_multimodal_model_has_them_in_its_text_config(tmp_path: Path) -> None:
    config: Any = Gemma3Config()
    config.text_config.rope_parameters["full_attention"]["rope_theta"] = 4e6
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    write_both_dialects(file)
    written = json.loads(file.read_text("utf-8"))
    assert "rope_theta" not in written
    assert written["text_config"]["rope_theta"] == 4e6
    assert written["text_config"]["rope_local_base_freq"] == 1e4
    again: Any = AutoConfig.from_pretrained(tmp_path)
    assert again.text_config.rope_parameters == config.text_config.rope_parameters


def test_a_length_that_was_a_float_is_written_as_an_integer(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 32768.0}), "utf-8")
    write_both_dialects(file)
    assert '"max_position_embeddings": 32768\n' in file.read_text("utf-8").replace(",", "")
