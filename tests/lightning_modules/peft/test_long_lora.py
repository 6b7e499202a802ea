from __future__ import annotations

import pytest
import torch

from datamodules.step_batches import collate
from lightning_modules.base import refuse_rounded_training
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.peft.long_lora import LongLora
from tests.lightning_modules.peft.adapted import base_model
from tests.lightning_modules.tiny_training import make_row


@pytest.mark.parametrize("tied", [False, True])
def test_trained_embeddings_and_norms_get_fp32_gradients_on_a_bf16_base(tied: bool) -> None:
    model = base_model(dtype=torch.bfloat16, tie_word_embeddings=tied)
    LongLora(r=2, target_modules=["q_proj"]).apply(model)
    refuse_rounded_training(model)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        layer.self_attn.q_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = CausalLMWithLoss(model)(collate([make_row((20, 12), seed=1)])).loss_sum
    loss.backward()
    assert seen == [torch.bfloat16] * 4  # the residual stream and what the norms hand on
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in trained.items() if "lora_A" not in name)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_all_of_a_bf16_model_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"are held in bfloat16, which rounds .*; set model\.source\.dtype=float32"):
        refuse_rounded_training(base_model(dtype=torch.bfloat16))
