"""What a training step of a Llama costs in FLOPs, and the least time that a GPU can take for it.

Model FLOPs count what the mathematics needs: causal attention as a half, no recomputation. Conventions differ by up to
a factor of two (torchtitan counts the whole square of attention), so a share of the peak says nothing without this:

    linear     2 N T                    N weights of matrix products, output head included, embedding table not
    attention  2 L (heads * head_dim) sum n (n + 1)    over documents of n tokens: QK and PV, causal
    full       3 linear + 3 attention
    LoRA       2 linear + 6 N_lora T + 3 attention     frozen matrices get no gradient

Reference: Narayanan et al. 2021, arXiv:2104.04473 (model FLOPs); Dao 2023, arXiv:2307.08691 (attention's backward runs
2.5 times the products of its forward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# H200, measured: matrix products and copies; attention kernels as the roof of a step assumes them
PEAK_DATASHEET = 989e12
MATMUL = 790e12
ATTENTION_FORWARD, ATTENTION_BACKWARD = 600e12, 520e12


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    lora_rank: int = 16

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer of one decoder layer."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = [(hidden, query), (hidden, kv), (hidden, kv), (query, hidden)]
        return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def num_matmul(self) -> int:
        """Weights of matrix products."""
        return self.num_layers * sum(a * b for a, b in self.linears) + self.hidden_size * self.vocab_size

    @property
    def num_lora(self) -> int:
        """Weights of adapters on all linear layers but the head."""
        return self.num_layers * sum(self.lora_rank * (a + b) for a, b in self.linears)

    def attention_forward(self, lengths: Sequence[int]) -> int:
        """FLOPs of causal attention's forward over documents of such lengths."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * sum(n * (n + 1) for n in lengths)

    def model_flops(self, lengths: Sequence[int], *, lora: bool) -> int:
        """FLOPs of one training step."""
        tokens, attention = sum(lengths), 3 * self.attention_forward(lengths)
        if not lora:
            return 6 * self.num_matmul * tokens + attention
        return 4 * self.num_matmul * tokens + 6 * self.num_lora * tokens + attention

    def roof_seconds(self, lengths: Sequence[int], *, lora: bool, recompute: str = "none") -> float:
        """The least time of a step on an H200.

        Args:
            lengths: Tokens of each document.
            lora: Adapters train, the rest is frozen.
            recompute: none, full, or keep_attention: what the backward computes again, head excepted.
        """
        tokens = sum(lengths)
        layers = 2 * (self.num_matmul - self.hidden_size * self.vocab_size) * tokens
        linear = self.model_flops(lengths, lora=lora) - 3 * self.attention_forward(lengths)
        linear += layers if recompute != "none" else 0
        forwards = 2 if recompute == "full" else 1
        attention = self.attention_forward(lengths)
        return linear / MATMUL + attention * (forwards / ATTENTION_FORWARD + 2.5 / ATTENTION_BACKWARD)


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256)
TOY = Shape(2, 64, 160, 4, 2, 16, 256, lora_rank=4)
