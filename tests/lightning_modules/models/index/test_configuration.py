from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.loading import PretrainedModel
from lightning_modules.models.index.configuration import IndexConfig
from tests.lightning_modules.models.index.tiny_index import original_checkpoint


def test_defaults_are_index_1p9b() -> None:
    """The numbers of the model's card, and 1.9 billion parameters without embeddings."""
    config = IndexConfig()
    sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    assert sizes == (36, 2048, 5888, 16)
    assert (config.num_key_value_heads, config.head_dim, config.vocab_size) == (16, 128, 65029)
    assert (config.rms_norm_eps, config.initializer_range, config.norm_head) == (1e-6, 0.01, 1)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (4096, False)
    layer = 4 * 2048 * 2048 + 3 * 2048 * 5888
    assert round(36 * layer / 1e9, 1) == 1.9


def test_the_original_config_is_read_without_its_code(tmp_path: Path) -> None:
    original_checkpoint(tmp_path, norm_head=True, rope_theta=320000, max_position_embeddings=32768)
    config = PretrainedModel(str(tmp_path)).config()
    assert isinstance(config, IndexConfig)
    assert config.norm_head == 1
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 320000}
    assert config.max_position_embeddings == 32768
    config.save_pretrained(tmp_path / "again")
    written: dict[str, Any] = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["model_type"] == "index"
    assert written["norm_head"] == 1
    assert "auto_map" not in written
    assert PretrainedModel(str(tmp_path / "again")).config().to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"norm_head": 2}, r"norm_head=2 is not 0 or 1; correct it in config\.json"),
        ({"max_position_embeddings": 32768}, r"max_position_embeddings=32768 with no rope_theta.*320000\.0"),
        ({"rope_ratio": 32}, "rope_ratio=32 says something of RoPE that is not read"),
        ({"rotary_base": 320000.0}, "rotary_base=320000.0 says something of RoPE that is not read"),
    ],
)
def test_a_rope_or_head_that_is_not_understood_is_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    original_checkpoint(tmp_path, **keys)
    with pytest.raises(ValueError, match=message):
        PretrainedModel(str(tmp_path)).config()


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 320000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 320000.0}},
        {"rope_scaling": {"type": "linear", "factor": 8.0}},
    ],
)
def test_a_long_context_with_its_rope_is_accepted(keys: dict[str, Any]) -> None:
    parameters: Any = IndexConfig(max_position_embeddings=32768, **keys).rope_parameters
    assert parameters["rope_theta"] == (10000.0 if "rope_scaling" in keys else 320000.0)
    assert parameters.get("factor") == (8.0 if "rope_scaling" in keys else None)
