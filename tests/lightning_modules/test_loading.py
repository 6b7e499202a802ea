from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules.loading import PretrainedModel
from lightning_modules.rope.certificate import rope_faults
from lightning_modules.rope.closed_form import closed_form_inv_freq
from lightning_modules.rope.methods import AdjustedBase
from lightning_modules.rope.patch import extend_rope
from tests.lightning_modules.tiny_models import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_dtype_and_rope_tables_are_fp32(dtype: str, folder: Path) -> None:
    model = PretrainedModel(str(folder), dtype=dtype).load()
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    table = model.model.rotary_emb.inv_freq
    expected = closed_form_inv_freq(model.config.rope_parameters, 16)
    torch.testing.assert_close(table, expected, rtol=1e-6, atol=0, check_dtype=False)
    assert table.dtype == torch.float32
    extend_rope(model, AdjustedBase(rope_theta=500000.0), 128)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert rope_faults(model) == []


def test_bf16_weights_are_the_fp32_ones_rounded(folder: Path) -> None:
    half = dict(PretrainedModel(str(folder), dtype="bfloat16").load().named_parameters())
    for name, parameter in PretrainedModel(str(folder)).load().named_parameters():
        assert torch.equal(half[name], parameter.bfloat16())


def test_other_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.source\.dtype=float16 is not known; allowed are float32, bfloat16"):
        PretrainedModel(str(folder), dtype="float16")
