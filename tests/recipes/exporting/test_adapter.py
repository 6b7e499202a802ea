"""A LoRA adapter whose model has another RoPE than its base model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.rope.methods import YaRN
from lightning_modules.rope.patch import extend_rope
from recipes.exporting.adapter import export_adapter, merged
from recipes.exporting.hugging_face import export_hugging_face
from recipes.verifying.certificate import VIOLATION
from recipes.verifying.certify import certify
from recipes.verifying.reload import open_folder

pytestmark = pytest.mark.usefixtures("reopened_here")

IDS = torch.randint(0, 512, (1, 1500), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted(model_folder: Path) -> Any:
    """The tiny model with YaRN from 512 to 2048 tokens, and a LoRA adapter that does something."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    extend_rope(model, YaRN(), 2048)
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        return get_peft_model(model, lora).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def test_merged_it_is_one_model_with_the_adapters_logits(adapted: Any, model_folder: Path, tmp_path: Path) -> None:
    expected = logits(adapted)
    with adapted.disable_adapter():
        assert (logits(adapted) - expected).abs().max() > 0.1  # the adapter does something
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    folder = export_hugging_face(merged(adapted), tokenizer, tmp_path / "export", context_length=2048)
    assert not (folder / "adapter_config.json").exists()
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert again.config.rope_parameters["rope_type"] == "yarn"
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_alone_it_has_the_rope_beside_it(adapted: Any, model_folder: Path, tmp_path: Path) -> None:
    expected = logits(adapted)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    folder = export_adapter(adapted, tokenizer, tmp_path / "adapter", context_length=2048)
    assert not (folder / "model.safetensors").exists()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["rope_parameters"]["factor"] == config["rope_scaling"]["factor"] == 4.0
    assert config["use_cache"] is True
    opened = open_folder(folder, model_folder)
    torch.testing.assert_close(logits(opened.model), expected, rtol=1e-4, atol=1e-4)
    certificate = certify(folder)
    found = [finding for section in certificate.sections for finding in section.findings]
    assert [finding.words for finding in found if finding.verdict == VIOLATION] == []
    assert any("an adapter whose config.json is not its base model's" in finding.words for finding in found)
