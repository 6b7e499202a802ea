"""Do programs that share no code with this repository read an export as the model that was trained?

    python -m benchmarks.readers_agree transformers=/path/to/python   # of an environment with transformers 4.57
    python -m benchmarks.readers_agree llama_cpp=/path/to/python      # of one with llama-cpp-python and numpy

The first exports the demo model with every RoPE method, and a tiny model of seven families with each that it takes, and
compares logits up to the last position. The second converts exports of the demo model to GGUF (extra `gguf`) and
compares tokens, logits and perplexity of held-out text, and greedy output after 1500 tokens. Both read every export a
second time with a planted fault: without the keys of older readers, and with the RoPE of the base model. Exit status 1
if a reader computes another model, or would not notice the fault. Prepare the environments with

    python -m venv four && four/bin/pip install transformers==4.57.6 torch
    python -m venv llama && llama/bin/pip install llama-cpp-python numpy   # compiles for some ten minutes
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

READERS = ("transformers", "llama_cpp")


def main(words: Sequence[str]) -> int:
    try:
        pythons = interpreters(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sound = []
    if "transformers" in pythons:
        from benchmarks.readers import older_transformers, report

        version, readings = older_transformers.compare(pythons["transformers"])
        print(
            report.table(f"{version}: largest difference of a logit, over the largest", "older keys left out", readings)
        )
        sound.append(report.all_sound(readings))
    if "llama_cpp" in pythons:
        from benchmarks.readers import llama_cpp

        version, rows = llama_cpp.compare(pythons["llama_cpp"])
        print(llama_cpp.table(f"{version}: held-out text of the demo model", rows))
        sound.append(llama_cpp.all_sound(rows))
    return 0 if all(sound) else 1


def interpreters(words: Sequence[str]) -> dict[str, str]:
    """Reader -> its Python.

    Raises:
        ValueError: If a word names no reader, or no interpreter.
    """
    found = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if not found or not set(found) <= set(READERS):
        raise ValueError(
            f"{' '.join(words) or 'nothing'} given; give {' and/or '.join(f'{r}=<python>' for r in READERS)}"
        )
    for reader, python in found.items():
        if not Path(python).is_file():
            raise ValueError(f"{reader}={python} is no interpreter; set it to the bin/python of an environment")
    return found


if __name__ == "__main__":
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    sys.exit(main(sys.argv[1:]))
