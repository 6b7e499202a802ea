"""Index-1.9B: a Llama whose output matrix has unit rows, in transformers' own Llama pieces.

The normalisation runs in every forward, training or not, so that the stored weight is never rewritten. The original
does so in training and in evaluation writes the normalised rows over the weight once, which gives the same logits but
resets the length of the rows for a training that goes on (second-hand: PaddleFormers; Baichuan 2, where this head is
from, says that the second mode is only for speed).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from lightning_modules.models.index.configuration import IndexConfig

# H hidden size, V vocabulary


class NormalisedHead(nn.Linear):
    """Logits as products with rows of length 1: hidden @ (W / ||W||).T, W [V, H] by rows.

    The length of a row changes no logit, and its gradient is orthogonal to the row. Costs one [V, H] in fp32 a forward;
    to generate much on a CPU, where that is several times the product itself, take `plain_llama` of the model.

    Reference:
        Baichuan 2, arXiv:2309.10305, section 2, NormHead; Index-1.9B technical report, Norm-Head. The formula and its
        epsilon, 1e-12, are those of `torch.nn.functional.normalize`, which Baichuan 2's published module calls;
        Index's own module is known second-hand (PaddleFormers' port, exllamav2 issue 546).
    """

    def output_matrix(self) -> torch.Tensor:
        """[V, H], differentiable in the weight; in fp32 for a weight of bf16 too, whose lengths would be coarse."""
        return F.normalize(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)), dim=-1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # nn.Linear's name for it
        return F.linear(input, self.output_matrix().to(input.dtype))


class IndexModel(LlamaModel):
    """The backbone, which is Llama's."""

    config_class = IndexConfig


class IndexForCausalLM(LlamaForCausalLM):
    """The backbone with its head: a `NormalisedHead` where the config says norm_head, Llama's otherwise.

    Parameters have the original repository's names, so that its checkpoints need no mapping of keys.
    """

    config_class = IndexConfig

    def __init__(self, config: IndexConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # Llama's own would build its head, and draw every weight twice
        self.model = IndexModel(config)
        self.vocab_size = config.vocab_size
        head = NormalisedHead if config.norm_head else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Keeps the head normalised: transformers' resizing of a vocabulary hands a plain `nn.Linear` over."""
        if self.config.norm_head and not isinstance(new_embeddings, NormalisedHead):
            vocab_size, hidden_size = new_embeddings.weight.shape
            head = NormalisedHead(hidden_size, vocab_size, bias=False, device="meta")
            head.weight = new_embeddings.weight
            new_embeddings = head
        self.lm_head = new_embeddings


def register_index() -> None:
    """Makes model_type "index" known to the Auto classes, whose `from_pretrained` then takes this code; idempotent."""
    AutoConfig.register("index", IndexConfig, exist_ok=True)
    AutoModel.register(IndexConfig, IndexModel, exist_ok=True)
    AutoModelForCausalLM.register(IndexConfig, IndexForCausalLM, exist_ok=True)
