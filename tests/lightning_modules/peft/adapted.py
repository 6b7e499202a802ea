"""Tiny models with an adapter that does something."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from lightning_modules.attention.registry import register_attention_functions
from lightning_modules.peft.lora import Lora
from tests.lightning_modules.tiny_models import tiny_model


def base_model(architecture: str = "llama", *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """With RoPE tables in fp32, as loading gives it."""
    register_attention_functions()
    model = tiny_model(architecture, attention="lcr_per_document", **options)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def adapted_model(adapter: Lora, architecture: str = "llama", **options: Any) -> Any:
    """B is zero at first, which would hide all that it does; here it is drawn."""
    model = base_model(architecture, **options)
    adapter.apply(model)
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: Any, *, seed: int = 9) -> None:
    """Moves whatever trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def logits(model: Any, *, num_tokens: int = 24) -> torch.Tensor:
    ids = torch.randint(0, 64, (2, num_tokens), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval()(input_ids=ids, document_ids=torch.zeros_like(ids), use_cache=False).logits


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Of every byte."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def frozen(model: Any) -> dict[str, torch.Tensor]:
    """The base model's weights by the names that it has without an adapter."""
    return {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if not p.requires_grad}
