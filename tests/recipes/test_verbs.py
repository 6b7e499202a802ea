"""The verbs on a tiny model and a few pages of text: what they write, print, and hand to other programs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from recipes.cli import run
from recipes.compose import compose
from recipes.evaluate import evaluate
from recipes.evaluating import trained_model
from recipes.export import export
from recipes.prepare import prepare
from recipes.run import run as run_all
from recipes.train import train
from tests import processes
from tests.recipes.words import replaced

pytestmark = pytest.mark.usefixtures("reopened_by_a_fork")

RELOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, asked, answered = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.decode(tokenizer("the grey sea")["input_ids"]) == "the grey sea"
assert tokenizer.model_max_length == model.config.max_position_embeddings == 1024
assert not any(name.startswith(("lightning_modules", "recipes", "datamodules")) for name in sys.modules)
with torch.no_grad():
    save_file({"logits": model(load_file(asked)["input_ids"]).logits}, answered)
"""


@pytest.fixture
def trained(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a finished run."""
    assert run(tiny, train) == 0
    (folder,) = (path for path in (tmp_path / "outputs" / "demo" / "extend").iterdir() if not path.is_symlink())
    assert f"trained: {folder}" in capsys.readouterr().out
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_prepare_makes_stores_once(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tiny, prepare) == 0
    first = capsys.readouterr().out
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert len([path for path in stores if path.name == "tokens.bin"]) == 2
    assert [line.split()[:2] for line in first.splitlines()[1:3]] == [["classics", "6"], ["validation", "6"]]

    monkeypatch.setattr("datamodules.corpora.files.FileShard.documents", lambda *_: pytest.fail("read again"))
    assert run(tiny, prepare) == 0
    second, err = capsys.readouterr()
    assert second == first
    assert "tokenise" not in err
    assert {path: path.stat().st_mtime_ns for path in stores} == stores


def test_evaluate_writes_numbers_and_pictures(
    tiny: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny, evaluate) == 0
    out = capsys.readouterr().out
    for name in ("base as it is", "RoPE changed, untrained", "after training"):
        assert name in out
    for file in ("scores.json", "scores.csv", "figures/perplexity.png", "figures/needle.png"):
        assert (trained / file).stat().st_size > 0
    newest = (trained / "scores.json").read_bytes()
    assert run(replaced(tiny, f"checkpoint={trained}"), evaluate) == 0
    assert (trained / "scores.json").read_bytes() == newest


def test_export_is_read_by_plain_transformers(tiny: list[str], trained: Path, tmp_path: Path) -> None:
    assert run(tiny, export) == 0
    config = read(trained / "export" / "config.json")
    composed = compose(tiny).config
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": composed.rope.rope_theta}
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"] is None
    assert type(config["max_position_embeddings"]) is int
    assert config["max_position_embeddings"] == 1024

    asked, answered = tmp_path / "asked.safetensors", tmp_path / "answered.safetensors"
    input_ids = torch.randint(0, 512, (1, 700), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": input_ids}, asked)
    command = [sys.executable, "-c", RELOAD, str(trained / "export"), str(asked), str(answered)]
    done = processes.run(command, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    ours = trained_model(composed, next((trained / "checkpoints").glob("*.ckpt")))
    assert isinstance(ours, LlamaForCausalLM)
    ours.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = ours.eval()(input_ids).logits
    assert torch.equal(load_file(answered)["logits"], expected)

    card = (trained / "export" / "README.md").read_text(encoding="utf-8")
    for words in (
        "# demo/extend",
        "Not evaluated yet.",
        "- steps: 2",
        "- tokens: 4096",
        "- context length: 1024",
        "torch ",
    ):
        assert words in card


def test_export_of_linear_interpolation_has_both_dialects(tiny: list[str], tmp_path: Path) -> None:
    words = replaced(tiny, "rope=linear", "export.dtype=bfloat16")
    assert run(words, train) == 0
    assert run(words, export) == 0
    (file,) = (path for path in (tmp_path / "outputs").rglob("export/config.json") if "latest" not in path.parts)
    config = read(file)
    assert config["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert config["rope_theta"] == 10000.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["dtype"] == "bfloat16"


def test_run_goes_from_text_to_a_report(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny, run_all) == 0
    out = capsys.readouterr().out
    latest = tmp_path / "outputs" / "demo" / "extend" / "latest"
    assert read(latest / "run.json")["status"] == "finished"
    for file in ("scores.json", "figures/perplexity.png", "export/model.safetensors", "log.txt", "metrics.json"):
        assert (latest / file).is_file()
    card = (latest / "export" / "README.md").read_text(encoding="utf-8")
    assert "after training" in card
    assert "after training" in out
    assert str(latest.resolve() / "export") in out
    lengths = {cell for line in (latest / "scores.csv").read_text().splitlines() for cell in line.split(",")}
    assert {"64", "128", "1024"} <= lengths


def test_held_out_text_that_is_too_short_is_said_before_training(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "a few words"}\n', encoding="utf-8")
    assert run(replaced(tiny, f"corpus.validation.path={short}"), run_all) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "windows of 1024 tokens" in errors[0]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("action", [evaluate, export])
def test_weights_are_not_read_under_another_rope(
    tiny: list[str], trained: Path, capsys: pytest.CaptureFixture[str], action: Any
) -> None:
    assert run(replaced(tiny, "rope=linear", f"checkpoint={trained}"), action) == 2
    assert f"error: checkpoint={trained} was trained with other settings: rope._target_=" in capsys.readouterr().err
    assert run(replaced(tiny, "rope=linear"), action) == 2
    assert "error: no finished run of recipe=demo/extend with these settings under" in capsys.readouterr().err
    assert not (trained / "export").exists()


def test_a_run_of_another_recipe_is_refused(tiny: list[str], trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = replaced(tiny, "recipe=index_1p9b_32k/pretrain", "scale=toy", f"checkpoint={trained}")
    assert run(words, export) == 2
    assert capsys.readouterr().err == (
        f"error: checkpoint={trained} is a run of recipe=demo/extend, not of recipe=index_1p9b_32k/pretrain\n"
    )


def test_a_run_that_fails_lets_go_of_its_folder(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*_: object) -> None:
        raise FloatingPointError("loss of step 0 is not finite")

    with monkeypatch.context() as patched:
        patched.setattr("lightning_modules.base.CausalLMModule.training_step", diverged)
        assert run(tiny, train) == 2
        assert "error: loss of step 0 is not finite\n" in capsys.readouterr().err
    assert run(tiny, train) == 0
    runs = sorted(path for path in (tmp_path / "outputs" / "demo" / "extend").iterdir() if not path.is_symlink())
    assert [read(path / "run.json")["status"] for path in runs] == ["started", "finished"]
