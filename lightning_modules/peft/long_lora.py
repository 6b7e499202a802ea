"""LongLoRA's plus: embeddings and norms train too, for LoRA alone closes little of the gap to full fine-tuning.

They train in place and in fp32, and hand on the dtype that they got, so that activations of a bf16 model stay bf16.
Its other half, shifted sparse attention while training, is `attention=shifted_sparse`.
Cost: 2 % of a 7B Llama's parameters train in place of 0.1 %; nearly all of them are the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.peft.lora import Lora, short_names


@dataclass(frozen=True)
class LongLora(Lora):
    """LoRA with trainable embeddings and norms.

    Where the model's output head is tied to the embeddings, it trains with them.

    Args:
        train_embeddings: Train the input embeddings.
        train_norms: Train the norms of the layers and the last one.

    Reference:
        Chen et al. 2023, arXiv:2309.12307, section 3.3 and table 2.
    """

    train_embeddings: bool = True
    train_norms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.train_embeddings or self.train_norms):
            raise ValueError("peft.train_embeddings and peft.train_norms are both false; set one, or peft=lora")

    def _train_besides(self, causal_lm: PreTrainedModel) -> list[str]:
        embeddings = causal_lm.get_input_embeddings()
        chosen = {
            name: module
            for name, module in causal_lm.named_modules()
            if (self.train_embeddings and module is embeddings) or (self.train_norms and _is_norm(module))
        }
        for module in chosen.values():
            for parameter in module.parameters(recurse=False):
                dtype = parameter.dtype
                parameter.data = parameter.data.float()  # bf16 would round a step's change away
                parameter.requires_grad_(True)
                if dtype != torch.float32:
                    module.register_forward_hook(_handing_on(dtype))
        return short_names(list(chosen), (name for name, _ in causal_lm.named_modules()))


def _is_norm(module: nn.Module) -> bool:
    """Norms have a class of their own in each architecture of transformers, and one vector."""
    return type(module).__name__.endswith("Norm") and all(p.ndim == 1 for p in module.parameters())


def _handing_on(dtype: torch.dtype) -> Any:
    def cast(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(dtype)

    return cast
