"""The sizes of a decoder that decide what it holds and what it computes; neither torch nor weights are needed.

Llama's shape: gated MLPs, grouped-query attention and one norm before each. Qwen2 adds biases to query, key and value,
Index an output head of normalised rows. What else a model has (experts, a second norm) is not counted, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KNOWN_TYPES = ("llama", "qwen2", "mistral", "index", "skywork")
"""model_type of the configurations whose layers are counted as they are."""


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """A decoder's sizes.

    Args:
        num_layers: Decoder layers.
        hidden_size: Of the residual stream.
        intermediate_size: Of the MLP.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Of one head.
        vocab_size: Rows of the embedding and of the output head.
        tied_embeddings: Both are one matrix.
        qkv_bias: Query, key and value have biases.
        normalised_head: The head's rows are normalised in every forward.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    normalised_head: bool = False

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Of the keys, and of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of one decoder layer, by the name that transformers gives it."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.kv_size),
            "v_proj": (hidden, self.kv_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def layer_matmul(self) -> int:
        """Weights of matrix products of one layer."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        bias = self.query_size + 2 * self.kv_size if self.qkv_bias else 0
        return self.layer_matmul + 2 * self.hidden_size + bias

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def num_matmul(self) -> int:
        """Weights of matrix products of the model: those of the layers and of the output head."""
        return self.num_layers * self.layer_matmul + self.embedding

    @property
    def num_parameters(self) -> int:
        matrices = 1 if self.tied_embeddings else 2
        return self.num_layers * self.layer_parameters + matrices * self.embedding + self.hidden_size


def dimensions_of(settings: Mapping[str, Any]) -> Dimensions:
    """The sizes that a config.json, or `model.source.settings`, states.

    Raises:
        ValueError: The model is of another kind, or a size is missing.
    """
    kind = str(settings.get("model_type"))
    if kind not in KNOWN_TYPES:
        raise ValueError(
            f"a plan counts the layers of {', '.join(KNOWN_TYPES)}, and this model is of model_type {kind}; set"
            " model.source.name_or_path to one of these"
        )
    try:
        hidden, heads = int(settings["hidden_size"]), int(settings["num_attention_heads"])
        return Dimensions(
            num_layers=int(settings["num_hidden_layers"]),
            hidden_size=hidden,
            intermediate_size=int(settings["intermediate_size"]),
            num_heads=heads,
            num_kv_heads=int(settings.get("num_key_value_heads") or heads),
            head_dim=int(settings.get("head_dim") or hidden // heads),
            vocab_size=int(settings["vocab_size"]),
            tied_embeddings=bool(settings.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2" or bool(settings.get("attention_bias", False)),
            normalised_head=bool(settings.get("norm_head", False)),
        )
    except KeyError as error:
        raise ValueError(f"the model's config.json lacks {error}; set model.source.name_or_path to another") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"the model's config.json has a size that is no whole number of at least 1 ({error}); set"
            " model.source.name_or_path to another"
        ) from error
