"""An adapter alone in a folder, as peft writes and reads it: adapter_config.json and adapter_model.safetensors.

peft stores neither the RoPE nor the weights that an adapter belongs to. Whoever exports puts the model's config.json
beside it; here a fingerprint of the base model goes along, in a file that peft does not look at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lightning_modules.peft.lora import ADAPTER_NAME
from lightning_modules.peft.record import record_of, shape_faults
from lightning_modules.peft.trained_alone import trained_names

WEIGHTS, SETTINGS, BASE = "adapter_model.safetensors", "adapter_config.json", "base_model.json"

PREFIX = "base_model.model."
"""Of peft's wrapper around a model, in the names of the weights."""


def save_adapter(causal_lm: PreTrainedModel, folder: Path) -> int:
    """Write the adapter, and whatever trained beside it, into a folder that plain peft loads.

    Returns:
        Bytes of the weights.
    """
    record = record_of(causal_lm)
    assert record is not None
    model: Any = causal_lm
    config = model.peft_config[ADAPTER_NAME]
    config.base_model_name_or_path = causal_lm.config.name_or_path or None
    config.target_modules = record["target_modules"]  # in order; peft holds a set
    config.modules_to_save = record["trained_modules"] or None
    config.inference_mode = True
    parameters = {name: p for name, p in causal_lm.named_parameters(remove_duplicate=False) if p.requires_grad}
    # Else peft would load trained embeddings and leave the head that is tied to them as the base model has it. It wants
    # a tensor for each, and safetensors that they are not the same.
    config.ensure_weight_tying = len({id(p) for p in parameters.values()}) < len(parameters)
    weights = {PREFIX + _without_adapter_name(name): p.detach().clone() for name, p in parameters.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    text = json.dumps({"fingerprint": record["base"], "name": record["name"]}, indent=2)
    (folder / BASE).write_text(text + "\n", encoding="utf-8")
    return (folder / WEIGHTS).stat().st_size


def load_adapter(causal_lm: PreTrainedModel, folder: str | Path) -> None:
    """Load the weights of a folder of peft's into a model with a fresh adapter of the same shape.

    Raises:
        ValueError: There is none, it is of another shape, or of another base model.
    """
    folder, record = Path(folder).expanduser(), record_of(causal_lm)
    assert record is not None
    what = f"peft.from_adapter={folder}"
    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{what} holds no {SETTINGS} and {WEIGHTS} of PEFT; set peft.from_adapter")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if faults := shape_faults(_shape(settings), record):
        raise ValueError(f"{what} is an adapter of another shape: {'; '.join(faults)}")
    if (folder / BASE).is_file():
        base = json.loads((folder / BASE).read_text(encoding="utf-8"))
        if base["fingerprint"] != record["base"]:
            raise ValueError(
                f"{what} is an adapter of another base model ({base['name']}) than this run's ({record['name']}), or of"
                " other weights under that name; set model.source to its own"
            )
    stored = {_trained_name(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    names = {name for name, p in causal_lm.named_parameters() if p.requires_grad}
    expected = trained_names(causal_lm)
    if not names <= stored.keys() <= expected:
        odd = sorted((names - stored.keys()) | (stored.keys() - expected))
        raise ValueError(f"{what} does not fit the model: {odd[0]} and {len(odd) - 1} more are on one side alone")
    try:
        causal_lm.load_state_dict(stored, strict=False)
    except RuntimeError as error:  # sizes of other layers
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{what} does not fit the model ({reason})") from error


def refuse_other_rope(folder: str | Path, causal_lm: PreTrainedModel, *, key: str) -> None:
    """Refuse an adapter that was trained with another RoPE than the model has: it would load, and be read wrongly.

    Args:
        folder: The adapter's; its RoPE is that of the config.json beside it, or of the base model it names by a folder.
        causal_lm: With its RoPE patched.
        key: The setting that named the folder, for the message.

    Raises:
        ValueError: It was, or nothing says with which.
    """
    folder = Path(folder).expanduser()
    ours = json.loads(causal_lm.config.to_json_string(use_diff=False)).get("rope_parameters")
    theirs = rope_beside(folder)
    if theirs != ours:
        says = f"was trained with rope_parameters={theirs}" if theirs else "does not say with which RoPE it was trained"
        raise ValueError(f"{key}={folder} {says}, where this run's is {ours}; set rope to the adapter's, or {key}")


def rope_beside(folder: Path) -> dict[str, Any] | None:
    """The RoPE that an adapter was trained with, where its folder or the base model's says it."""
    base = json.loads((folder / SETTINGS).read_text(encoding="utf-8")).get("base_model_name_or_path")
    for file in (folder / "config.json", *([Path(base).expanduser() / "config.json"] if base else [])):
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8")).get("rope_parameters")
    return None


def _without_adapter_name(name: str) -> str:
    return name.replace(f".{ADAPTER_NAME}.weight", ".weight")


def _trained_name(stored: str) -> str:
    """peft's name of a weight on disk -> its name in the model with the adapter in it."""
    name = stored.removeprefix(PREFIX)
    for matrix in ("lora_A", "lora_B"):
        name = name.replace(f".{matrix}.weight", f".{matrix}.{ADAPTER_NAME}.weight")
    return name


def _shape(settings: dict[str, Any]) -> dict[str, Any]:
    """What peft's settings say in the words of a record; `target_modules` are compared by the weights."""
    return {
        "r": settings["r"],
        "alpha": float(settings["lora_alpha"]),
        "rslora": bool(settings.get("use_rslora")),
    }
