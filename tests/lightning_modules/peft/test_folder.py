"""The adapter alone on disk: plain peft reads it, and training goes on from it."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lightning_modules.peft.folder import load_adapter, refuse_other_rope, save_adapter
from lightning_modules.peft.long_lora import LongLora
from lightning_modules.peft.lora import Lora
from lightning_modules.peft.trained_alone import trained_names
from lightning_modules.rope.methods import AdjustedBase
from lightning_modules.rope.patch import extend_rope
from tests.lightning_modules.peft.adapted import adapted_model, base_model, logits

ADAPTERS = {
    "lora": Lora(r=3, alpha=5),
    "rslora": Lora(r=3, rslora=True, target_modules=["q_proj", "down_proj"]),
    "longlora": LongLora(r=3),
}


def saved(adapter: Lora, folder: Path, **options: Any) -> tuple[Any, int]:
    model = adapted_model(adapter, **options)
    folder.mkdir(exist_ok=True)
    return model, save_adapter(model, folder)


def plain_peft(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        return PeftModel.from_pretrained(base_model(**options), str(folder))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_plain_peft_loads_it_to_the_same_logits(name: str, architecture: str, tied: bool, tmp_path: Path) -> None:
    options = {"architecture": architecture, "tie_word_embeddings": tied}
    model, _ = saved(ADAPTERS[name], tmp_path, **options)
    expected = logits(model)
    assert (logits(base_model(**options)) - expected).abs().max() > 0.1, "the adapter does something"
    torch.testing.assert_close(logits(plain_peft(tmp_path, **options)), expected, rtol=1e-4, atol=2e-5)


def test_file_is_what_trains_and_nothing_else(tmp_path: Path) -> None:
    model, num_bytes = saved(Lora(r=3), tmp_path)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    header = num_bytes - 4 * trained
    assert 0 < header < 200 * len(trained_names(model))
    assert num_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == trained
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_goes_on_from_it(name: str, tmp_path: Path) -> None:
    model, _ = saved(ADAPTERS[name], tmp_path)
    again = base_model()
    type(ADAPTERS[name])(**{**vars(ADAPTERS[name]), "from_adapter": str(tmp_path)}).apply(again)
    theirs = dict(model.named_parameters())
    for parameter_name, parameter in again.named_parameters():
        assert torch.equal(parameter, theirs[parameter_name]), parameter_name
        assert parameter.requires_grad == theirs[parameter_name].requires_grad


def test_training_goes_on_from_plain_pefts(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        lora = LoraConfig(r=4, lora_alpha=9, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        theirs = get_peft_model(base_model(), lora)
        theirs.save_pretrained(str(tmp_path))
    ours = base_model()
    Lora(r=4, alpha=9, target_modules=["v_proj", "q_proj"], from_adapter=str(tmp_path)).apply(ours)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-5)


def other_base(folder: Path) -> None:
    load_adapter(adapted_model(Lora(r=3, alpha=5), seed=1), folder)


def other_size(folder: Path) -> None:
    """A base model of other widths, and no fingerprint that would say so first."""
    (folder / "base_model.json").unlink()
    load_adapter(adapted_model(Lora(r=3, alpha=5), intermediate_size=64), folder)


def without_a_layer(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    load_adapter(adapted_model(Lora(r=3, alpha=5)), folder)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            other_base,
            "is an adapter of another base model (LlamaForCausalLM) than this run's (LlamaForCausalLM)",
        ),
        (other_size, "does not fit the model (size mismatch for model.layers.1.mlp.down_proj.lora_A.default.weight"),
        (without_a_layer, "does not fit the model: model.layers.0.mlp.up_proj.lora_A.default.weight"),
        (lambda f: load_adapter(adapted_model(Lora(r=4, alpha=5)), f), "r=3 there and 4 here, set peft.r=3"),
        (lambda f: load_adapter(adapted_model(Lora(r=3)), f), "alpha=5.0 there and 32.0 here, set peft.alpha=5.0"),
        (
            lambda f: load_adapter(adapted_model(Lora(r=3, alpha=5, target_modules=["q_proj"])), f),
            "does not fit the model: model.layers.0.mlp.down_proj.lora_A.default.weight and 23 more",
        ),
        (lambda f: load_adapter(adapted_model(Lora(r=3)), f / "x"), "holds no adapter_config.json and adapter_model"),
    ],
)
def test_folder_that_does_not_fit_is_one_sentence(load: Any, message: str, tmp_path: Path) -> None:
    saved(Lora(r=3, alpha=5), tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"peft.from_adapter={tmp_path}")


def test_adapter_of_another_rope_is_refused(tmp_path: Path) -> None:
    """Trap: peft stores no RoPE, and on another one an adapter loads without an error."""
    adapter = Lora(r=3, from_adapter=str(tmp_path))
    model, _ = saved(Lora(r=3), tmp_path)
    ours = base_model()
    adapter.apply(ours)
    with pytest.raises(ValueError, match="does not say with which RoPE it was trained, where this run's is"):
        adapter.on_train_start(ours)
    extend_rope(model, AdjustedBase(rope_theta=500000.0), 128)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"was trained with rope_parameters=\{.*500000.*where this run's is .*10000"):
        adapter.on_train_start(ours)
    extend_rope(ours, AdjustedBase(rope_theta=500000.0), 128)
    adapter.on_train_start(ours)


def test_rope_is_that_of_the_base_model_it_names_where_none_stands_beside(tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "base")
    model, _ = saved(Lora(r=3), tmp_path / "adapter")
    settings = tmp_path / "adapter/adapter_config.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "base")}))
    refuse_other_rope(tmp_path / "adapter", model, key="peft.from_adapter")
    extend_rope(model, AdjustedBase(rope_theta=500000.0), 128)
    with pytest.raises(ValueError, match=r"was trained with rope_parameters=\{.*10000"):
        refuse_other_rope(tmp_path / "adapter", model, key="peft.from_adapter")
