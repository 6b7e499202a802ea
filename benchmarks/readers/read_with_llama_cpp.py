"""Logits and greedy tokens as llama.cpp computes them: run by `benchmarks.readers_agree` in another Python.

`python -P read_with_llama_cpp.py <job.json>`: the job names a GGUF file, a text, how many of its first tokens are the
prompt and how many are generated, and arguments for `Llama`; the answer is written beside it as `theirs.npz`, with
tokens [T], logits [T, V] fp32 and greedy [n]. Imports nothing of this repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

F32 = 0
"""Of ggml: keys and values are cached in fp32, for f16 would be the larger difference."""


def read(job: Path) -> str:
    import llama_cpp  # pyright: ignore

    asked = json.loads(job.read_text(encoding="utf-8"))
    model = llama_cpp.Llama(  # pyright: ignore
        asked["file"],
        n_ctx=asked["context_length"],
        n_batch=512,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        type_k=F32,
        type_v=F32,
        **asked["options"],
    )
    tokens = model.tokenize(asked["text"].encode(), add_bos=False, special=False)[: asked["num_tokens"]]
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], dtype=np.float32)
    model.reset()
    model.eval(tokens[: asked["prompt_tokens"]])
    greedy = []
    for _ in range(asked["new_tokens"]):
        greedy.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(greedy[-1:])
    np.savez(job.with_name("theirs.npz"), tokens=np.array(tokens), logits=logits, greedy=np.array(greedy))
    return llama_cpp.__version__  # pyright: ignore


if __name__ == "__main__":
    print(f"llama-cpp-python {read(Path(sys.argv[1]))}")
