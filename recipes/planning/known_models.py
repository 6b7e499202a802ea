"""Sizes of the models that presets name, for plans where a model is not on this disk.

Of their config.json on the hub; those marked recalled were not read. A config.json on this disk wins.
"""

from __future__ import annotations

from recipes.planning.dimensions import Dimensions

LLAMA2_7B = Dimensions(
    num_layers=32,
    hidden_size=4096,
    intermediate_size=11008,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    vocab_size=32000,
)
LLAMA2_13B = Dimensions(  # recalled
    num_layers=40,
    hidden_size=5120,
    intermediate_size=13824,
    num_heads=40,
    num_kv_heads=40,
    head_dim=128,
    vocab_size=32000,
)
LLAMA2_70B = Dimensions(  # recalled
    num_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=32000,
)
LLAMA3_8B = Dimensions(
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
LLAMA3_70B = Dimensions(  # recalled
    num_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
INDEX_1P9B = Dimensions(
    num_layers=36,
    hidden_size=2048,
    intermediate_size=5888,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    vocab_size=65029,
    normalised_head=True,
)
QWEN2_7B = Dimensions(
    num_layers=28,
    hidden_size=3584,
    intermediate_size=18944,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    vocab_size=152064,
    qkv_bias=True,
)
QWEN2_72B = Dimensions(
    num_layers=80,
    hidden_size=8192,
    intermediate_size=29568,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=152064,
    qkv_bias=True,
)
QWEN2P5_0P5B = Dimensions(  # recalled
    num_layers=24,
    hidden_size=896,
    intermediate_size=4864,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=151936,
    tied_embeddings=True,
    qkv_bias=True,
)
SKYWORK_13B = Dimensions(  # of the repository's README and report; that the head is not tied is recalled
    num_layers=52,
    hidden_size=4608,
    intermediate_size=12288,
    num_heads=36,
    num_kv_heads=36,
    head_dim=128,
    vocab_size=65536,
)
SMOLLM2_135M = Dimensions(
    num_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    tied_embeddings=True,
)
SMOLLM2_360M = Dimensions(  # recalled
    num_layers=32,
    hidden_size=960,
    intermediate_size=2560,
    num_heads=15,
    num_kv_heads=5,
    head_dim=64,
    vocab_size=49152,
    tied_embeddings=True,
)

BY_NAME = (
    ("llama-2-7b", LLAMA2_7B),
    ("llama-2-13b", LLAMA2_13B),
    ("llama-2-70b", LLAMA2_70B),
    ("llama-7b", LLAMA2_7B),  # LLaMA 1 has the same sizes
    ("llama-3-8b", LLAMA3_8B),
    ("llama-3.1-8b", LLAMA3_8B),
    ("meta-llama-3-70b", LLAMA3_70B),
    ("llama-3.1-70b", LLAMA3_70B),
    ("llama3.1-utk-8b", LLAMA3_8B),
    ("index-1.9b", INDEX_1P9B),
    ("qwen2-7b", QWEN2_7B),
    ("qwen2-utk-7b", QWEN2_7B),
    ("qwen2-utk-chatqa2-7b", QWEN2_7B),
    ("qwen2-72b", QWEN2_72B),
    ("qwen2-utk-72b", QWEN2_72B),
    ("qwen2-utk-chatqa2-72b", QWEN2_72B),
    ("qwen2.5-0.5b", QWEN2P5_0P5B),
    ("skywork-13b", SKYWORK_13B),
    ("smollm2-135m", SMOLLM2_135M),
    ("smollm2-360m", SMOLLM2_360M),
)
"""How the last part of a hub name begins, in small letters -> sizes; what was trained from a model has its sizes."""


def known_dimensions(name: str) -> Dimensions | None:
    """The sizes of a hub name; None where nothing is known of it."""
    last = name.rpartition("/")[2].lower().replace("_", "-").removeprefix("meta-")
    return next((found for start, found in BY_NAME if last.startswith(start.removeprefix("meta-"))), None)
