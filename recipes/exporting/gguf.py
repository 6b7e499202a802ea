"""An exported folder as one GGUF file for llama.cpp, by llama.cpp's own converter.

The converter (extra `gguf`) comes with top-level packages named `gguf` and `conversion`, so it runs in a process of its
own, `gguf_runner.py`. It drops in silence what llama.cpp has no word for, so that is refused here before it starts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_modules.rope.closed_form import closed_form_attention_factor
from recipes.exporting import gguf_runner
from recipes.verifying.certify import OURS_ALONE
from recipes.verifying.folder import in_short, read_json, text_part

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def export_gguf(folder: Path, *, dtype: str) -> Path:
    """Write `model-f32.gguf` (or -bf16) into an exported folder, whole or not at all.

    Args:
        folder: A Hugging Face folder of a whole model.
        dtype: float32 | bfloat16, of the matrices; vectors and RoPE factors stay fp32.

    Returns:
        The file.

    Raises:
        ValueError: If the converter refuses, or llama.cpp would read another model.
    """
    refuse_gguf(read_json(folder / "config.json"))
    file = folder / f"model-{PRECISIONS[dtype]}.gguf"
    partial = file.with_name(f".{file.name}.partial")
    # -P keeps the folder of the script, which has modules of ours, off the path.
    command = [sys.executable, "-P", str(gguf_runner.__file__), str(folder), str(partial), PRECISIONS[dtype]]
    command.append(pre_tokenizer_of(read_json(folder / "tokenizer.json")) or "")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        reason = in_short(done.stderr.strip().rpartition("\n")[2])
        raise ValueError(f"llama.cpp's converter does not take {folder} ({reason}); set export.format=hugging_face")
    partial.replace(file)
    return file


def refuse_gguf(config: Mapping[str, Any]) -> None:
    """Refuses, before anything is written, a model that llama.cpp would read otherwise.

    Args:
        config: Of the exported model, as in its config.json.

    Raises:
        ValueError: With the reason and what to do instead.
    """
    text = text_part(dict(config))
    if (model_type := text.get("model_type")) in OURS_ALONE:
        raise ValueError(
            f"export.format=gguf with model_type={model_type}, which this repository alone reads;"
            " set export.layout=portable"
        )
    if reason := unread_by_llama_cpp(text.get("rope_parameters") or {}, model_type=str(model_type)):
        raise ValueError(f"export.format=gguf cannot carry this RoPE: {reason}; set export.format=hugging_face")


def unread_by_llama_cpp(rope_parameters: Mapping[str, Any], *, model_type: str) -> str:
    """What of a RoPE llama.cpp does not compute and the converter does not say, in words; empty if nothing."""
    layers = [value for value in rope_parameters.values() if isinstance(value, Mapping)]
    if layers:
        scaled = {one.get("rope_type", "default") for one in layers} - {"default", "linear"}
        return f"rope_type={', '.join(sorted(scaled))} of one layer kind among several" if scaled else ""
    rope_type = rope_parameters.get("rope_type", "default")
    if rope_type == "dynamic":
        return "llama.cpp has no rope_type=dynamic and would read it unscaled"
    if rope_type == "longrope" and model_type != "phi3":
        return f"the converter takes the factors of rope_type=longrope from Phi-3 alone, not from {model_type}"
    if rope_type == "yarn" and rope_parameters.get("truncate", True) is False:
        return "llama.cpp always rounds the ends of YaRN's ramp, as rope.truncate=true does"
    if rope_type == "yarn" and "attention_factor" in rope_parameters:
        theirs = closed_form_attention_factor({**rope_parameters, "attention_factor": None})
        if (ours := rope_parameters["attention_factor"]) is not None and abs(ours / theirs - 1) > 1e-6:
            return f"llama.cpp computes YaRN's attention factor itself, {theirs:.4g}, and does not read {ours:g}"
    if rope_type not in ("default", "linear", "yarn", "llama3", "longrope"):
        return f"llama.cpp has no rope_type={rope_type}"
    return ""


def pre_tokenizer_of(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a `tokenizer.json`, where it is GPT-2's; None where it is another.

    The converter knows published tokenizers by a hash of what they make of one text. One that was trained anew has
    another hash, but splits text in the same way if it is byte-level BPE with GPT-2's regular expression.
    """
    splitting: Any = tokenizer.get("pre_tokenizer") or {}
    if splitting.get("type") == "Sequence" and len(splitting.get("pretokenizers", ())) == 1:
        splitting = splitting["pretokenizers"][0]
    plain = splitting.get("type") == "ByteLevel" and splitting.get("use_regex", True)
    bpe = (tokenizer.get("model") or {}).get("type") == "BPE"
    whole = plain and bpe and not splitting.get("add_prefix_space") and tokenizer.get("normalizer") is None
    return "gpt-2" if whole else None
