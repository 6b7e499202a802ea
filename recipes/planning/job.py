"""What of a run decides its memory and its time, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from recipes.planning.activations import Widths
from recipes.planning.dimensions import Dimensions

MOMENT_BYTES = {"adamw": 8.0, "adamw_bf16": 4.0, "adamw_8bit": 2.0 + 8 / 256}
"""Bytes of optimizer state a parameter that trains; in 8 bits, blocks of 256 share an fp32 scale. Muon: see `Job`."""


@dataclass(frozen=True, kw_only=True)
class MemoryOption:
    """One way to hold activations, as conf/memory says it."""

    recompute: str = "none"
    layers_per_checkpoint: int | None = None
    offload_to_host: bool = False
    keep_on_device: int = 0
    mlp_tile_size: int | None = None
    loss_chunk_size: int = 1024


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA beside a frozen model.

    Args:
        rank: Of its matrices.
        targets: Linear layers of a decoder layer that have one.
        dropout: Whether it drops some of its input.
        four_bit: The layers beside it are held in NF4.
        trains_embeddings: The embedding trains too, in fp32.
        trains_norms: So do the norms.
    """

    rank: int
    targets: tuple[str, ...]
    dropout: bool = False
    four_bit: bool = False
    trains_embeddings: bool = False
    trains_norms: bool = False

    def num_weights(self, model: Dimensions) -> int:
        """Of the adapter's matrices."""
        linears = model.linears
        return model.num_layers * sum(self.rank * sum(linears[name]) for name in self.targets)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, as far as memory and time go.

    Args:
        model: Sizes.
        row_tokens: Of a row.
        rows: Of a micro-batch.
        micro_batches: Of one rank and step.
        ranks: Devices.
        strategy: single, ddp or fsdp.
        reduces_always: With fsdp, gradients are reduced with every micro-batch, and not once a step.
        precision: bf16 or fp32, of the computing.
        bf16_weights: Frozen weights are held in bf16.
        adapter: What trains beside a frozen model; None where all of it trains.
        optimizer: Name of the option.
        memory: How activations are held.
        shares_rows: Rows hold several documents or padding that attention keeps apart.
        on_gpu: Whether devices are GPUs.
    """

    model: Dimensions
    row_tokens: int
    rows: int = 1
    micro_batches: int = 1
    ranks: int = 1
    strategy: str = "single"
    reduces_always: bool = True
    precision: str = "bf16"
    bf16_weights: bool = False
    adapter: Adapter | None = None
    optimizer: str = "adamw"
    memory: MemoryOption = field(default_factory=MemoryOption)
    shares_rows: bool = False
    on_gpu: bool = True

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.rows * self.row_tokens

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp"

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and optimizer state are cut into."""
        return self.ranks if self.sharded else 1

    @property
    def compute_bytes(self) -> int:
        return 4 if self.precision == "fp32" else 2

    @property
    def widths(self) -> Widths:
        """How wide what is held is."""
        narrow = self.precision == "bf16" and (self.sharded or self.bf16_weights)
        adapter = self.adapter
        return Widths(
            model=self.model,
            residual=2 if narrow else 4,
            compute=self.compute_bytes,
            weights_train=adapter is None,
            norms_train=adapter is None or adapter.trains_norms,
            adapted=adapter.targets if adapter else (),
            rank=adapter.rank if adapter else 0,
            adapter_dropout=adapter.dropout if adapter else False,
            shares_rows=self.shares_rows,
        )

    @property
    def adapter_weights(self) -> int:
        return self.adapter.num_weights(self.model) if self.adapter else 0

    @property
    def trained_base(self) -> int:
        """Weights of the model itself that train."""
        if self.adapter is None:
            return self.model.num_parameters
        norms = (2 * self.model.num_layers + 1) * self.model.hidden_size if self.adapter.trains_norms else 0
        return norms + (self.model.embedding if self.adapter.trains_embeddings else 0)

    @property
    def trained(self) -> int:
        """All weights that train."""
        return self.trained_base + self.adapter_weights

    @property
    def base_bytes(self) -> float:
        """The model's own weights, of the whole of it."""
        frozen = self.model.num_parameters - self.trained_base
        width = 2 if self.bf16_weights else 4
        if self.adapter is not None and self.adapter.four_bit:
            # NF4: half a byte, and a scale for 64 weights, itself in 8 bits.
            quantised = self.model.num_layers * self.model.layer_matmul
            return quantised * (0.5 + 1 / 64 + 4 / (64 * 256)) + (frozen - quantised) * width + 4 * self.trained_base
        return frozen * width + 4 * self.trained_base

    def moments(self, *, adapter: bool) -> float:
        """Bytes of optimizer state of the adapter, or of what trains of the model itself, of the whole of it."""
        weights = self.adapter_weights if adapter else self.trained_base
        if self.optimizer != "muon":
            return weights * MOMENT_BYTES[self.optimizer]
        if adapter:
            return 4.0 * weights
        matrices = 0 if self.adapter else self.model.num_layers * self.model.layer_matmul
        return 4.0 * matrices + 8.0 * (weights - matrices)  # one moment of matrices, AdamW's two of the rest
