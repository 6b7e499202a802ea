"""The numbers at the beginning of a GGUF file are read without any package, and composed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.compose import ConfigError, compose
from recipes.importing.gguf_header import header, of_model
from recipes.planning.reading import model_dimensions
from tests.recipes.importing.gguf_files import LLAMA, header_bytes

WORDS = ["recipe=index_1p9b_32k/pretrain", "model=gguf"]


def written(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(content)
    return file


def test_the_header_ends_where_the_vocabulary_begins(tmp_path: Path) -> None:
    file = written(tmp_path, header_bytes(LLAMA))
    expected = {key: value for key, value in LLAMA.items() if key[:9] != "tokenizer" and not isinstance(value, list)}
    assert header(file) == expected
    assert of_model(file, "context_length") == 512
    assert of_model(file, "attention.key_length", 64) == 64


def test_a_model_s_numbers_reach_the_configuration(tmp_path: Path) -> None:
    file = written(tmp_path, header_bytes(LLAMA))
    config = compose([*WORDS, f"model.path={file}", "scale=single_gpu", f"cache_dir={tmp_path}"]).config
    assert config.context_length == 8 * 512
    assert (config.model.head_dim, config.model.original_rope_theta) == (16, 10000.0)
    folder = Path(config.model.source.name_or_path)
    assert folder.parent == tmp_path / "imported"
    assert folder.name.startswith("tiny-")
    assert not folder.exists()  # composing imports nothing
    other = written(tmp_path, header_bytes({**LLAMA, "general.license": "mit"}))
    again = compose([*WORDS, f"model.path={other}", f"cache_dir={tmp_path}"]).config
    assert again.model.source.name_or_path != str(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory); set model.path to a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "is no GGUF file; set model.path to one"),
        (header_bytes(LLAMA, version=1), "has version 1 of GGUF; versions 2 and 3 are read"),
        (header_bytes(LLAMA)[:60], "cannot be read (it ends early); set model.path to a GGUF file"),
        (header_bytes({**LLAMA, "llama.context_length": "x" * 9})[:200], "cannot be read (it ends early)"),
    ],
)
def test_what_is_no_gguf_file_is_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "tiny.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as fault:
        compose([*WORDS, f"model.path={file}"])
    assert str(fault.value).startswith(f"model.path={file} {sentence}")
    assert "\n" not in str(fault.value)


def test_no_file_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^model\.path=null must be a GGUF file; set model\.path to one[^\n]*$"):
        compose([*WORDS, "model.path=null"])


def test_a_plan_of_a_file_that_is_not_imported_says_what_imports_it(tmp_path: Path) -> None:
    file = written(tmp_path, header_bytes(LLAMA))
    composed = compose([*WORDS, f"model.path={file}", f"cache_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"is not imported yet, [^\n]*; python -m recipes\.prepare with these words"):
        model_dimensions(composed)


def test_a_file_without_its_length_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, header_bytes({"general.architecture": "llama"}))
    with pytest.raises(ValueError, match=r"does not say llama\.context_length; set model\.path to another"):
        of_model(file, "context_length")
