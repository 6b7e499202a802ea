"""What a training step of the benchmarks' models costs in FLOPs, and the least time that an H200 can take for it.

The count is that of `recipes.planning.flops`, which says the conventions; here are the shapes and the peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from recipes.planning import flops
from recipes.planning.dimensions import Dimensions
from recipes.planning.known_models import LLAMA3_8B

# H200, measured: matrix products and copies; attention kernels as the roof of a step assumes them
PEAK_DATASHEET = 989e12
MATMUL = 790e12
ATTENTION_FORWARD, ATTENTION_BACKWARD = 600e12, 520e12


@dataclass(frozen=True, kw_only=True)
class Shape(Dimensions):
    """A Llama's sizes, and the rank of adapters on all its linear layers but the head."""

    lora_rank: int = 16

    @property
    def num_lora(self) -> int:
        """Weights of the adapters."""
        return self.num_layers * sum(self.lora_rank * (a + b) for a, b in self.linears.values())

    def model_flops(self, lengths: Sequence[int], *, lora: bool) -> float:
        """FLOPs of one training step over documents of such lengths."""
        adapters = self.num_lora if lora else None
        return flops.model_flops(self, tokens=sum(lengths), seen=flops.pairs(lengths), adapter_weights=adapters)

    def roof_seconds(self, lengths: Sequence[int], *, lora: bool, recompute: str = "none") -> float:
        """The least time of a step on an H200.

        Args:
            lengths: Tokens of each document.
            lora: Adapters train, the rest is frozen.
            recompute: none, full, or keep_attention: what the backward computes again, head excepted.
        """
        step = flops.step_flops(
            self,
            tokens=sum(lengths),
            seen=flops.pairs(lengths),
            adapter_weights=self.num_lora if lora else None,
            recompute=recompute,
        )
        seconds = step.linear / MATMUL + step.attention_forward / ATTENTION_FORWARD
        return seconds + step.attention_backward / ATTENTION_BACKWARD


LLAMA_8B = Shape(**asdict(LLAMA3_8B))
TOY = Shape(
    num_layers=2,
    hidden_size=64,
    intermediate_size=160,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    lora_rank=4,
)
