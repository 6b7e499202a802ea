"""Index-1.9B handed on: as a plain Llama to readers without our code, and in its own format to ourselves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_modules.loading import PretrainedModel
from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.models.index.plain_llama import plain_llama
from lightning_modules.rope.contract import assert_rope
from lightning_modules.rope.patch import patch_rope
from recipes.exporting.hugging_face import export_hugging_face
from tests import processes
from tests.lightning_modules.models.index.tiny_index import tiny_index

IDS = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
ROPE = {"rope_type": "yarn", "rope_theta": 320000.0, "factor": 8.0, "original_max_position_embeddings": 64}

PLAIN_READER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder, ids, answer = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
assert type(model).__module__ == "transformers.models.llama.modeling_llama", type(model)
assert not [name for name in sys.modules if name.split(".")[0] in ("lightning_modules", "recipes", "datamodules")]
with torch.no_grad():
    logits = model(load_file(ids)["ids"]).logits
save_file({"logits": logits, "inv_freq": model.model.rotary_emb.inv_freq}, answer)
"""


def patched(**overrides: Any) -> Any:
    """An Index whose RoPE is not the one it was made with."""
    model = tiny_index(**overrides)
    patch_rope(model, ROPE, max_position_embeddings=512)
    return model


def export(model: torch.nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    return export_hugging_face(model, tokenizer, folder, context_length=512, dtype=dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm_head", [0, 1])
def test_the_llama_gives_the_same_logits(norm_head: int, tied: bool) -> None:
    model = patched(norm_head=norm_head, tie_word_embeddings=tied)
    llama: Any = plain_llama(model)
    assert llama.__class__ is LlamaForCausalLM
    assert torch.equal(llama(IDS).logits, model(IDS).logits)
    assert_rope(llama, ROPE, 512)
    assert torch.equal(llama.generate(IDS[:, :5], max_new_tokens=4), model.generate(IDS[:, :5], max_new_tokens=4))
    assert not any(tensor.is_meta for tensor in (*llama.parameters(), *llama.buffers()))


def test_every_weight_but_the_head_is_shared_and_the_head_has_rows_of_length_one() -> None:
    model = patched()
    before = model.lm_head.weight.clone()
    ours, theirs = model.state_dict(), plain_llama(model).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].data_ptr() != theirs[name].data_ptr()] == ["lm_head.weight"]
    torch.testing.assert_close(theirs["lm_head.weight"].norm(dim=-1), torch.ones(64), rtol=1e-6, atol=0)
    assert torch.equal(model.lm_head.weight, before)


def test_a_fresh_process_without_our_code_reads_the_same_logits(tmp_path: Path) -> None:
    model = patched()
    folder = export(plain_llama(model), tmp_path / "export")
    save_file({"ids": IDS}, tmp_path / "ids")
    files = [str(tmp_path / name) for name in ("export", "ids", "answer")]
    done = processes.run([sys.executable, "-c", PLAIN_READER, *files], cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    answer = load_file(tmp_path / "answer")
    torch.testing.assert_close(answer["logits"], model(IDS).logits, rtol=1e-6, atol=2e-6)
    assert torch.equal(answer["inv_freq"], model.model.rotary_emb.inv_freq)

    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["rope_parameters"] == ROPE
    assert config["rope_theta"] == 320000.0  # the older dialect
    assert config["rope_scaling"] == {key: value for key, value in ROPE.items() if key != "rope_theta"}
    assert type(config["max_position_embeddings"]) is int
    assert config["max_position_embeddings"] == 512
    assert "norm_head" not in config


def test_a_bf16_export_normalises_before_it_rounds(tmp_path: Path) -> None:
    model = patched()
    weight = load_file(export(plain_llama(model), tmp_path / "export", torch.bfloat16) / "model.safetensors")[
        "lm_head.weight"
    ]
    fp32 = model.lm_head.weight.detach()
    assert torch.equal(weight, (fp32 / fp32.norm(dim=-1, keepdim=True)).bfloat16())


def test_its_own_format_comes_back_as_it_was(tmp_path: Path) -> None:
    model = patched()
    folder = export(model, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["norm_head"], config["rope_theta"]) == ("index", 1, 320000.0)
    again = PretrainedModel(str(folder), attention="sdpa").load().eval()
    assert type(again) is IndexForCausalLM
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(*(m.state_dict().values() for m in (model, again)), strict=True)
    )
    assert_rope(again, ROPE, 512)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
