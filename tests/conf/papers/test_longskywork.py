"""LongSkywork: the little that is published or second-hand once more; its body was not read (arXiv:2406.00605)."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaForCausalLM

from lightning_modules.rope.config import current_rope_parameters
from lightning_modules.rope.patch import apply_rope_method
from recipes.build import build, build_rope
from recipes.compose import compose
from recipes.provenance.reading import preset_file, stated_numbers
from tests.lightning_modules.tiny_models import tiny_config

LONG_PRETRAIN = "longskywork_13b_200k/long_pretrain"
SFT = "longskywork_13b_200k/sft"
LONG_SFT = "longskywork_13b_200k/long_sft"


def composed(preset: str) -> DictConfig:
    return compose([f"recipe={preset}"]).config


def test_stages_follow_one_another() -> None:
    continues = {preset: composed(preset).about.continues for preset in (LONG_PRETRAIN, SFT, LONG_SFT)}
    assert continues == {LONG_PRETRAIN: None, SFT: LONG_PRETRAIN, LONG_SFT: SFT}
    stages = [composed(preset).stage for preset in continues]
    assert stages == ["continued_pretraining", "supervised_finetuning", "supervised_finetuning"]
    assert {composed(preset).context_length for preset in continues} == {200_000}
    assert [composed(preset).model.original_context_length for preset in continues] == [4096, 200_000, 200_000]


def test_ntk_aware_base_is_519367() -> None:
    """10,000 * s^(d / (d - 2)), s = 200,000 / 4096 and d = 128, in the live model and its config."""
    config = composed(LONG_PRETRAIN)
    assert config.rope._target_.endswith("NTKAware")
    assert config.rope.factor == config.extension_factor == 200_000 / 4096
    sizes = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128}
    model = LlamaForCausalLM(tiny_config("llama", max_position_embeddings=4096, num_hidden_layers=1, **sizes))  # type: ignore[arg-type]
    apply_rope_method(model, build_rope(config), config.context_length)
    expected = 10_000 * math.exp(128 / 126 * math.log(200_000 / 4096))
    assert round(expected) == 519_367
    assert current_rope_parameters(model.config)["rope_theta"] == pytest.approx(expected, rel=1e-12)
    inv_freq = torch.tensor([expected ** (-2 * i / 128) for i in range(64)])
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, inv_freq, rtol=1e-6, atol=0)
    assert model.config.max_position_embeddings == 200_000
    for preset in (SFT, LONG_SFT):
        assert composed(preset).model.original_rope_theta == pytest.approx(expected, rel=1e-12)
        assert composed(preset).rope._target_.endswith("Unchanged")


def test_cip_2_under_full_attention() -> None:
    config = composed(LONG_PRETRAIN)
    assert config.augmentation._target_.endswith("ChunkInterleaving")
    assert (config.augmentation.num_chunks, config.augmentation.split) == (2, "random")
    assert (config.packing.document_mask, config.packing.reset_positions) == (False, False)


def test_long_sft_is_200_iterations_with_tables_of_2k_to_100k_tokens() -> None:
    config = composed(LONG_SFT)
    assert config.data.max_steps == 200
    tables = config.corpus.sources.tables
    assert (tables.min_length, tables.max_length, tables.length_unit) == (2_000, 100_000, "tokens")
    assert set(tables.tasks) == {"table_retrieval", "table_chain_of_thought", "table_global"}
    assert 0 < config.corpus.mixture.tables < 1
    assert sum(config.corpus.mixture.values()) == pytest.approx(1)
    corpus = build(tables)
    assert (len(corpus), {corpus[k].task for k in range(8)} <= set(tables.tasks)) == (6_000, True)


def test_only_the_abstract_is_published() -> None:
    for preset in (LONG_PRETRAIN, SFT, LONG_SFT):
        published = {n.key for n in stated_numbers(preset_file(preset)) if n.kind == "published"}
        own = {"model.original_context_length", "model.head_dim"} if preset != LONG_PRETRAIN else set()
        steps = {"data.max_steps"} if preset == LONG_SFT else set()
        assert published == {"context_length"} | own | steps
    kinds = {n.key: n.kind for n in stated_numbers(preset_file(LONG_PRETRAIN))}
    second_hand = ("rope", "augmentation", "augmentation.num_chunks", "packing.document_mask")
    assert {kinds[key] for key in second_hand} == {"second-hand"}


def test_base_model_is_read_without_its_code() -> None:
    config = composed(LONG_PRETRAIN)
    assert config.model.source.name_or_path == "Skywork/Skywork-13B-base"
    assert config.model.tokenizer._target_.endswith("SentencePieceTokenizer")
