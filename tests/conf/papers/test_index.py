"""Index-1.9B-32K: the published numbers once more, from the long-context report of github.com/bilibili/Index-1.9B."""

from __future__ import annotations

import math

import pytest
from omegaconf import DictConfig

from lightning_modules.rope.theory import critical_dimension
from recipes.build import build
from recipes.compose import compose
from recipes.provenance.reading import preset_file, stated_numbers

PRETRAIN = "index_1p9b_32k/pretrain"
SFT = "index_1p9b_32k/sft"
NOT_PUBLISHED = ("optimizer.betas", "optimizer.eps", "lr_schedule.warmup_steps", "lr_schedule.min_lr_ratio")


def composed(preset: str) -> DictConfig:
    return compose([f"recipe={preset}"]).config


def test_base_is_32_times_10000_for_8_times_the_length() -> None:
    config = composed(PRETRAIN)
    assert (config.model.original_context_length, config.context_length) == (4096, 32768)
    assert config.extension_factor == 32768 / 4096
    assert config.rope._target_.endswith("AdjustedBase")
    assert config.rope.rope_theta == 32 * 10_000


def test_the_base_suffices_for_the_length_by_the_bound_of_2310_05209() -> None:
    """T_extra = 2 pi b^(d_extra / d): 4,712 tokens of the base model's 10,000, and 56,886 of 320,000."""
    d_extra = 2 * math.ceil(128 / 2 * math.log(4096 / (2 * math.pi), 10_000))
    assert d_extra == critical_dimension(10_000.0, 128, 4096) == 92
    reach = {base: 2 * math.pi * base ** (d_extra / 128) for base in (10_000, composed(PRETRAIN).rope.rope_theta)}
    assert [round(value) for value in reach.values()] == [4_712, 56_886]


def test_long_pt_is_10b_tokens_of_4m_a_step() -> None:
    config = composed(PRETRAIN)
    assert config.data.tokens_per_step == 4_194_304
    assert config.data.max_steps == 2384
    assert config.data.max_steps * config.data.tokens_per_step == pytest.approx(10e9, rel=1e-3)


@pytest.mark.parametrize(("preset", "lr"), [(PRETRAIN, 1e-5), (SFT, 5e-6)])
def test_both_stages_share_all_but_the_rate(preset: str, lr: float) -> None:
    config = composed(preset)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.trainer.gradient_clip_norm) == (lr, 0.1, 1.0)
    assert (config.packing.document_mask, config.packing.reset_positions) == (True, True)
    schedule = build(config.lr_schedule)
    middle = config.lr_schedule.warmup_steps + 500
    end = config.lr_schedule.warmup_steps + 1000
    assert schedule.multiplier(config.lr_schedule.warmup_steps, max_steps=end) == 1.0
    assert schedule.multiplier(middle, max_steps=end) == pytest.approx(0.5)  # halfway down a cosine to 0


def test_long_sft_is_two_epochs_of_1m_a_step_on_the_extended_model() -> None:
    config = composed(SFT)
    assert config.stage == "supervised_finetuning"
    assert config.about.continues == PRETRAIN
    assert (config.model.original_context_length, config.context_length, config.extension_factor) == (32768, 32768, 1.0)
    assert config.rope._target_.endswith("Unchanged")
    assert (config.data.tokens_per_step, config.data.epochs, config.data.max_steps) == (1_048_576, 2, None)
    assert (config.data.token_policy.loss_on, config.chat_template.name) == ("answers", "index")
    assert config.model.original_rope_theta == composed(PRETRAIN).rope.rope_theta


def test_stand_in_has_30000_long_and_50000_general_instructions() -> None:
    sources = composed(SFT).corpus.sources
    counts = {name: source.rows.get("max_documents") for name, source in sources.items()}
    assert counts.pop("long_bilingual") is None
    assert sources.long_bilingual.rows.name == "THUDM/LongAlign-10k"  # 10,000 by its card
    assert counts == {"long_english": 20_000, "short_english": 25_000, "short_chinese": 25_000}


@pytest.mark.parametrize("preset", [PRETRAIN, SFT])
def test_what_was_not_published_is_not_presented_as_published(preset: str) -> None:
    kinds = {number.key: number.kind for number in stated_numbers(preset_file(preset))}
    assert {kinds[key] for key in NOT_PUBLISHED} == {"our choice"}
    published = ("optimizer.lr", "optimizer.weight_decay", "trainer.gradient_clip_norm", "packing.document_mask")
    assert {kinds[key] for key in published} == {"published"}


def test_chat_format_is_the_demos() -> None:
    """demo/cli_long_text_demo.py: [0] system [3] question [4], and EOS behind the answer."""
    template = composed(SFT).chat_template
    assert (template.start[0].token, template.user[0].token, template.assistant[0].token) == (
        "unk",
        "reserved_0",
        "reserved_1",
    )
    assert template.assistant[-1].token == "eos"
