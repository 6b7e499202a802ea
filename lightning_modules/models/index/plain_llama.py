"""Index-1.9B as a checkpoint that every reader of Llama opens: the rows of the head are normalised once, and stored."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.models.index.configuration import IndexConfig
from lightning_modules.models.index.modeling import IndexForCausalLM, NormalisedHead
from lightning_modules.rope.config import current_rope_parameters
from lightning_modules.rope.patch import patch_rope


def plain_llama(model: IndexForCausalLM) -> LlamaForCausalLM:
    """The Llama that gives the same logits; it shares every weight but the head's with `model`.

    To read and to export, not to train: without the normalisation the rows of its head would grow again.

    Args:
        model: With its RoPE patched as it should be exported.
    """
    assert isinstance(model.config, IndexConfig)
    config = plain_llama_config(model.config)
    state = dict(model.state_dict())
    if isinstance(model.lm_head, NormalisedHead):
        weight = model.lm_head.weight
        state["lm_head.weight"] = model.lm_head.output_matrix().detach().to(weight.dtype)
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama.load_state_dict(state, assign=True)
    llama.tie_weights()
    # The RoPE tables are in no state dict and still on meta.
    patch_rope(llama, current_rope_parameters(config), max_position_embeddings=config.max_position_embeddings)
    llama.to(model.device)  # pyright: ignore[reportArgumentType]
    llama.generation_config = copy.deepcopy(model.generation_config)
    return llama.train(model.training)


def plain_llama_config(config: IndexConfig) -> LlamaConfig:
    """The same sizes, tokens and RoPE under model_type "llama"; untied if the head's rows are not the embeddings'."""
    fields = config.to_dict()
    for key in ("model_type", "norm_head", "architectures", "transformers_version"):
        fields.pop(key, None)
    fields["tie_word_embeddings"] = bool(config.tie_word_embeddings and not config.norm_head)
    fields["attn_implementation"] = config._attn_implementation
    return LlamaConfig(**fields)
