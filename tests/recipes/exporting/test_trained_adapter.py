"""A run with an adapter of its own: merged, alone, both; and a run that goes on from it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lightning_modules.checkpointing import newest_checkpoint
from lightning_modules.loading import PretrainedModel
from recipes.cli import run
from recipes.compose import compose
from recipes.evaluating import Evaluation, adapted_model
from recipes.export import export
from recipes.run import run as whole
from recipes.train import train
from tests.lightning_modules.peft.adapted import digest

pytestmark = pytest.mark.usefixtures("reopened_here")

IDS = torch.randint(0, 512, (1, 300), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False, document_ids=torch.zeros_like(IDS)).logits


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@pytest.mark.parametrize("adapter", ["lora_plus", "longlora"])
def test_merged_and_alone_it_has_the_trained_models_logits(
    adapter: str, tiny: list[str], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, f"peft={adapter}", "peft.r=4", "optimizer=adamw", "optimizer.lr=0.01"]
    if adapter == "longlora":
        words += ["attention=shifted_sparse", "attention.group_size=64"]
    before = bytes_of(model_folder)
    assert run(words, train) == 0
    folder = (tmp_path / "outputs/demo/extend/latest").resolve()
    checkpoint = newest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    trained = adapted_model(compose(words).config, checkpoint)
    expected = logits(trained)
    untrained = AutoModelForCausalLM.from_pretrained(model_folder, config=trained.config)
    assert (logits(untrained) - expected).abs().max() > 0.01, "training did something"
    assert "parameters train (" in (folder / "log.txt").read_text()

    capsys.readouterr()
    assert run([*words, "export.adapter_as=both"], export) == 0
    alone = folder / "export-adapter"
    size = (alone / "adapter_model.safetensors").stat().st_size
    assert f"adapter: {alone} ({size / 1e6:.1f} MB)" in capsys.readouterr().err
    largest = float(expected.abs().max())
    merged = AutoModelForCausalLM.from_pretrained(folder / "export", attn_implementation="lcr_per_document")
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=5e-6 * largest)
    assert "verdict  clean" in (folder / "export/README.md").read_text("utf-8")

    base = AutoModelForCausalLM.from_pretrained(
        json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"],
        config=AutoConfig.from_pretrained(alone),
        attn_implementation="lcr_per_document",
    )
    assert base.config.rope_parameters["rope_theta"] == 320000.0  # the run's, not the base model's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(base, str(alone))), expected, rtol=0, atol=5e-6 * largest
        )
    assert bytes_of(model_folder) == before, "the base model on disk is untouched"


def test_run_goes_on_from_an_exported_adapter_on_the_same_rope_alone(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny, "peft=lora", "peft.r=4", "optimizer=adamw", "optimizer.lr=0.01"]
    assert run(words, train) == 0
    assert run([*words, "export.adapter_as=adapter"], export) == 0
    folder = (tmp_path / "outputs/demo/extend/latest").resolve()
    assert not (folder / "export").exists()
    capsys.readouterr()  # started from the same base model, and trained on it: not on what this run made of it
    assert run([*words, f"export.adapter={folder}/export-adapter"], export) == 2
    assert "was trained on the weights of" in capsys.readouterr().err
    assert not (folder / "export").exists()
    goes_on = [*words, f"peft.from_adapter={folder}/export-adapter"]
    assert run(goes_on, train) == 0
    second = (tmp_path / "outputs/demo/extend/latest").resolve()
    assert second != folder
    states = [torch.load(newest_checkpoint(f / "checkpoints"), weights_only=True) for f in (folder, second)]  # type: ignore[arg-type]
    assert states[0]["adapter"] == states[1]["adapter"]
    assert digest(states[0]["state_dict"]) != digest(states[1]["state_dict"])
    capsys.readouterr()
    assert run([*goes_on, "rope.rope_theta=640000.0"], train) == 2
    error = capsys.readouterr().err
    assert "was trained with rope_parameters=" in error
    assert "Traceback" not in error


def test_adapter_of_a_run_without_one_is_refused(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny, train) == 0
    capsys.readouterr()
    assert run([*tiny, "export.adapter_as=both"], export) == 2
    assert "export.adapter_as=both, but this run trained no adapter; set export.adapter_as=merged" in (
        capsys.readouterr().err
    )


def test_a_whole_run_measures_and_describes_an_adapter_that_goes_out_alone(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its scores are those of the merged export: of the run's RoPE, and not of the base model's."""
    words = [*tiny, "peft=lora", "peft.r=4", "optimizer=adamw", "optimizer.lr=0.01", f"run_folder={tmp_path}/it"]
    assert run([*words, "export.adapter_as=adapter"], whole) == 0
    assert f"exported adapter       {tmp_path}/it/export-adapter" in capsys.readouterr().out
    assert not (tmp_path / "it" / "export").exists()
    card = (tmp_path / "it" / "export-adapter" / "README.md").read_text(encoding="utf-8")
    assert "| after training" in card
    assert "## A LoRA adapter" in card
    assert "theta 320000" in card
    alone = json.loads((tmp_path / "it" / "scores.json").read_text(encoding="utf-8"))
    assert run(words, export) == 0
    merged = Evaluation(compose(words).config, AutoTokenizer.from_pretrained(tmp_path / "it" / "export")).scores(
        PretrainedModel(str(tmp_path / "it" / "export"), attention="lcr_per_document").load(), "merged"
    )
    (trained,) = (one for one in alone["variants"] if one["name"] == "after training")
    expected = {int(length): value for length, value in trained["perplexity"].items()}
    assert merged.perplexity == pytest.approx(expected, rel=1e-3)
