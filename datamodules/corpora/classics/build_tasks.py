"""Build `tasks.jsonl.zst`: few-shot records of simple tasks over words of the bundled training text, one a line.

    {"task_name": "last_word", "definition": "Give the last word.", "inputs": "the sun rose late", "targets": "late"}

They are written as records of Natural Instructions and P3 are, so that few-shot recipes run without a download. The
answers are computed; the words are those of `train.jsonl.zst` alone.

    python -m datamodules.corpora.classics.build_tasks
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard

HERE = Path(__file__).parent
NUM_EXAMPLES = 400
"""Of a task; some 10,000 tokens of the demo's tokenizer, two and a half rows of 4096."""
NUM_WORDS = range(4, 8)
"""Of an input: never ten in a row, which decontamination would look for."""

TASKS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "last_word": ("Give the last word.", lambda words: words[-1]),
    "first_word": ("Give the first word.", lambda words: words[0]),
    "count_words": ("Count the words.", lambda words: str(len(words))),
    "reverse_words": ("Write the words in reverse order.", lambda words: " ".join(reversed(words))),
    "sort_words": ("Write the words in the order of the alphabet.", lambda words: " ".join(sorted(words))),
    "capitals": ("Write the words in capitals.", lambda words: " ".join(words).upper()),
    "initials": ("Write the first letter of each word.", lambda words: " ".join(word[0] for word in words)),
    "longest_word": ("Give the longest word, the first of several.", lambda words: max(words, key=len)),
}


def words_of(text: str) -> list[str]:
    """Lower-case words of two letters and more, in order."""
    return re.findall(r"[a-z]{2,}", text.lower())


def records(words: list[str], *, seed: int) -> list[dict[str, str]]:
    """The examples of all tasks, mixed.

    Args:
        words: Of the texts; an input is a few of them that follow one another.
        seed: Draws the places and the order.
    """
    rng = np.random.default_rng(seed)
    found = []
    for name, (definition, answer) in TASKS.items():
        for _ in range(NUM_EXAMPLES):
            start = int(rng.integers(len(words) - NUM_WORDS.stop))
            given = words[start : start + int(rng.integers(NUM_WORDS.start, NUM_WORDS.stop))]
            found.append(
                {"task_name": name, "definition": definition, "inputs": " ".join(given), "targets": answer(given)}
            )
    return [found[i] for i in rng.permutation(len(found))]


def main() -> None:
    """Read the training text beside this file and write the records there."""
    packed = (HERE / "train.jsonl.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed) as lines:
        texts = [json.loads(line)["text"] for line in io.TextIOWrapper(lines, encoding="utf-8")]
    made = records([word for text in texts for word in words_of(text)], seed=47)
    content = "".join(json.dumps(record) + "\n" for record in made).encode()
    (HERE / "tasks.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    print(f"tasks.jsonl.zst: {len(made)} records of {len(TASKS)} tasks, {len(content)} bytes unpacked")


if __name__ == "__main__":
    main()
