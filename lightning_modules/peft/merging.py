"""An adapter added into the weights, which makes the model an ordinary one again."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.peft.lora import ADAPTER_NAME


@torch.no_grad()
def merge_adapter(causal_lm: PreTrainedModel) -> None:
    """Add the adapter into the weights, in place and in fp32; nothing of it is left.

    A base model in bf16 becomes fp32 first, which changes no value, and one in 4 bits the numbers that these stand for:
    rounding the sum to less would not give the logits that were trained.

    Raises:
        ValueError: If a sum is not finite.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    model: Any = causal_lm
    quantised = getattr(model, "is_loaded_in_4bit", False)
    if quantised:
        causal_lm.to("cuda")  # type: ignore[arg-type]  # on the way, bitsandbytes makes of the weights what was trained
    for handle in model.adapter_state_hooks:
        handle.remove()
    for name, layer in list(causal_lm.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bitsandbytes, that 4 bits were rounded, which is not asked of it here
            weight = dequantize_module_weight(base).float()
        weight = weight + layer.get_delta_weight(ADAPTER_NAME).float()  # type: ignore[operator]
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} with its adapter is not finite; export an earlier checkpoint")
        linear = _linear(weight, base.bias)
        causal_lm.set_submodule(name, linear.cpu() if quantised else linear)  # whole, it may not fit the GPU
    if quantised:
        causal_lm.cpu()
    causal_lm.float()
    for attribute in ("adapter_record", "adapter_state_hooks", "peft_config", "is_loaded_in_4bit"):
        if attribute in vars(model):
            delattr(model, attribute)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias.float())
    return linear
