"""A scale leaves the recipe alone: its model, its chat template, its corpus' rules and the unit that it counts in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer

from recipes import compose as composing
from recipes.cli import run
from recipes.compose import ConfigError, compose, options
from recipes.prepare import prepare
from recipes.scaling import is_written_by_every_model
from recipes.train import train
from recipes.validate import validate

INDEX, SFT = "recipe=index_1p9b_32k/pretrain", "recipe=long_sft/lora_single_gpu"


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/, to write a preset into."""
    folder = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), folder)
    monkeypatch.setattr(composing, "conf_folder", lambda: folder)
    monkeypatch.setattr("recipes.quick_compose.conf_folder", lambda: folder)
    return folder


def preset(conf: Path, *, defaults: list[str], body: str) -> str:
    """A preset for supervised fine-tuning under a name of its own, and the word that names it."""
    lines = ["# @package _global_", "defaults:", "  - override /data: supervised_finetuning"]
    lines += [f"  - override /{default}" for default in defaults]
    name = f"mine_{len([*(conf / 'recipe').glob('mine_*')])}"
    text = "\n".join([*lines, "about: {paper: none, extends: none}", body])
    (conf / "recipe" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return f"recipe={name}"


def said(config: DictConfig, *keys: str) -> list[object]:
    return [OmegaConf.select(config, key) for key in keys]


@pytest.mark.parametrize("scale", ["toy", "single_gpu"])
def test_what_a_preset_says_of_its_model_is_not_said_of_the_scale_s(conf: Path, scale: str) -> None:
    stage_two = preset(
        conf,
        defaults=["model: hugging_face", "corpus: long_and_short_conversations"],
        body="model: {original_context_length: 32768, source: {dtype: bfloat16}}\ncontext_length: 32768",
    )
    config = compose([stage_two, f"scale={scale}"]).config
    length = {"toy": 512, "single_gpu": 8192}[scale]
    assert said(config, "model.original_context_length", "context_length") == [length, length]
    assert config.model.source.dtype == "bfloat16"
    handed_over = ["model=hugging_face", "model.source.name_or_path=/export", "model.original_context_length=4096"]
    assert compose([stage_two, f"scale={scale}", *handed_over]).config.context_length == 4096


def test_lengths_are_capped_where_a_scale_has_no_room() -> None:
    def length(*words: str) -> int:
        return compose([INDEX, *words]).config.context_length

    assert length("scale=toy", "extension_factor=48.828125") == 8 * 512
    assert length("scale=toy", "extension_factor=4") == 4 * 512
    assert length("scale=single_gpu", "extension_factor=2") == 2 * 8192
    assert length("scale=single_gpu") == 32768
    assert length("scale=single_gpu", "model=qwen2p5_0p5b") == 32768
    assert compose([INDEX, "scale=toy", "extension_factor=48.828125"]).config.rope.rope_theta == 320000.0


def test_templates_of_plain_words_stay_and_those_in_a_model_s_tokens_change(conf: Path) -> None:
    apart = {
        name: is_written_by_every_model(OmegaConf.load(conf / "chat_template" / f"{name}.yaml"))
        for name in options("chat_template")
    }
    everywhere = {"chatqa2", "completion", "lines", "plain", "together_inst"}
    assert everywhere <= {name for name, stays in apart.items() if stays}
    assert not any(apart[name] for name in ("chatml", "index", "llama3", "tokenizer"))
    corpus = "corpus: long_and_short_conversations"
    for own, toy, gpu in (("completion", "completion", "completion"), ("llama3", "plain", "chatml")):
        word = preset(conf, defaults=[f"chat_template: {own}", corpus], body="")
        assert compose([word, "scale=toy"]).choices["chat_template"] == toy
        assert compose([word, "scale=single_gpu"]).choices["chat_template"] == gpu
        assert compose([word, "scale=toy", "chat_template=lines"]).choices["chat_template"] == "lines"


def test_a_step_keeps_its_unit_and_whoever_speaks_last_decides(conf: Path) -> None:
    sizes = ("data.tokens_per_step", "data.samples_per_step", "data.max_steps", "data.epochs")
    body = "data: {samples_per_step: 128, tokens_per_step: null, epochs: 2, max_steps: null}"
    word = preset(conf, defaults=["corpus: long_and_short_conversations"], body=body)
    assert said(compose([word]).config, *sizes) == [None, 128, None, 2]
    assert said(compose([word, "scale=toy"]).config, *sizes) == [None, 16, 20, None]
    assert said(compose([word, "scale=toy", "data.epochs=1"]).config, *sizes) == [None, 16, None, 1]
    assert said(compose([word, "debug=two_steps"]).config, *sizes) == [None, 128, 2, None]
    assert said(compose([word, "scale=toy", "data.tokens_per_step=4096"]).config, *sizes) == [4096, None, 20, None]
    both = ["data.tokens_per_step=4096", "data.samples_per_step=8"]
    assert said(compose([word, *both]).config, *sizes)[:2] == [4096, 8]  # which validation refuses
    assert said(compose([SFT, "scale=toy"]).config, *sizes) == [8192, None, 20, None]
    assert "samples_per_step" not in compose([INDEX, "scale=toy"]).config.data


def test_a_scale_s_corpus_is_read_as_the_preset_s_is(conf: Path) -> None:
    config = compose([SFT, "scale=toy"]).config
    assert said(config, "corpus.mix_at", "corpus.mixture.long") == ["document", 0.375]
    by_size = preset(conf, defaults=["corpus: long_and_short_conversations"], body="corpus: {mixture: null}")
    toy = compose([by_size, "scale=toy"]).config
    assert sorted(toy.corpus.sources) == ["long", "short"]
    assert toy.corpus.sources.long.haystack.path == toy.evaluation.corpus.path.replace("heldout", "train")
    nobody = preset(conf, defaults=["corpus: local_conversations"], body="corpus: {mixture: null}")
    with pytest.raises(ValueError, match="corpus=toy has nobody to play conversations; add it in"):
        compose([nobody, "scale=toy"])


def test_single_gpu_says_offline_what_it_lacks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = [INDEX, "scale=single_gpu", "corpus=classics", f"cache_dir={tmp_path / 'cache'}"]
    assert run(words, prepare) == 2
    error = capsys.readouterr().err
    assert "HuggingFaceTB/SmolLM2-360M" in error
    assert "set model.source.name_or_path" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_single_gpu_trains_a_preset_on_a_model_of_the_user_s(tmp_path: Path, model_folder: Path, texts: Path) -> None:
    words = [
        INDEX,
        "scale=single_gpu",
        "debug=two_steps",
        "model=hugging_face",
        f"model.source.name_or_path={model_folder}",
        "model.original_context_length=512",
        f"corpus.sources.documents.path={texts}/train.jsonl",
        "packing.max_seqlen=512",
        "data.tokens_per_step=1024",
        "trainer.accelerator=cpu",
        "trainer.progress_bar=false",
        f"output_dir={tmp_path}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    assert run(words, train) == 0
    folder = tmp_path / "index_1p9b_32k" / "pretrain" / "latest"
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (info["status"], info["steps"]) == ("finished", 2)
    config = OmegaConf.load(folder / "config.yaml")
    assert said(config, "context_length", "memory.activations.recompute") == [4096, "full"]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def like_smollm2(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with no weights and what validation reads of SmolLM2: its configuration, and ChatML's tokens."""
    folder = tmp_path_factory.mktemp("like_smollm2")
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    rope = {"rope_type": "default", "rope_theta": 100000.0}
    changed = {"max_position_embeddings": 8192, "head_dim": 64, "rope_parameters": rope, "vocab_size": 49152}
    (folder / "config.json").write_text(json.dumps({**config, **changed}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", composing.presets())
def test_every_preset_is_valid_on_one_gpu(name: str, like_smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.peft.q_lora.refuse_without_gpu", lambda: None)
    composed = compose([f"recipe={name}", "scale=single_gpu"])
    assert composed.config.model.source.name_or_path == "HuggingFaceTB/SmolLM2-360M"
    composed.config.model.source.name_or_path = str(like_smollm2)
    left_to_the_user = faults(composed)
    assert [fault for fault in left_to_the_user if "path has no value" not in fault] == []
    for fault in left_to_the_user:
        OmegaConf.update(composed.config, fault.split(" ")[0], str(like_smollm2 / "config.json"))
    assert faults(composed) == []


def faults(composed: composing.Composed) -> list[str]:
    try:
        validate(composed)
    except ConfigError as error:
        return str(error).splitlines()
    return []
