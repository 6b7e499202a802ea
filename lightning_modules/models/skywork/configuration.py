"""Skywork-13B, which is a Llama under another name, read as one without running the code beside its weights.

What is known, and from where (`modeling_skywork.py` itself was not read on the hub):

- its shape, from the README of github.com/SkyworkAI/Skywork: 52 layers, hidden size 4608, 12288 in the MLP, 36 heads of
  128, vocabulary 65536, 4096 tokens;
- names of parameters and keys of `config.json`, from NVIDIA's converter, which ran the original (TensorRT-LLM,
  `examples/skywork/convert_checkpoint.py`): Llama's, no biases, an output matrix of its own; later versions of
  TensorRT-LLM read `SkyworkForCausalLM` with the class of Llama;
- the arithmetic, line by line, from the copy of the original in the package deep_training 0.3.0
  (`nlp/models/skywork`): Llama's, with one further scaling, `rope_scaling: {type: ntk, factor: s}`, which multiplies
  the base by s. As a Llama that is another `rope_theta`.

So there is no model of ours: what the Auto classes load is transformers' `LlamaForCausalLM`, and what is exported is a
checkpoint that every reader of Llama opens.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig

THEIR_OWN = ("model_type", "architectures", "auto_map", "pretraining_tp")
"""Keys that name their code, or how a product was cut into slices of the same sum."""


class SkyworkConfig(LlamaConfig):
    """What `model_type: skywork` in a `config.json` is read with; what comes out is a `LlamaConfig`."""

    model_type = "skywork"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The Llama that a Skywork is.

        Args:
            config_dict: The content of its `config.json`.
            **kwargs: As of transformers' own.

        Raises:
            ValueError: Its RoPE is scaled by ntk with a factor that is no number.
        """
        own = {key: value for key, value in config_dict.items() if key not in THEIR_OWN}
        return LlamaConfig.from_dict(_plain_rope(own), **kwargs)


def register_skywork() -> None:
    """Makes model_type "skywork" known to the Auto classes, which then load a Llama; idempotent."""
    AutoConfig.register("skywork", SkyworkConfig, exist_ok=True)


def _plain_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The same table in Llama's words, which have no ntk."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") != "ntk":
        return config
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor <= 0:
        raise ValueError(f"rope_scaling={scaling} has no factor above 0; correct it in config.json")
    return {**config, "rope_theta": config.get("rope_theta", 10000.0) * factor, "rope_scaling": None}
