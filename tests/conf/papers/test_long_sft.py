"""What long_sft/lora_single_gpu takes from papers: the share of long instructions, and the number of iterations."""

from __future__ import annotations

import pytest

from recipes.compose import compose

PRESET = "long_sft/lora_single_gpu"


def test_share_of_long_instructions_and_steps() -> None:
    config = compose([f"recipe={PRESET}"]).config
    # Index-1.9B-32K: more than 30K long instructions with more than 50K general ones.
    assert config.corpus.mixture.long == pytest.approx(30 / (30 + 50))
    assert config.corpus.mixture.short == pytest.approx(50 / (30 + 50))
    assert config.data.max_steps == 200  # LongSkywork, abstract
    assert config.packing.document_mask
