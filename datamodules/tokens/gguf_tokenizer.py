"""The tokenizer of a GGUF file, with its chat template, by transformers' reader.

A GGUF file names the rule by which text is split before byte pairs are merged, and transformers does not read that
name: it takes GPT-2's rule for every byte-level vocabulary but Qwen's. So files with another rule are refused.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

SPLIT_AS_READ = {"gpt2": ("gpt-2", "default", "smollm", "qwen2"), "llama": None}
"""Kind of vocabulary -> names of the rules that transformers keeps; SentencePiece ones have none. smollm's splits
digits apart, which GPT-2's gives too where the vocabulary merges none; qwen2 has a reader of its own."""


def load_gguf_tokenizer(file: Path, *, kind: str, split: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Args:
        file: The GGUF file.
        kind: Its `tokenizer.ggml.model`.
        split: Its `tokenizer.ggml.pre`, if it has one.

    Raises:
        ValueError: The tokenizer is of another kind, or cannot be read.
    """
    rules = SPLIT_AS_READ.get(kind, ())
    if rules is not None and split not in rules:
        raise ValueError(
            f"model.path={file} has a tokenizer of kind {kind} that splits text by the rule {split}, which transformers"
            " does not read from GGUF; take the model's Hugging Face folder with model=hugging_face"
        )
    try:
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of tokenizers, which raises plain `Exception`, and of transformers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the tokenizer of model.path={file} cannot be read ({reason})") from error
