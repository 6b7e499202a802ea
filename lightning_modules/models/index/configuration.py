"""The configuration of Index-1.9B, read from the original `config.json` without running the code beside it.

What is known of the original, and from where (the original `modeling_index.py` itself was not read):

- certain, from the `config.json` of Index-1.9B-Pure and -Character: model_type "index", the sizes below, norm_head 1,
  untied, no rope_theta (so 10000), BOS 1, EOS 2, PAD 0;
- certain, from `finetune/finetune.py` of github.com/bilibili/Index-1.9B: separate q, k, v, o, gate, up and down
  projections under Llama's names;
- second-hand, two ports that were run on the original weights, PaddleFormers `transformers/index` and exllamav2: every
  other parameter has Llama's name too, RoPE rotates halves as Llama's does, norm_head normalises rows of lm_head;
- unknown: the `config.json` of Index-1.9B-32K, and the original class's default where norm_head is absent (1 here).
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

TRAINED_LENGTH = 4096
"""Context of the base model, for which rope_theta = 10000 is right where `config.json` names none."""

ROPE_KEYS = {"rope_theta", "rope_scaling", "rope_parameters"}


class IndexConfig(LlamaConfig):
    """A Llama whose output matrix may have unit rows; the defaults are those of Index-1.9B.

    Args:
        norm_head: 1: rows of the output matrix are divided by their L2 norm before the logits; 0: they are not.

    Raises:
        ValueError: If norm_head is neither, or the RoPE cannot be known from what is given.

    Reference:
        Index-1.9B technical report and long-context report (bilibili 2024), github.com/bilibili/Index-1.9B.
    """

    model_type = "index"

    vocab_size: int = 65029
    hidden_size: int = 2048
    intermediate_size: int = 5888
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    max_position_embeddings: int = TRAINED_LENGTH
    initializer_range: float = 0.01
    pad_token_id: int | None = 0
    norm_head: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # it names files of the original, which are never run and not exported
        if self.norm_head not in (0, 1):
            raise ValueError(f"norm_head={self.norm_head} is not 0 or 1; correct it in config.json")
        self.norm_head = int(self.norm_head)
        _refuse_unknown_rope(kwargs)
        if (
            self.max_position_embeddings > TRAINED_LENGTH
            and not self.rope_parameters
            and not any(kwargs.get(key) for key in ROPE_KEYS)
        ):
            # The 32K repository may keep its base in its Python file, where we do not look.
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} with no rope_theta is not Index-1.9B; write"
                " rope_theta into config.json (320000.0 for Index-1.9B-32K, by its report)"
            )
        super().__post_init__(**kwargs)


def _refuse_unknown_rope(kwargs: dict[str, Any]) -> None:
    """A RoPE key under a name that nobody reads would leave the base at 10000 without a word."""
    for key, value in kwargs.items():
        if key not in ROPE_KEYS and value is not None and ("rope" in key.lower() or "rotary" in key.lower()):
            raise ValueError(
                f"{key}={value} says something of RoPE that is not read; write rope_theta or rope_scaling instead,"
                " in config.json"
            )
