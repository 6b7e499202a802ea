"""GGUF files to import: a header by hand, and a whole tiny Llama by the library's own writer."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

KINDS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def header_bytes(pairs: dict[str, Any], *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    """The beginning of a file with these pairs and no tensors; a list is one of texts."""
    parts = [magic, struct.pack("<IQQ", version, 0, len(pairs))]
    for key, value in pairs.items():
        parts.append(_text(key))
        if isinstance(value, str):
            parts += [struct.pack("<I", 8), _text(value)]
        elif isinstance(value, list):
            parts += [struct.pack("<IIQ", 9, 8, len(value)), *map(_text, value)]
        else:
            kind, form = KINDS[type(value)] if value < 1 << 32 else (10, "Q")
            parts.append(struct.pack(f"<I{form}", kind, value))
    return b"".join(parts)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


LLAMA = {
    "general.architecture": "llama",
    "general.languages": ["en"],
    "general.license": "apache-2.0",
    "general.size": 1 << 40,
    "llama.context_length": 512,
    "llama.embedding_length": 32,
    "llama.attention.head_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a", "b"],
    "tokenizer.ggml.model": "gpt2",
}


def write_llama(file: Path, source: Path, **extra: Any) -> None:
    """The model and the tokenizer of a Hugging Face folder as a GGUF file in fp32, as llama.cpp's converter does it.

    Args:
        file: Is written.
        source: The folder; byte-level BPE.
        extra: More metadata, a `__` standing for each dot; `tokenizer__ggml__pre` replaces the rule gpt-2.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config, writer = model.config, importlib.import_module("gguf").GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, source, split=extra.pop("tokenizer__ggml__pre", "gpt-2"))
    for key, value in extra.items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(key.replace("__", "."), value)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        turned = next((_interleaved(tensor, count) for part, count in heads.items() if part in name), tensor)
        writer.add_tensor(_gguf_name(name), turned.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, source: Path, *, split: str) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}</s>{% endfor %}")


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows in llama.cpp's order: the two halves of each head in turn."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def _gguf_name(name: str) -> str:
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    for theirs, gguf_name in parts.items():
        name = name.replace(theirs, gguf_name)
    return name
