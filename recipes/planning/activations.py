"""Bytes a token of what a decoder holds between forward and backward, and of what it works with meanwhile.

Counted operation by operation as autograd saves it, of transformers' Llama as this repository trains it. r is the
width of the residual stream, c that of products:

    precision=fp32                     r = 4, c = 4
    precision=bf16, fp32 weights       r = 4, c = 2      under autocast the embedding, and so the stream, is fp32, and
                                                         every product keeps a cast of its input for itself
    precision=bf16, bf16 weights       r = 2, c = 2      frozen weights of `dtype: bfloat16`, and strategy=fsdp; norms
                                                         then keep an fp32 copy of what they read

A layer of hidden size H, I inside its MLP, Q and K wide in queries and keys, with A heads, that trains and has r = c:

    two norms      (r H + 4 + r H + c H) each      input, factor, normed, and with its weight
    attention      c (Q + 2 K) + c Q + 4 A         query, key, value, output, log-sum-exp
    MLP            4 c I                           gate, up, activated gate, and the product

`tests/recipes/planning/test_memory.py` counts the bytes of live tensors of real steps against this, to 10 %; most
are equal to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.planning.dimensions import Dimensions

IDS = 48
"""Bytes a token of a micro-batch itself: four int64 fields, and what the loss makes of them."""

LOSS_BYTES = 40
"""And of targets, their places, losses and hits while the loss is computed."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How wide numbers are, and what trains.

    Args:
        model: Sizes.
        residual: Bytes of a number of the residual stream.
        compute: Of a number in a product.
        weights_train: The model's own linear layers train.
        norms_train: Norms do.
        adapted: Linear layers of a decoder layer with an adapter.
        rank: Of the adapters.
        adapter_dropout: They drop some of their input.
        shares_rows: Rows hold several documents or padding, so that attention gathers them.
    """

    model: Dimensions
    residual: int
    compute: int
    weights_train: bool = True
    norms_train: bool = True
    adapted: tuple[str, ...] = ()
    rank: int = 0
    adapter_dropout: bool = False
    shares_rows: bool = False

    @property
    def casts(self) -> bool:
        """Whether products cast their inputs, each for itself."""
        return self.residual > self.compute

    def keeps_input(self, name: str) -> bool:
        """Whether a linear layer's input is held: for the gradient of its weight, or of its adapter's."""
        return self.weights_train or name in self.adapted

    @property
    def norm(self) -> int:
        """What a norm holds besides its result."""
        normed = self.residual * self.model.hidden_size if self.norms_train else 0
        return 4 * self.model.hidden_size + 4 + normed  # the input, as it is or copied in fp32, and a factor

    def _inputs(self, *names: str) -> int:
        """The result of a norm, as the linear layers that read it hold it."""
        holding = sum(self.keeps_input(name) for name in names)
        hidden = self.model.hidden_size
        held = holding * self.compute * hidden if self.casts else min(holding, 1) * self.residual * hidden
        dropped = sum(name in self.adapted for name in names) if self.adapter_dropout else 0
        return held + dropped * (self.compute + 1) * hidden

    @property
    def attention(self) -> int:
        """Query, key and value as the kernel reads them, its output, and the log-sum-exp of its rows."""
        model = self.model
        gathered = self.compute * model.query_size if self.shares_rows else 0
        qkv = self.compute * (model.query_size + 2 * model.kv_size)
        return qkv + self.kept_attention + gathered

    @property
    def kept_attention(self) -> int:
        """Output and log-sum-exp alone, which `keep_attention` holds."""
        return self.compute * self.model.query_size + 4 * self.model.num_heads

    @property
    def mlp(self) -> int:
        """Inside the MLP: gate, up, activated gate, and the product where the last layer wants it."""
        inner = 4 if self.keeps_input("down_proj") else 3
        dropped = (
            (self.compute + 1) * self.model.intermediate_size * (self.adapter_dropout and "down_proj" in self.adapted)
        )
        return inner * self.compute * self.model.intermediate_size + dropped

    @property
    def first_half(self) -> int:
        """Norm and attention of a layer."""
        return self.norm + self._inputs("q_proj", "k_proj", "v_proj") + self.attention + self._low("q", "k", "v", "o")

    @property
    def layer(self) -> int:
        """All that a layer holds."""
        second = self.norm + self._inputs("gate_proj", "up_proj") + self.mlp + self._low("gate", "up", "down")
        return self.first_half + second

    @property
    def tiled_layer(self) -> int:
        """All that a layer with a tiled MLP holds: of the MLP its input alone."""
        return self.first_half + self.norm + self.layer_input

    @property
    def layer_input(self) -> int:
        return self.residual * self.model.hidden_size

    @property
    def own_input(self) -> int:
        """Of a layer's bytes, those that are its input itself, which recomputation holds anyhow."""
        return self.layer_input if self.residual == 4 else 0

    @property
    def last(self) -> int:
        """Behind the layers: the last norm, the gradient of its result, cosines and sines, and the batch."""
        tables = 2 * self.residual * self.model.head_dim
        return self.norm + self.layer_input + tables + IDS

    @property
    def norm_backward(self) -> int:
        """What the backward of a norm works with."""
        fp32 = 4 * self.model.hidden_size
        if self.residual == 4:
            return 3 * fp32 if self.norms_train else 4 * fp32
        return 4 * fp32 + self.layer_input

    @property
    def mlp_backward(self) -> int:
        """What the backward of an MLP works with beyond what is held: two gradients as wide as it."""
        return 2 * self.compute * self.model.intermediate_size

    def attention_backward(self, *, on_gpu: bool) -> int:
        """What attention's backward kernel works with: gradients of output, query, key and value, and its own sums.

        On a GPU, FlashAttention 2 adds an fp32 sum of the query's gradient, and with fewer kv heads a copy of the
        gradients of key and value for each query head.
        """
        model = self.model
        gradients = self.compute * (2 * model.query_size + 2 * model.kv_size)
        if not on_gpu:
            return gradients
        expanded = 2 * self.compute * model.query_size if model.num_kv_heads < model.num_heads else 0
        return gradients + 4 * model.query_size + expanded

    def _low(self, *names: str) -> int:
        """What adapters hold between their two matrices."""
        return sum(f"{name}_proj" in self.adapted for name in names) * self.compute * self.rank
