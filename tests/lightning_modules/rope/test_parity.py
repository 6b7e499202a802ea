"""A patched live model is, bit for bit, the model that is freshly loaded with that config: families x methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_modules.rope.patch import assert_rope, extend_rope
from tests.grids import covering
from tests.lightning_modules.rope.shapes import CASES, CELLS, FAMILIES, Case, logits, shaped_model

LENGTHS = (40, 64, 200, 500, 100, 30)
"""Beyond the original length of 64 and back, in this order: dynamic and longrope remember what they met."""

FOLLOWS_LENGTH = ("dynamic_ntk", "longrope")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family's base model, saved by transformers."""
    folder = tmp_path_factory.mktemp("saved")
    for family in FAMILIES:
        shaped_model(family).save_pretrained(folder / family)
    return {family: folder / family for family in FAMILIES}


def test_number_of_cells() -> None:
    assert len(FAMILIES) == 7
    assert len(CASES) == 11
    assert len(CELLS) == 7 * 11 - 6 - 1  # Phi-3 takes five, Gemma 3 all but untruncated YaRN


def fresh(saved: Path, case: Case, folder: Path) -> Any:
    """Loaded from a config.json in which the case was written by hand; no code of ours."""
    config = json.loads((saved / "config.json").read_text())
    nested = config["rope_parameters"].get("full_attention")
    (nested or config["rope_parameters"]).update(case.changes)
    config["max_position_embeddings"] = case.max_position_embeddings
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(saved / "model.safetensors")
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("family", "name"), covering(CELLS))
def test_patched_model_equals_a_freshly_loaded_one(
    saved: dict[str, Path], family: str, name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    model = AutoModelForCausalLM.from_pretrained(saved[family])
    before = {length: logits(model, length) for length in LENGTHS}
    rope = extend_rope(model, case.method, case.context_length)
    expected = fresh(saved[family], case, tmp_path / "fresh")
    assert model.config.rope_parameters == expected.config.rope_parameters
    assert model.config.max_position_embeddings == case.max_position_embeddings
    model.save_pretrained(tmp_path / "again")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for length in LENGTHS:
        ours = logits(model, length)
        assert torch.equal(ours, logits(expected, length)), f"patched against fresh at {length} tokens"
        assert torch.equal(ours, logits(reloaded, length)), f"patched against reloaded at {length} tokens"
        moved = name != "unchanged" and not (name == "dynamic_ntk" and length <= 64)
        assert torch.equal(ours, before[length]) != moved, f"the case must change the logits at {length} tokens"
        for each in (model, reloaded):
            assert_rope(each, rope.rope_parameters, rope.max_position_embeddings)


@pytest.mark.parametrize(
    ("family", "name"), covering(cell for cell in CELLS if cell[0] in ("llama", "gemma3_text", "phi3"))
)
def test_a_method_replaces_any_other_and_what_it_cached(saved: dict[str, Path], family: str, name: str) -> None:
    case = CASES[name]
    model, expected = (AutoModelForCausalLM.from_pretrained(saved[family]) for _ in range(2))
    extend_rope(expected, case.method, case.context_length)
    for other in (name for of_family, name in CELLS if of_family == family):
        extend_rope(model, CASES[other].method, CASES[other].context_length)
        logits(model, 200)  # dynamic and longrope cache tables for this length
    extend_rope(model, case.method, case.context_length)
    extend_rope(model, case.method, case.context_length)
    assert model.config.to_dict() == expected.config.to_dict()
    for length in (40, 200):
        assert torch.equal(logits(model, length), logits(expected, length))


def test_sliding_layers_keep_their_own_rope(saved: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved["gemma3_text"])
    before = model.model.rotary_emb.sliding_attention_inv_freq.clone()
    rope = extend_rope(model, CASES["linear"].method, 400)
    assert rope.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 1000.0}
    assert torch.equal(model.model.rotary_emb.sliding_attention_inv_freq, before)
    expected = torch.tensor([10000.0 ** (-2 * i / 16) / 6.25 for i in range(8)])
    torch.testing.assert_close(model.model.rotary_emb.full_attention_inv_freq, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("family", "name"), [("phi3", "linear"), ("phi3", "yarn"), ("gemma3_text", "yarn_options")])
def test_a_family_refuses_what_it_cannot_compute_and_stays_as_it_was(
    saved: dict[str, Path], family: str, name: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved[family])
    config, before = model.config.to_dict(), logits(model, 40)
    with pytest.raises(ValueError, match=r"choose another rope$|set rope\.truncate=true$"):
        extend_rope(model, CASES[name].method, CASES[name].context_length)
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, 40), before)
