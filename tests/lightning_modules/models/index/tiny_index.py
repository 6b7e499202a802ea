"""Index-1.9B of a few thousand parameters, its checkpoint in the original's layout, and its arithmetic again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaModel

from lightning_modules.attention.registry import register_attention_functions
from lightning_modules.models.index.configuration import IndexConfig
from lightning_modules.models.index.modeling import IndexForCausalLM
from tests.lightning_modules.tiny_models import tiny_config

SETTINGS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough that attention matters to the logits
}

ORIGINAL_NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(2)
        for part in (
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ),
    "model.norm.weight",
    "lm_head.weight",
]

MARKER = "the code of the checkpoint was run"


def tiny_index(*, attention: str = "sdpa", seed: int = 0, **overrides: Any) -> Any:
    """Rows of its head have lengths from 0.2 to 5 times the others', so that forgetting to normalise is seen."""
    register_attention_functions()
    torch.manual_seed(seed)
    model = IndexForCausalLM(IndexConfig(**{**SETTINGS, "pad_token_id": None, **overrides}))
    with torch.no_grad():
        model.lm_head.weight.mul_(torch.exp(torch.empty(model.config.vocab_size, 1).uniform_(-1.6, 1.6)))
    model.set_attn_implementation(attention)
    return model.eval()


def original_checkpoint(folder: Path, *, weights: str = "safetensors", **config: Any) -> dict[str, torch.Tensor]:
    """Writes a checkpoint with the original's names and keys, beside code that leaves a file when it is run.

    Args:
        folder: Where to.
        weights: safetensors or bin.
        **config: Keys of config.json that differ.

    Returns:
        The fp32 weights by name.
    """
    generator = torch.Generator().manual_seed(3)
    shapes = {"embed_tokens": (64, 64), "lm_head": (64, 64), "norm": (64,), "layernorm": (64,)}
    shapes |= {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}
    state: dict[str, torch.Tensor] = {}
    for name in ORIGINAL_NAMES:
        part = name.split(".")[-2]
        shape = shapes.get(part.split("_")[-1] if part.endswith("layernorm") else part, (64, 64))
        state[name] = 0.2 * torch.randn(shape, generator=generator) + (len(shape) == 1)
    # transformers of 2024 still kept a table of frequencies in every layer.
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.full((8,), 9.0) for layer in range(2)}
    if weights == "bin":
        torch.save({**state, **buffers}, folder / "pytorch_model.bin")
    else:
        save_file({**state, **buffers}, folder / "model.safetensors", metadata={"format": "pt"})
    original = {
        **SETTINGS,
        "architectures": ["IndexForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_index.IndexConfig",
            "AutoModel": "modeling_index.IndexModel",
            "AutoModelForCausalLM": "modeling_index.IndexForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "max_length": 64,
        "model_type": "index",
        "norm_head": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.39.2",
        "use_cache": True,
    }
    (folder / "config.json").write_text(json.dumps({**original, **config}))
    for name in ("configuration_index", "modeling_index"):
        code = f"from pathlib import Path\nPath({str(folder / MARKER)!r}).touch()\nraise SystemExit({MARKER!r})\n"
        (folder / f"{name}.py").write_text(code)
    return state


def reference_backbone(state: dict[str, torch.Tensor], **config: Any) -> LlamaModel:
    """transformers' own Llama with the backbone's weights."""
    model = LlamaModel(tiny_config("llama", num_key_value_heads=4, **config))  # type: ignore[arg-type]
    prefix = "model."
    model.load_state_dict({name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)})
    return model.eval()


def reference_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """hidden [..., H] and weight [V, H] -> [..., V]: a product with a row, divided by the row's length."""
    lengths = weight.square().sum(-1).sqrt()  # [V]
    return torch.einsum("...h,vh->...v", hidden, weight) / lengths
