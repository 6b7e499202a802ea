"""ChatQA 2 (arXiv:2407.14482) and its data on Qwen2 (Untie the Knots, section 5.1), copied from cards and notes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from omegaconf import OmegaConf

from recipes.compose import compose

PRETRAIN = "chatqa2_llama3_8b_128k/pretrain"
STAGES = (
    PRETRAIN,
    "chatqa2_llama3_8b_128k/sft_stage_1",
    "chatqa2_llama3_8b_128k/sft_stage_2",
    "chatqa2_llama3_8b_128k/long_sft",
)
UTK = {"utk_qwen2_7b_128k/chatqa2_sft": "7B", "utk_qwen2_72b_128k/chatqa2_sft": "72B"}
INFINITE_BENCH = {"7B": 33.3, "72B": 47.3}

STAGE_2 = {  # the card of nvidia/ChatQA2-Long-SFT-data
    "drop": 0.069,
    "narrativeqa": 0.095,
    "quoref": 0.026,
    "ropes": 0.026,
    "squad1": 0.095,
    "squad2": 0.095,
    "newsqa": 0.095,
    "tatqa_arithmetic": 0.15,
    "tatqa_others": 0.08,
    "synthetic_convqa": 0.3,
    "sft": 0.2,
}
SLIMPAJAMA = {  # SLIMPAJAMA_ORIGINAL_MIX of Fu et al., arXiv:2402.10171, whom the card follows
    "c4": 0.26609933,
    "common_crawl": 0.53374772,
    "stackexchange": 0.03169647,
    "wikipedia": 0.03402128,
    "github": 0.05004782,
    "arxiv": 0.04290379,
    "book": 0.0414836,
}
STAGE_3 = {**STAGE_2, "long_sft": 2.5, "narrativeqa_128k": 5.0}


def config_of(preset: str) -> Any:
    return compose([f"recipe={preset}"]).config


def test_pretraining() -> None:
    config = config_of(PRETRAIN)
    assert config.model.original_context_length == 8192
    assert config.context_length == 128 * 1024
    assert (config.model.original_rope_theta, config.rope.rope_theta) == (500e3, 150e6)
    assert config.data.tokens_per_step == 32 * 131072
    assert config.data.max_steps == 2000
    assert config.optimizer.lr == 3e-5
    policy = config.data.token_policy
    assert (policy.prepend_bos, policy.append_eos, policy.separator) == (False, False, "<s>")
    assert {"SlimPajama" in source.name for source in config.corpus.sources.values()} == {True}
    assert OmegaConf.to_container(config.corpus.mixture) == SLIMPAJAMA
    assert sum(SLIMPAJAMA.values()) == pytest.approx(1)
    rule = {"downsample": {"max_length": 4096, "keep": 0.1}}  # in each source, so that the shares stay
    sampling = OmegaConf.to_container(config.corpus.sampling, resolve=True)
    assert sampling == dict.fromkeys(SLIMPAJAMA, rule)


def test_each_stage_goes_on_from_the_one_before() -> None:
    for before, after in pairwise(STAGES):
        config = config_of(after)
        assert config.about.continues == before
        assert OmegaConf.is_missing(config.model.source, "name_or_path")  # no stage but the last was released
        assert config.context_length == config.model.original_context_length == 128 * 1024
        assert config.model.original_rope_theta == 150e6


def test_first_stage_is_nvidias_configuration_file() -> None:
    config = config_of("chatqa2_llama3_8b_128k/sft_stage_1")
    assert OmegaConf.to_container(config.corpus.mixture) == {"sft": 1.0}
    assert config.packing.max_seqlen == 4096
    assert config.data.samples_per_step == 128
    assert config.data.max_steps == 1000
    assert config.optimizer.lr == 5e-6
    assert config.optimizer.lr * config.lr_schedule.min_lr_ratio == pytest.approx(1e-8)
    assert [*config.optimizer.betas] == [0.9, 0.95]
    assert config.optimizer.weight_decay == 0.1
    assert config.trainer.gradient_clip_norm == 1.0


def test_blends_of_the_later_stages() -> None:
    second, third = (config_of(preset) for preset in STAGES[2:])
    assert OmegaConf.to_container(second.corpus.mixture) == STAGE_2
    assert second.packing.max_seqlen == 4096
    assert OmegaConf.to_container(third.corpus.mixture) == STAGE_3
    assert third.packing.max_seqlen == 128 * 1024
    assert third.optimizer.lr == 3e-5
    assert third.data.samples_per_step == 32
    assert {config.data.mix_by for config in (second, third)} == {"samples"}


@pytest.mark.parametrize("preset", UTK)
def test_untied_models_take_one_stage(preset: str) -> None:
    config, size = config_of(preset), UTK[preset]
    assert config.about.continues == preset.replace("chatqa2_sft", "pretrain")
    assert config.about.reported == f"InfiniteBench En.Avg {INFINITE_BENCH[size]} (Table 3)"
    assert config.model.source.name_or_path == f"rgtjf/Qwen2-UtK-{size}-128K"
    assert config.model.tokenizer.name_or_path == f"rgtjf/Qwen2-UtK-{size}-128K"
    assert config.context_length == config.model.original_context_length == config.packing.max_seqlen == 128 * 1024
    assert config.model.original_rope_theta == 5e6
    assert config.optimizer.lr == 3e-5
    assert OmegaConf.to_container(config.corpus.mixture) == STAGE_3


def test_data_are_nvidias_by_configuration_and_file() -> None:
    sources = config_of(STAGES[-1]).corpus.sources
    rows = {name: source.rows for name, source in sources.items()}
    assert set(rows) == set(STAGE_3)
    long = {name: rows.pop(name) for name in ("long_sft", "narrativeqa_128k")}
    assert {name: row.config for name, row in long.items()} == {
        "long_sft": "long_sft",
        "narrativeqa_128k": "NarrativeQA_131072",
    }
    assert {row.name for row in long.values()} == {"nvidia/ChatQA2-Long-SFT-data"}
    assert {sources[name].records for name in long} == {"question_answer"}
    assert {row.name for row in rows.values()} == {"nvidia/ChatQA-Training-Data"}
    files = {name: row.data_files for name, row in rows.items() if "data_files" in row}
    assert files == {
        "tatqa_arithmetic": "tatqa/train_arithmetic.json",
        "tatqa_others": "tatqa/train_others.json",
    }
    named = {name: row.config for name, row in rows.items() if name not in files}
    assert {name for name, config in named.items() if name != config} == {"squad1", "squad2"}
    assert (named["squad1"], named["squad2"]) == ("squad1.1", "squad2.0")
