"""ProLong (arXiv:2410.02660): the numbers of its three scripts (princeton-nlp/ProLong, train_*.sh), once more."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from recipes.compose import compose

STAGES = ("prolong_llama3_8b/pretrain_64k", "prolong_llama3_8b/pretrain_512k", "prolong_llama3_8b/sft")
FIRST, SECOND, SFT = STAGES

BOTH = {"fineweb_edu": 0.1, "fineweb": 0.1, "stack_exchange": 0.04, "wikipedia": 0.04}
BOTH |= dict.fromkeys(("tulu", "arxiv", "open_web_math", "textbooks"), 0.03)


def config_of(preset: str) -> Any:
    return compose([f"recipe={preset}"]).config


@pytest.mark.parametrize("preset", STAGES)
def test_what_all_scripts_say(preset: str) -> None:
    config = config_of(preset)
    assert [*config.optimizer.betas] == [0.9, 0.95]
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.decay_norms is True  # transformers spares the norms of its own classes alone
    assert config.lr_schedule.warmup_start_ratio == 0.0  # as in transformers
    assert config.lr_schedule._target_.endswith("CosineWithWarmup")
    assert config.lr_schedule.min_lr_ratio == 0.1
    assert config.trainer.gradient_clip_norm == 1.0
    assert config.precision == "bf16"
    assert config.packing.document_mask is True


def test_64k() -> None:
    config = config_of(FIRST)
    assert config.model.source.name_or_path == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert config.context_length == config.packing.max_seqlen == 65536 == 8 * config.model.original_context_length
    assert config.rope.rope_theta == 8e6
    assert config.data.tokens_per_step == 64 * 65536
    assert (config.data.max_steps, config.lr_schedule.warmup_steps) == (5000, 500)
    assert config.optimizer.lr == 1e-5
    assert OmegaConf.to_container(config.corpus.mixture) == {"code": 0.3, "book": 0.3, **BOTH}
    assert sum(config.corpus.mixture.values()) == pytest.approx(1)


def test_512k_goes_on_and_is_extended_once_more() -> None:
    config = config_of(SECOND)
    assert config.about.continues == FIRST
    assert config.model.source.name_or_path == "princeton-nlp/Llama-3-8B-ProLong-64k-Base"
    assert config.model.original_context_length == config_of(FIRST).context_length
    assert config.model.original_rope_theta == config_of(FIRST).rope.rope_theta
    assert config.context_length == config.packing.max_seqlen == 512 * 1024
    assert config.rope.rope_theta == 1.28e8
    assert config.data.tokens_per_step == 16 * 512 * 1024  # 128 GPUs' worth, eight to a row
    assert (config.data.max_steps, config.lr_schedule.warmup_steps) == (2500, 250)
    assert config.optimizer.lr == 5e-6
    long = {"code_512k": 0.15, "code": 0.15, "book_512k": 0.05, "book": 0.25}
    assert OmegaConf.to_container(config.corpus.mixture) == {**long, **BOTH}
    assert sum(config.corpus.mixture.values()) == pytest.approx(1)


def test_sft() -> None:
    composed = compose([f"recipe={SFT}"])
    config = composed.config
    assert composed.choices["rope"] == "unchanged"
    assert config.about.continues == SECOND
    assert config.model.source.name_or_path == "princeton-nlp/Llama-3-8B-ProLong-512k-Base"
    assert config.context_length == config.model.original_context_length == 512 * 1024
    assert config.model.original_rope_theta == 1.28e8
    assert config.packing.max_seqlen == 65536
    assert config.data.tokens_per_step == 64 * 65536
    assert config.data.max_steps * config.data.tokens_per_step == pytest.approx(1e9, rel=0.05)
    assert config.lr_schedule.warmup_steps == 13  # 5 % of 250, rounded up as transformers does
    assert config.optimizer.lr == 2e-5
    assert config.data.loss_weighting == "token"
    assert config.data.token_policy.loss_on == "answers"
    assert config.corpus.sources.ultrachat.rows.name == "HuggingFaceH4/ultrachat_200k"
