"""QLoRA: LoRA over a base model whose linear layers are held in 4 bits.

Cost: 5.4 GiB of weights in place of 15.0 for an 8B Llama, and each weight is made bf16 again whenever it is used. Long
contexts gain little by it on a large GPU, where activations outweigh the weights; it is for small ones.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.peft.lora import Lora


@dataclass(frozen=True)
class QLora(Lora):
    """LoRA over NF4 weights (NormalFloat of 4 bits, bitsandbytes); the output head and embeddings stay as they are.

    The layers are quantised when the model moves to the GPU.

    Args:
        double_quantization: Quantise the scales of the blocks of weights as well, 0.37 bits a parameter less.

    Reference:
        Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """

    double_quantization: bool = True

    def _prepare_base(self, causal_lm: PreTrainedModel, targets: list[str]) -> None:
        refuse_without_gpu()
        for name in targets:
            causal_lm.set_submodule(name, quantised(causal_lm.get_submodule(name), double=self.double_quantization))
        model: Any = causal_lm
        model.is_loaded_in_4bit = True  # peft asks this before it looks at a layer


def refuse_without_gpu() -> None:
    """What QLoRA needs and this machine has not, in a sentence.

    Raises:
        ValueError: bitsandbytes or a GPU is missing.
    """
    if not torch.cuda.is_available():
        raise ValueError("peft=qlora needs a CUDA GPU, and there is none here; set peft=lora")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "peft=qlora needs bitsandbytes, which is not installed; run pip install -e '.[gpu]', or set peft=lora"
        )


def quantised(linear: nn.Module, *, double: bool) -> nn.Module:
    """A layer of bitsandbytes with the weight of a linear layer, to be quantised to NF4 on its way to the GPU."""
    import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]

    assert isinstance(linear, nn.Linear)
    new = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=double,
        quant_type="nf4",
    )
    new.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=double, quant_type="nf4"
    )
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    return new
