from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lightning_modules.rope.closed_form import (
    CLOSED_FORMS,
    closed_form_attention_factor,
    closed_form_inv_freq,
)
from tests.grids import covering

HEAD_DIMS = (64, 80, 96, 120, 128, 256)
THETAS = (1e4, 3.2e5, 5e5, 8e6, 3.58e9)
LENGTHS = (2048, 8192, 131072)  # at the last, YaRN's ramp ends beyond the dimensions of theta 1e4
FACTORS = (1.0, 1.5, 7.3, 8.0, 32.0)


def grid(rope_type: str, head_dim: int, length: int, factor: float) -> list[tuple[dict[str, Any], int, int | None]]:
    """Parameters without rope_theta, max_position_embeddings and seq_len."""
    before = {"original_max_position_embeddings": length}
    long = int(length * factor)
    options: dict[str, list[tuple[dict[str, Any], int, int | None]]] = {
        "default": [({}, length, None)],
        "linear": [({"factor": factor}, long, None)],
        "dynamic": [
            ({"factor": factor}, length, seq_len)
            for seq_len in (None, 100, length, length + 1, int(1.01 * length), long)
        ],
        "yarn": [
            ({"factor": factor, **before, **more}, long, None)
            for more in (
                {},
                {"beta_fast": 4.0, "beta_slow": 0.5},
                {"truncate": False},
                {"partial_rotary_factor": 0.5},
                {"attention_factor": 1.3},
                {"mscale": 0.7, "mscale_all_dim": 1.2},
            )
        ],
        "longrope": [
            ({**before, **more, "short_factor": short, "long_factor": [1.3 * x for x in short]}, long, seq_len)
            for short in [[1.0 + 0.11 * k for k in range(head_dim // 2)]]
            for more in ({"factor": factor}, {"attention_factor": 1.19}, {})
            for seq_len in (None, length, length + 1)
        ],
        "llama3": [
            ({"factor": factor, **before, "low_freq_factor": low, "high_freq_factor": high}, long, None)
            for low, high in ((1.0, 4.0), (0.5, 8.0))
        ],
    }
    return options[rope_type]


@pytest.mark.parametrize(("head_dim", "rope_type"), covering(itertools.product(HEAD_DIMS, CLOSED_FORMS)))
def test_closed_form_is_what_transformers_computes(rope_type: str, head_dim: int):
    cells = 0
    for theta, length, factor in itertools.product(THETAS, LENGTHS, FACTORS):
        for more, max_position_embeddings, seq_len in grid(rope_type, head_dim, length, factor):
            parameters = {"rope_type": rope_type, "rope_theta": theta, **more}
            config = LlamaConfig(
                hidden_size=2 * head_dim,
                num_attention_heads=2,
                head_dim=head_dim,
                max_position_embeddings=max_position_embeddings,
                rope_parameters=dict(parameters),
            )
            if rope_type == "default":
                theirs, scaling = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
            else:
                theirs, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), seq_len=seq_len)
            ours = closed_form_inv_freq(
                parameters, head_dim, seq_len=seq_len, max_position_embeddings=max_position_embeddings
            )
            assert ours.dtype == torch.float32
            # Where a wavelength is all but the end of llama3's ramp, transformers multiplies an ulp by the factor.
            rtol = 2e-6 if rope_type == "llama3" and factor == 32.0 else 1e-6
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0.0)
            found = closed_form_attention_factor(parameters, max_position_embeddings=max_position_embeddings)
            assert found == pytest.approx(scaling, rel=1e-12)
            cells += 1
    assert cells >= len(THETAS) * len(LENGTHS) * len(FACTORS)


def test_closed_form_is_the_formula_of_the_paper():
    inv_freq = closed_form_inv_freq({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 8)
    torch.testing.assert_close(inv_freq, torch.tensor([1.0, 0.1, 0.01, 0.001]) / 4, rtol=1e-6, atol=0.0)


def test_dynamic_is_ntk_aware_with_factor_one():
    """s n / L - (s - 1) is n / L for s = 1; at 8 times the length of Llama 2 the base is the published 82,685."""
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0}
    found = closed_form_inv_freq(parameters, 128, seq_len=32768, max_position_embeddings=4096)
    base = 1e4 * 8 ** (128 / 126)
    assert base == pytest.approx(82_685, abs=0.5)
    expected = torch.tensor([base ** (-2 * i / 128) for i in range(64)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


def test_yarn_keeps_fast_dimensions_and_interpolates_slow_ones():
    """Llama 2, s = 16: the ramp runs from dimension 20 (32 turns over 4096) to 46 (one turn); dim(r) of the paper."""
    before = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    found = closed_form_inv_freq({**before, "rope_theta": 1e4}, 128).double()
    share = found / torch.tensor([1e4 ** (-2 * i / 128) for i in range(64)], dtype=torch.float64)
    torch.testing.assert_close(share[:21], torch.ones(21).double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(share[46:], torch.full((18,), 1 / 16).double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(share[33], torch.tensor(0.5 + 0.5 / 16).double(), rtol=1e-6, atol=0.0)
    assert closed_form_attention_factor({**before, "rope_theta": 1e4}) == pytest.approx(0.1 * math.log(16) + 1)


def test_llama3_of_the_released_model():
    """Llama 3.1: wavelengths up to 2048 kept, beyond 8192 eightfold; b = 500,000, d = 128."""
    parameters = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192}
    found = closed_form_inv_freq({**parameters, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 128)
    plain = torch.tensor([5e5 ** (-2 * i / 128) for i in range(64)])
    wavelengths = 2 * math.pi / plain
    torch.testing.assert_close(found[wavelengths < 2048], plain[wavelengths < 2048], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(found[wavelengths > 8192], plain[wavelengths > 8192] / 8, rtol=1e-6, atol=0.0)
    between = (wavelengths > 2048) & (wavelengths < 8192)
    assert int(between.sum()) == 6
    assert bool(((found < plain) & (found > plain / 8))[between].all())


def test_longrope_attention_factor_of_the_128k_phi_3():
    """sqrt(1 + ln 32 / ln 4096) = sqrt(17 / 12)."""
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
    assert closed_form_attention_factor(parameters, max_position_embeddings=131072) == pytest.approx(math.sqrt(17 / 12))


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="allowed are default, linear, dynamic, yarn, longrope, llama3"):
        closed_form_inv_freq({"rope_type": "proportional", "rope_theta": 1e4}, 8)
