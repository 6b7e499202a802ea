"""What is said of a RoPE choice, against transformers' own tables and the numbers of the papers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from lightning_modules.rope import theory
from lightning_modules.rope.methods import (
    AdjustedBase,
    BaseRope,
    DynamicNTK,
    LinearInterpolation,
    Llama3,
    LongRoPE,
    RopeMethod,
    Unchanged,
    YaRN,
)
from recipes.reporting.base_rope import known_rope
from recipes.reporting.rope_meaning import WIDTH, effective_inv_freq, rope_meaning

LLAMA_2 = BaseRope({"rope_type": "default", "rope_theta": 10000.0}, 4096, 128)
METHODS: dict[str, RopeMethod] = {
    "adjusted_base": AdjustedBase(320000.0),
    "adjusted_base_large": AdjustedBase(1.28e8),
    "linear": LinearInterpolation(),
    "yarn": YaRN(),
    "llama3": Llama3(),
    "dynamic_ntk": DynamicNTK(),
    "longrope": LongRoPE(long_factor=[1.0 + i / 4 for i in range(64)]),
}


def meaning(method: RopeMethod, base: BaseRope = LLAMA_2, context_length: int = 32768, name: str = "x") -> str:
    return rope_meaning(name, base, method.extend(base, context_length=context_length), context_length=context_length)


def table(text: str) -> dict[int, list[float]]:
    """Pair -> wavelengths before and after, turns before and after."""
    rows = re.findall(r"^ {2,5}(\d+)((?: +[\d.,e+-]+){4})(?:  \*)?$", text, flags=re.M)
    return {int(pair): [float(cell.replace(",", "")) for cell in cells.split()] for pair, cells in rows}


@pytest.mark.parametrize("name", METHODS)
def test_the_table_shows_the_wavelengths_that_transformers_computes(name: str) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    extended = METHODS[name].extend(LLAMA_2, context_length=32768)
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=1,
        max_position_embeddings=extended.max_position_embeddings,
        rope_parameters=dict(extended.rope_parameters),  # type: ignore[arg-type]
    )
    rotary = LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1), torch.arange(32768)[None])  # dynamic and longrope follow the length
    theirs: Any = rotary.inv_freq
    ours = effective_inv_freq(extended.rope_parameters, 128, length=32768, maximum=extended.max_position_embeddings)
    np.testing.assert_allclose(ours, theirs.double().numpy(), rtol=2e-6)

    rows = table(meaning(METHODS[name], name=name))
    assert {0, 63, 46} <= set(rows)
    assert len(rows) >= 9
    for pair, (before, after, turns_before, turns_after) in rows.items():
        assert before == pytest.approx(2 * np.pi * 1e4 ** (pair / 64), rel=6e-3)
        assert after == pytest.approx(2 * np.pi / theirs[pair].item(), rel=6e-3)
        assert turns_before == pytest.approx(4096 / before, rel=1.2e-2)
        assert turns_after == pytest.approx(32768 / after, rel=1.2e-2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("context_length", [4096, 32768, 40000, 1048576])
def test_lines_are_narrow_and_bounds_stand_where_they_apply(name: str, context_length: int) -> None:
    text = meaning(METHODS[name], context_length=context_length, name=name)
    assert max(map(len, text.splitlines())) <= WIDTH
    changes_base = name.startswith("adjusted_base")
    assert ("critical base b0" in text) == changes_base
    assert ("do not apply" in " ".join(text.split())) == (not changes_base)
    assert "They disagree" in text
    assert "recalled, not checked" in text


def verdict(text: str, label: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"    {label} "))
    return line


def test_verdicts_follow_the_bounds() -> None:
    index = meaning(AdjustedBase(320000.0))
    assert "56,886  satisfied" in verdict(index, "T_extra")
    assert "violated at 213 m, first 16,350" in verdict(index, "this choice")
    assert "violated at 419 m, first 1,707" in verdict(index, "base model")
    assert "reads on to T_extra" in verdict(index, "critical base b0")

    small = meaning(AdjustedBase(1e5))
    assert "violated, 32,768 tokens wanted" in verdict(small, "T_extra")
    assert "reads no further than tuned" in verdict(small, "critical base b0")

    sufficient = meaning(AdjustedBase(630500.0))
    assert "satisfied; lowest" in verdict(sufficient, "this choice")
    assert "629,979" in verdict(sufficient, "smallest base")

    tiny = meaning(AdjustedBase(500.0))
    assert "at most b3" in verdict(tiny, "small bases b1")
    assert "this base equals it" in verdict(meaning(AdjustedBase(82684.6)), "for x8")


def test_incomplete_pairs_are_counted_by_hand() -> None:
    turned_before = sum(2 * np.pi * 1e4 ** (i / 64) <= 4096 for i in range(64))
    turned_after = sum(2 * np.pi * 3.2e5 ** (i / 64) <= 32768 for i in range(64))
    assert f"{64 - turned_before} in 4,096 tokens before, {64 - turned_after} in 32,768 after" in meaning(
        AdjustedBase(320000.0)
    )


def test_published_choices_disagree_with_the_bounds() -> None:
    rows = {line[2:17].strip(): line for line in meaning(Unchanged(), context_length=4096).splitlines()}
    assert "satisfied 56,886" in rows["Index-1.9B-32K"]
    assert rows["Index-1.9B-32K"].endswith("violated from m = 16,350")
    assert "satisfied 78,400" in rows["Llama 2 Long *"]
    assert "violated 96,613" in rows["UtK Qwen2-7B"]
    assert rows["UtK Qwen2-7B"].endswith("violated from m = 82,999")
    assert rows["LLaMA-2-7B-32K"].endswith("does not apply      does not apply")


@pytest.mark.parametrize(("head_dim", "length"), [(128, 32768), (64, 3000), (80, 1000)])
def test_smallest_sufficient_base_is_tabled_or_searched(head_dim: int, length: int) -> None:
    expected = 629979 if length == 32768 else theory.smallest_sufficient_base(length, head_dim)
    assert f" {expected:,.0f}  " in verdict(with_head_dim(head_dim, length), "smallest base")


def test_smallest_sufficient_base_is_bracketed_where_a_search_takes_seconds() -> None:
    assert "between 629,979 and 2,090,180" in verdict(with_head_dim(128, 40000), "smallest base")
    assert "not tabled" in verdict(with_head_dim(80, 40000), "smallest base")


def with_head_dim(head_dim: int, context_length: int) -> str:
    base = BaseRope({"rope_type": "default", "rope_theta": 10000.0}, 512, head_dim)
    return meaning(AdjustedBase(1e6), base, context_length=context_length)


def test_partial_rotation_counts_rotated_dimensions_alone() -> None:
    base = BaseRope({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}, 2048, 80)
    text = meaning(AdjustedBase(1e5), base, context_length=8192)
    assert "20 of it rotated: 10 pairs" in text
    assert {0, 9} < set(table(text)) <= set(range(10))


def config(**model: Any) -> DictConfig:
    values = {"original_context_length": 4096, "head_dim": None, "original_rope_theta": None, **model}
    return OmegaConf.create({"model": values})


def folder(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return {"source": {"name_or_path": str(tmp_path), "revision": None}}


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("written", "parameters"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_type": "default", "rope_theta": 1e6}),
        ({"rope_theta": 1e6, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 8.0}},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA_3}},
            {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA_3},
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {},
                }
            },
            {"rope_type": "default", "rope_theta": 1e6},
        ),
        (
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_config_json_is_read_in_both_dialects(
    tmp_path: Path, written: dict[str, Any], parameters: dict[str, Any], nested: bool
) -> None:
    settings = {"hidden_size": 512, "num_attention_heads": 8, **written}
    known = known_rope(config(**folder(tmp_path, **({"text_config": settings} if nested else settings))))
    assert known.rope == BaseRope(parameters, 4096, 64)
    assert known.sources == ("the model's config.json",)


def test_config_json_wins_over_keys_and_keys_over_assumptions(tmp_path: Path) -> None:
    keys = {"head_dim": 96, "original_rope_theta": 5e4}
    on_disk = folder(tmp_path, hidden_size=512, num_attention_heads=4, head_dim=256, rope_theta=1e6)
    assert known_rope(config(**keys, **on_disk)).rope == BaseRope(
        {"rope_theta": 1e6, "rope_type": "default"}, 4096, 256
    )
    hub = {"source": {"name_or_path": "nobody/nothing", "revision": None}}
    stated = known_rope(config(**keys, **hub))
    assert stated.rope == BaseRope({"rope_theta": 5e4, "rope_type": "default"}, 4096, 96)
    assert stated.sources[1:] == ("model.head_dim=96", "model.original_rope_theta=50000.0")
    assumed = known_rope(config(**hub))
    assert assumed.rope == BaseRope({"rope_theta": 1e4, "rope_type": "default"}, 4096, 128)
    assert all("is assumed to be" in source for source in assumed.sources[1:])


def test_settings_of_a_model_from_scratch_are_read() -> None:
    settings = {"hidden_size": 256, "num_attention_heads": 4, "rope_theta": 2e4}
    known = known_rope(config(source={"settings": settings}))
    assert known.rope == BaseRope({"rope_theta": 2e4, "rope_type": "default"}, 4096, 64)


def test_a_model_downloaded_before_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    model = tmp_path / "models--someone--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "snapshots" / "abc" / "config.json").write_text('{"head_dim": 192, "rope_theta": 3e6}')
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    known = known_rope(config(source={"name_or_path": "someone/model", "revision": None}))
    assert known.rope == BaseRope({"rope_theta": 3e6, "rope_type": "default"}, 4096, 192)


def test_a_broken_config_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read .*; set model\.source\.name_or_path"):
        known_rope(config(source={"name_or_path": str(tmp_path), "revision": None}))
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"config\.json holds a list, not a model's keys; set model\.source\.name_or_path"
    ):
        known_rope(config(source={"name_or_path": str(tmp_path)}))
