"""Loss and gradients of a small model under a setting of its activations, over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model

from datamodules.step_batches import collate
from lightning_modules.attention.registry import PER_DOCUMENT_ATTENTION
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from tests.lightning_modules.tiny_training import TinySource, uneven_rows

NUM_LAYERS = 5


class Gradients(NamedTuple):
    loss: torch.Tensor
    by_name: dict[str, torch.Tensor]


def make_model(
    activations: ActivationMemory | None = None,
    *,
    lora: bool = False,
    lora_dropout: float = 0.0,
    attention: str = PER_DOCUMENT_ATTENTION,
    change: Callable[[Any], None] = lambda model: None,
    **settings: Any,
) -> CausalLMWithLoss:
    """A five-layer Llama, or with LoRA beside every frozen linear layer of it."""
    model: Any = TinySource(attention=attention, settings={"num_hidden_layers": NUM_LAYERS, **settings}).load()
    if lora:
        model.requires_grad_(False)
        config = LoraConfig(r=4, target_modules="all-linear", exclude_modules=["lm_head"], lora_dropout=lora_dropout)
        inject_adapter_in_model(config, model)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide what reaches A
                parameter.data.normal_(std=0.1, generator=generator)
    change(model)
    if activations is not None:
        activations.apply(model)
    return CausalLMWithLoss(model.train(), shifted_group_size=8)


def gradients_of(model: CausalLMWithLoss, *, bf16: bool = False) -> Gradients:
    """Of two micro-batches of packed documents, added up; a seed of its own, so that dropout draws the same."""
    torch.manual_seed(3)
    losses = []
    rows = uneven_rows()
    for batch in (collate(rows[:2]), collate(rows[2:])):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(batch).loss_sum
            loss.backward()
        losses.append(loss.detach())
    named = {name: p.grad for name, p in model.named_parameters()}
    return Gradients(torch.stack(losses), {name: grad for name, grad in named.items() if grad is not None})


def layers(model: CausalLMWithLoss) -> list[Any]:
    return list(model.causal_lm.get_decoder().layers)  # type: ignore[arg-type]
