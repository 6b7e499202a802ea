"""llama.cpp, which shares no line with transformers, beside the model that was exported."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.readers import read_with_llama_cpp
from benchmarks.readers.cases import Case, demo_case
from benchmarks.readers.report import Reading, is_same, relative_difference
from datamodules.corpora.files import FileCorpus
from recipes.exporting.gguf import export_gguf

# T tokens, V vocabulary

NUM_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 1800, 1500, 64
HELD_OUT = Path(__file__).parents[2] / "datamodules/corpora/classics/heldout.jsonl.zst"

CONVERTED = ("linear", "adjusted_base", "ntk_aware", "yarn", "llama3", "progressive_base")
OPTIONS: dict[str, dict[str, Any]] = {
    # llama-cpp-python hands its own 32 and 1 to llama.cpp, whatever the file says, unless it is told otherwise.
    "yarn, betas 16 and 2": {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
}
LOST = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 10000.0, "rope_scaling": None}
"""The planted fault: an export that has lost its RoPE, and says the base model's."""


class Texts(NamedTuple):
    """What one reader made of the held-out text."""

    tokens: np.ndarray  # [T]
    logits: np.ndarray  # [T, V]
    greedy: np.ndarray  # [n]

    @property
    def perplexity(self) -> float:
        return perplexity(self.logits, self.tokens)


class Row(NamedTuple):
    method: str
    ours: Texts
    theirs: Texts
    planted: Texts

    @property
    def reading(self) -> Reading:
        theirs, planted = (relative_difference(self.ours.logits, it.logits) for it in (self.theirs, self.planted))
        return Reading("demo (llama)", self.method, theirs, planted)

    @property
    def sound(self) -> bool:
        """Whether tokens, logits, perplexity and greedy output are those of the model that was exported."""
        same = np.array_equal(self.ours.tokens, self.theirs.tokens) and self.matching == len(self.ours.greedy)
        return same and abs(self.theirs.perplexity / self.ours.perplexity - 1) < 1e-3

    @property
    def matching(self) -> int:
        """How many greedy tokens are the same before the first that is another."""
        return common_prefix(self.ours.greedy, self.theirs.greedy)


def perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """exp of the mean negative log-likelihood of tokens 1 … T-1, from the logits [T, V] before each."""
    before = logits[:-1].astype(np.float64)
    largest = before.max(axis=-1)
    normaliser = largest + np.log(np.exp(before - largest[:, None]).sum(axis=-1))
    return math.exp(float((normaliser - before[np.arange(len(before)), tokens[1:]]).mean()))


def common_prefix(ours: np.ndarray, theirs: np.ndarray) -> int:
    length = min(len(ours), len(theirs))
    different = np.flatnonzero(ours[:length] != theirs[:length])
    return int(different[0]) if len(different) else length


def compare(python: str) -> tuple[str, list[Row]]:
    """Exports the demo model with each RoPE, converts it, and has llama.cpp read the held-out text.

    Args:
        python: The interpreter of an environment with llama-cpp-python.
    """
    text = next(iter(FileCorpus(str(HELD_OUT)).texts()))[: 8 * NUM_TOKENS]
    rows, version = [], ""
    for method in (*CONVERTED, *OPTIONS):
        with tempfile.TemporaryDirectory() as place:
            case = demo_case(method)
            folder = case.export(Path(place) / "export")
            answers = [_ours(case, text)]
            for changes, options in (({}, OPTIONS.get(method, {})), (LOST, {})):
                file = _gguf(folder, changes)
                version, answer = _theirs(python, file, text, options, context_length=case.context_length)
                answers.append(answer)
            rows.append(Row(method, *answers))
    return version, rows


def table(title: str, rows: list[Row]) -> str:
    """Perplexity and greedy output of each RoPE beside transformers'."""
    head = (
        f"{'RoPE':<24}{'logits':>9}{'ppl here':>12}{'ppl there':>12}{'greedy the same':>18}{'ppl if RoPE is lost':>22}"
    )
    lines = [title, head]
    for row in rows:
        lines.append(
            f"{row.method:<24}{row.reading.difference:>9.1e}{row.ours.perplexity:>12.4f}{row.theirs.perplexity:>12.4f}"
            f"{f'{row.matching} of {len(row.ours.greedy)}':>18}{row.planted.perplexity:>22.4f}"
            f"{'' if row.sound else '   DISAGREES'}"
        )
    return "\n".join(lines)


def all_sound(rows: list[Row]) -> bool:
    """Whether all are read as they were made, by a reader in which a lost RoPE shows."""
    return all(row.sound for row in rows) and all(not is_same(row.reading.planted) for row in rows)


def _gguf(folder: Path, changes: dict[str, Any]) -> Path:
    """The export as a GGUF file, after changes to its config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), encoding="utf-8")
    return export_gguf(folder, dtype="float32")


@torch.no_grad()
def _ours(case: Case, text: str) -> Texts:
    tokens = torch.tensor(case.tokenizer.encode(text, add_special_tokens=False)[:NUM_TOKENS])
    logits = case.model(input_ids=tokens[None], use_cache=False).logits[0]
    prompt = tokens[None, :PROMPT_TOKENS]
    options: dict[str, Any] = {"do_sample": False, "use_cache": True, "pad_token_id": 1, "eos_token_id": None}
    mask = torch.ones_like(prompt)
    output = case.model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, **options)[0, PROMPT_TOKENS:]
    return Texts(tokens.numpy(), logits.numpy(), output.numpy())


def _theirs(python: str, file: Path, text: str, options: dict[str, Any], *, context_length: int) -> tuple[str, Texts]:
    job = file.with_name("job.json")
    sizes = {"num_tokens": NUM_TOKENS, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
    asked = {"file": str(file), "text": text, "context_length": context_length, "options": options, **sizes}
    job.write_text(json.dumps(asked), encoding="utf-8")
    command = [python, "-P", str(read_with_llama_cpp.__file__), str(job)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    answer = np.load(job.with_name("theirs.npz"))
    return done.stdout.strip(), Texts(answer["tokens"], answer["logits"], answer["greedy"])
