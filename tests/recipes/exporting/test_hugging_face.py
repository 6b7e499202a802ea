from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recipes.exporting.hugging_face import export_hugging_face
from tests.lightning_modules.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_written_once_and_come_back_tied(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    folder = export_hugging_face(model, tokenizer, tmp_path / "export", context_length=64, dtype=dtype)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert ("lm_head.weight" in names) is not tied
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert (again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()) is tied
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours.to(dtype), theirs), name
