from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from lightning_modules.optim.adamw import adamw
from tests.lightning_modules.tiny_models import tiny_model


def decayed_names(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }


@pytest.mark.parametrize("decay_norms", [False, True])
def test_norms_decay_only_when_asked(decay_norms: bool) -> None:
    model = tiny_model("qwen2")  # has biases too
    vectors = {name for name, _ in model.named_parameters() if "norm" in name or name.endswith(".bias")}
    everything = {name for name, _ in model.named_parameters()}
    assert len(vectors) == 5 + 6
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, decay_norms=decay_norms)
    assert decayed_names(model, optimizer) == (everything if decay_norms else everything - vectors)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(everything)


def test_one_step_equals_the_formula() -> None:
    """Loshchilov and Hutter: theta -= lr * (m / (sqrt(v) + eps) + wd * theta), with bias correction."""
    matrix = torch.nn.Linear(3, 2, bias=True)
    start = {name: p.detach().clone() for name, p in matrix.named_parameters()}
    optimizer = adamw(matrix, lr=0.01, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)
    matrix(torch.ones(1, 3)).pow(2).sum().backward()
    gradients = {name: p.grad.clone() for name, p in matrix.named_parameters() if p.grad is not None}
    optimizer.step()
    for name, parameter in matrix.named_parameters():
        g = gradients[name]  # at the first step m / (1 - beta1) = g and v / (1 - beta2) = g^2
        decay = 0.1 if name == "weight" else 0.0
        expected = start[name] - 0.01 * (g / (g.abs() + 1e-8) + decay * start[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_are_not_optimised() -> None:
    model = tiny_model("llama")
    model.model.requires_grad_(False)
    optimizer = adamw(model, lr=1e-3)
    (group,) = optimizer.param_groups
    assert [p is model.lm_head.weight for p in group["params"]] == [True]
