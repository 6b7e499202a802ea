"""An adapter that plain PEFT trained on a run's export, exported with the run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from recipes.cli import run
from recipes.export import export
from recipes.train import train

pytestmark = pytest.mark.usefixtures("reopened_here")

IDS = torch.randint(0, 512, (1, 700), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def make_adapter(base: Path, folder: Path) -> torch.Tensor:
    """Save an adapter that does something, as PEFT does it; returns the logits with it."""
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
        model.save_pretrained(str(folder))
    return logits(model)


@pytest.fixture
def run_folder(tiny: list[str], tmp_path: Path) -> Path:
    assert run(tiny, train) == 0
    assert run(tiny, export) == 0
    return (tmp_path / "outputs/demo/extend/latest").resolve()


def test_adapter_is_merged_into_the_run_or_travels_with_its_rope(
    tiny: list[str], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logits(AutoModelForCausalLM.from_pretrained(run_folder / "export"))
    expected = make_adapter(run_folder / "export", tmp_path / "adapter")
    assert (expected - before).abs().max() > 0.01, "it does something"

    words = [*tiny, f"export.adapter={tmp_path}/adapter"]
    assert run([*words, "export.adapter_as=adapter"], export) == 0
    folder = run_folder / "export-adapter"
    base = AutoModelForCausalLM.from_pretrained(run_folder / "export", config=AutoConfig.from_pretrained(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(folder))), expected)

    assert run(words, export) == 0
    whole = AutoModelForCausalLM.from_pretrained(run_folder / "export")
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)
    assert "verdict  clean" in (run_folder / "export/README.md").read_text("utf-8")
    assert json.loads((run_folder / "export/config.json").read_text())["rope_parameters"]["rope_theta"] == 320000.0


def test_adapter_of_another_rope_is_refused(
    tiny: list[str], run_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_adapter(model_folder, tmp_path / "other")
    capsys.readouterr()
    assert run([*tiny, f"export.adapter={tmp_path}/other"], export) == 2
    error = capsys.readouterr().err
    assert f"was trained on {model_folder}, not on {run_folder}/export, and does not say with which RoPE" in error
    AutoConfig.from_pretrained(model_folder).save_pretrained(tmp_path / "other")
    assert run([*tiny, f"export.adapter={tmp_path}/other"], export) == 2
    assert "was trained with rope_parameters={'rope_theta': 10000.0" in capsys.readouterr().err
    AutoConfig.from_pretrained(run_folder / "export").save_pretrained(tmp_path / "other")
    assert run([*tiny, f"export.adapter={tmp_path}/other"], export) == 0, "the run's own RoPE stands beside it"


def test_folder_without_an_adapter_is_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, f"export.adapter={tmp_path}"], export) == 2
    assert "is no folder with an adapter_config.json of PEFT; set export.adapter" in capsys.readouterr().err
