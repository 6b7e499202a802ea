"""An Index-1.9B that was trained by a recipe, exported for other programs and for this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lightning_modules.loading import PretrainedModel
from lightning_modules.models.index.modeling import IndexForCausalLM
from recipes.cli import run
from recipes.compose import compose
from recipes.evaluating import trained_model
from recipes.export import export
from recipes.exporting.run import portable
from recipes.train import train
from tests.lightning_modules.models.index.tiny_index import tiny_index
from tests.lightning_modules.tiny_models import tiny_model
from tests.recipes.words import replaced

pytestmark = pytest.mark.usefixtures("reopened_here")


def test_only_an_architecture_of_ours_is_exchanged() -> None:
    llama, index = tiny_model("llama"), tiny_index()
    assert portable(llama) is llama
    assert type(portable(index)) is LlamaForCausalLM


def test_a_trained_index_is_exported_as_llama_or_as_itself(tiny: list[str], model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    settings: dict[str, Any] = {"vocab_size": 512, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1}
    tiny_index(**settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    words = replaced(tiny, f"model.source.name_or_path={folder}", f"model.tokenizer.name_or_path={folder}")
    assert run(words, train) == 0
    run_folder = next(path for path in (tmp_path / "outputs/demo/extend").iterdir() if not path.is_symlink())
    trained = trained_model(compose(words).config, next((run_folder / "checkpoints").glob("*.ckpt")))
    assert isinstance(trained, IndexForCausalLM)
    trained.set_attn_implementation("sdpa")
    ids = torch.randint(0, 512, (1, 700), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trained.eval()(ids).logits

    assert run(words, export) == 0
    llama: Any = AutoModelForCausalLM.from_pretrained(run_folder / "export")
    assert type(llama) is LlamaForCausalLM
    assert torch.equal(llama(ids).logits, expected)

    assert run([*words, "export.layout=native"], export) == 0
    assert json.loads((run_folder / "export/config.json").read_text())["model_type"] == "index"
    card = (run_folder / "export/README.md").read_text("utf-8")
    assert "verdict  clean" in card
    assert "Starts from: `index` (the paper: demo model)." in card  # what was trained, not what the recipe extends
    assert "| any other program | no |" in card
    own = PretrainedModel(str(run_folder / "export"), attention="sdpa").load().eval()
    assert torch.equal(own(ids).logits, expected)
