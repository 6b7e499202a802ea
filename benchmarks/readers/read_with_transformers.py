"""Logits as any transformers computes them: run by `benchmarks.readers_agree` in another environment's Python.

`python -P read_with_transformers.py <folder> …`: each folder has a model and `tokens.npy` [T], and gets `theirs.npy`,
the logits [T / STRIDE, V] fp32 of every STRIDE-th token, or `theirs.txt` with the reason why not. Imports nothing of
this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

STRIDE = 4


@torch.no_grad()
def read(folder: Path) -> None:
    (folder / "theirs.txt").unlink(missing_ok=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        input_ids = torch.from_numpy(np.load(folder / "tokens.npy").astype(np.int64))[None]
        np.save(folder / "theirs.npy", model(input_ids=input_ids, use_cache=False).logits[0, ::STRIDE].numpy())
    except Exception as error:  # a refusal is an answer
        (folder / "theirs.txt").write_text(" ".join(f"{type(error).__name__}: {error}".split()), encoding="utf-8")


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:]:
        read(Path(name))
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
