from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

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


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))


def test_the_chat_template_travels(tmp_path: Path) -> None:
    ours = tokenizer()
    ours.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    folder = export_hugging_face(tiny_model("llama"), ours, tmp_path / "export", context_length=64)
    again = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "how long?"}, {"role": "assistant", "content": "very"}]
    assert again.apply_chat_template(messages, tokenize=False) == "<user>how long?<assistant>very"
    assert again.model_max_length == 64


def test_what_generates_is_the_base_models_and_reaches_the_new_length(tmp_path: Path) -> None:
    model = tiny_model("llama")  # with use_cache=False, as in training
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, max_length=32, eos_token_id=[3, 5], use_cache=False
    )
    folder = export_hugging_face(model, tokenizer(), tmp_path / "export", context_length=64)
    written = json.loads((folder / "generation_config.json").read_text("utf-8"))
    expected = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [3, 5]}
    assert {key: written[key] for key in expected} == expected
    assert written["max_length"] == 64  # 32, the base model's, would end every answer there
    assert written["use_cache"] is True
    assert model.generation_config.max_length == 32
    export_hugging_face(tiny_model("llama"), tokenizer(), tmp_path / "plain", context_length=64)
    assert "max_length" not in json.loads((tmp_path / "plain/generation_config.json").read_text("utf-8"))


@pytest.mark.parametrize("tied", [True, False])
def test_shards_hold_every_weight_once(tied: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    folder = export_hugging_face(model, tokenizer(), tmp_path / "export", context_length=64, max_shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 70_000 for shard in shards)
    places = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    assert sorted(set(places.values())) == [shard.name for shard in shards]
    found = [name for shard in shards for name in safe_open(shard, framework="pt").keys()]  # noqa: SIM118
    assert sorted(found) == sorted(places)
    assert ("lm_head.weight" in places) is not tied
    again = AutoModelForCausalLM.from_pretrained(folder)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_hugging_face(tiny_model("llama"), tokenizer(), tmp_path / "export", context_length=64)
    before = (folder / "config.json").read_text("utf-8")

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device", "config.json")

    monkeypatch.setattr("recipes.exporting.hugging_face.write_both_dialects", full)
    with pytest.raises(OSError, match="No space left"):
        export_hugging_face(tiny_model("qwen2"), tokenizer(), folder, context_length=128)
    assert (folder / "config.json").read_text("utf-8") == before
