"""LongLoRA, Llama 2 Long, Fu et al. and PoSE: what their repositories, or accounts of them, say, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from recipes.build import build, build_data
from recipes.compose import compose
from recipes.provenance.reading import preset_file, stated_numbers

LONGLORA = "longlora_llama2_7b/pretrain"
LLAMA_2_LONG = "llama2_long_7b_32k/pretrain"
FU = "fu_llama2_7b_80k/pretrain"
POSE = "pose_llama_7b_128k/pretrain"

SLIMPAJAMA = {
    "common_crawl": 0.534,
    "c4": 0.266,
    "github": 0.050,
    "book": 0.041,
    "arxiv": 0.043,
    "wikipedia": 0.034,
    "stackexchange": 0.032,
}


def composed(preset: str, *words: str) -> DictConfig:
    return compose([f"recipe={preset}", *words]).config


def kind_of(preset: str, key: str) -> str:
    return {number.key: number.kind for number in stated_numbers(preset_file(preset))}[key]


def rates(config: DictConfig, steps: list[int]) -> list[float]:
    schedule = build(config.lr_schedule)
    return [config.optimizer.lr * schedule.multiplier(step, max_steps=config.data.max_steps) for step in steps]


def test_longlora() -> None:
    config = composed(LONGLORA)
    assert (config.model.source.name_or_path, config.context_length) == ("meta-llama/Llama-2-7b-hf", 32768)
    assert config.rope._target_.endswith("LinearInterpolation")
    assert config.rope.factor == -(-32768 // 4096)
    assert config.attention.name == "lcr_shifted_sparse"
    assert config.attention.group_size == 32768 // 4, "2048 of 8192"
    assert (config.peft.r, config.peft.alpha, config.peft.dropout) == (8, 16, 0)
    assert list(config.peft.target_modules) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (config.peft.train_embeddings, config.peft.train_norms) == (True, True)
    assert config.data.tokens_per_step == 64 * 32768
    assert (config.data.max_steps, config.optimizer.weight_decay) == (1000, 0)
    assert rates(config, [0, 10, 20, 500, 999]) == pytest.approx([0, 1e-5, 2e-5, 2e-5, 2e-5])
    assert config.corpus.sources.redpajama.name == "togethercomputer/RedPajama-Data-1T-Sample"


@pytest.mark.parametrize("length", [512, 1024])
def test_longlora_groups_are_a_quarter_of_any_row(length: int) -> None:
    assert composed(LONGLORA, "scale=toy", f"packing.max_seqlen={length}").attention.group_size == length // 4


def test_llama_2_long_says_of_each_number_that_it_was_not_read() -> None:
    config = composed(LLAMA_2_LONG)
    assert (config.context_length, config.rope.rope_theta) == (32768, 500_000)
    assert config.data.max_steps * config.data.tokens_per_step == pytest.approx(400e9, rel=1e-4)
    kinds = {number.kind for number in stated_numbers(preset_file(LLAMA_2_LONG))}
    assert kinds == {"second-hand", "computed", "our choice"}, "and none is published"


def test_fu_keeps_a_tenth_of_short_documents_at_unchanged_shares_of_the_sources() -> None:
    config = composed(FU)
    assert dict(config.corpus.mixture) == pytest.approx(SLIMPAJAMA, abs=5e-4)
    sampling = OmegaConf.to_container(config.corpus.sampling, resolve=True)
    assert sampling == {name: {"downsample": {"max_length": 4096, "keep": 0.1}} for name in SLIMPAJAMA}
    assert config.data.max_steps * config.data.tokens_per_step == pytest.approx(5e9, rel=0.001)
    assert (config.context_length, config.corpus.mix_at) == (80 * 1024, "document")
    assert config.data.tokens_per_step == pytest.approx(4e6, rel=0.02)
    assert rates(config, [20, 500, 1272]) == [2e-5, 2e-5, 2e-5]
    for key in ("rope", "optimizer.lr", "lr_schedule"):
        assert kind_of(FU, key) == "second-hand"
    for key in ("rope.rope_theta", "optimizer.betas", "lr_schedule.warmup_steps"):
        assert kind_of(FU, key) == "our choice"


def test_pose() -> None:
    config = composed(POSE)
    assert config.model.original_context_length == config.packing.max_seqlen == 2048
    assert config.context_length == config.augmentation.target_length == 131_072
    assert (config.rope._target_.rpartition(".")[2], config.rope.factor) == ("YaRN", 64)
    assert config.augmentation.num_chunks == 2
    assert config.data.tokens_per_step // config.packing.max_seqlen == 8 * 8
    assert config.data.max_steps == 1000
    assert rates(config, [0, 5, 10, 505, 1000]) == pytest.approx([0, 1e-5, 2e-5, 1e-5, 0])


def rows_of(preset: str, folder: Path, *words: str) -> list[Any]:
    """The first rows of a preset at toy scale."""
    config = composed(preset, "scale=toy", "corpus.validation=null", f"cache_dir={folder}", *words)
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    assert data.data is not None
    return [data.data[i] for i in range(24)]


def test_pose_rows_are_short_and_reach_as_far_as_the_whole_context(tmp_path: Path) -> None:
    rows = rows_of(POSE, tmp_path, "corpus.sources.pile.path=${bundled:classics/heldout.jsonl.zst}")
    jumps = [np.flatnonzero(np.diff(row.position_ids) != 1) for row in rows]
    assert all(len(row.input_ids) <= 512 for row in rows), "the demo model reads 512"
    assert max(row.position_ids.max() for row in rows) > 0.8 * 4096
    assert all(row.position_ids.max() < 4096 for row in rows)
    assert all(row.position_ids[0] == 0 for row in rows)
    assert max(map(len, jumps)) == 1
    assert np.mean([len(jump) for jump in jumps]) > 0.9
    assert all(len(set(row.document_ids.tolist()) - {-1}) == 1 for row in rows), "a jump is no document edge"
