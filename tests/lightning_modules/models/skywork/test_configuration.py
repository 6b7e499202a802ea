from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.loading import PretrainedModel

# T tokens, H heads, D head dim

NUM_HEADS, HEAD_DIM, NUM_LAYERS = 4, 16, 2
IDS = torch.randint(0, 64, (24,), generator=torch.Generator().manual_seed(1))
MARKER = "the code of the checkpoint was run"

SHAPES = {
    **{f"self_attn.{part}_proj": (64, 64) for part in "qkvo"},
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
    "input_layernorm": (64,),
    "post_attention_layernorm": (64,),
}


def original_checkpoint(folder: Path, **keys: Any) -> dict[str, torch.Tensor]:
    """A tiny Skywork with the names that NVIDIA's converter reads, beside code that leaves a file when it is run."""
    layers = {f"model.layers.{k}.{part}": shape for k in range(NUM_LAYERS) for part, shape in SHAPES.items()}
    shapes = {"model.embed_tokens": (64, 64), **layers, "model.norm": (64,), "lm_head": (64, 64)}
    generator = torch.Generator().manual_seed(3)
    state = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    for name in state:
        state[name] += 1.0 if "norm" in name else 0.0
    config = {
        "architectures": ["SkyworkForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_skywork.SkyworkConfig",
            "AutoModelForCausalLM": "modeling_skywork.SkyworkForCausalLM",
        },
        "model_type": "skywork",
        "pretraining_tp": 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **keys,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("configuration_skywork", "modeling_skywork"):
        code = f"import pathlib\npathlib.Path({str(folder / MARKER)!r}).touch()\n"
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


def written_out_logits(state: dict[str, torch.Tensor], *, rope_theta: float) -> torch.Tensor:
    """The arithmetic of the original, of one row: norm before, rotated halves, gated MLP, no biases."""
    length = len(IDS)
    frequencies = [rope_theta ** (-2 * (j % (HEAD_DIM // 2)) / HEAD_DIM) for j in range(HEAD_DIM)]
    angles = torch.tensor([[m * frequency for frequency in frequencies] for m in range(length)], dtype=torch.float64)
    cos, sin = angles.cos().float(), angles.sin().float()  # [T, D]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def heads(x: torch.Tensor, name: str) -> torch.Tensor:
        return (x @ state[f"{name}.weight"].T).view(length, NUM_HEADS, HEAD_DIM).transpose(0, 1)  # [H, T, D]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    x = state["model.embed_tokens.weight"][IDS]
    for k in range(NUM_LAYERS):
        layer = f"model.layers.{k}"
        normed = norm(x, f"{layer}.input_layernorm")
        query, key, value = (heads(normed, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        scores = rotated(query) @ rotated(key).transpose(-1, -2) / math.sqrt(HEAD_DIM)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        seen = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, -1)
        x = x + seen @ state[f"{layer}.self_attn.o_proj.weight"].T
        normed = norm(x, f"{layer}.post_attention_layernorm")
        gate, up, down = (state[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        x = x + (F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    return norm(x, "model.norm") @ state["lm_head.weight"].T


@pytest.mark.parametrize(
    ("keys", "rope_theta"),
    [({}, 10000.0), ({"rope_theta": 500000.0}, 500000.0), ({"rope_scaling": {"type": "ntk", "factor": 100}}, 1e6)],
)
def test_original_layout_gives_the_logits_of_the_original(
    keys: dict[str, Any], rope_theta: float, tmp_path: Path
) -> None:
    state = original_checkpoint(tmp_path, **keys)
    model = PretrainedModel(str(tmp_path), attention="sdpa").load().eval()
    assert type(model) is LlamaForCausalLM
    with torch.no_grad():
        logits = model(IDS[None]).logits[0]
    torch.testing.assert_close(logits, written_out_logits(state, rope_theta=rope_theta), rtol=1e-4, atol=1e-4)
    assert not (tmp_path / MARKER).exists()


def test_what_is_written_again_is_a_llama(tmp_path: Path) -> None:
    original_checkpoint(tmp_path, rope_scaling={"type": "ntk", "factor": 2.0})
    config = PretrainedModel(str(tmp_path)).config()
    assert type(config) is LlamaConfig
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "llama"
    assert "auto_map" not in written
    assert "SkyworkForCausalLM" not in str(written)
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 20000.0}


def test_linear_scaling_stays_what_it_is(tmp_path: Path) -> None:
    original_checkpoint(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    parameters: Any = PretrainedModel(str(tmp_path)).config().rope_parameters
    assert (parameters["rope_type"], parameters["factor"], parameters["rope_theta"]) == ("linear", 4.0, 10000.0)


def test_ntk_without_a_factor_is_refused(tmp_path: Path) -> None:
    original_checkpoint(tmp_path, rope_scaling={"type": "ntk"})
    with pytest.raises(ValueError, match=r"rope_scaling=.*has no factor above 0; correct it in config\.json"):
        PretrainedModel(str(tmp_path)).config()
