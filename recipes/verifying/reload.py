"""Opens a checkpoint folder as any program would: with transformers and peft alone, and nothing of this repository.

As a file in a process of its own, `python reload.py <folder> <answer.safetensors>`, it writes down what it computes.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

NUM_TOKENS = 96


class Opened(NamedTuple):
    """A model as it comes out of a folder, an adapter already merged.

    Attributes:
        missing: Weights that the folder has not, which therefore are random.
        unexpected: Weights of the folder that the model has no place for.
    """

    model: Any
    missing: list[str]
    unexpected: list[str]


def open_folder(folder: Path, base: Path | None = None) -> Opened:
    """Loads on the CPU, in the precision of the weights on disk, and from the disk alone.

    Args:
        folder: A model's, or an adapter's; a `config.json` beside an adapter is that of the model it was trained on.
        base: The folder of the adapter's base model.
    """
    options: dict[str, Any] = {"dtype": "auto", "local_files_only": True, "trust_remote_code": False}
    if base is not None and (folder / "config.json").is_file():
        options["config"] = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(base or folder, output_loading_info=True, **options)
    model, info = loaded
    if base is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # pyright: ignore[reportCallIssue]
    return Opened(model.eval(), sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))


def rotary_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every frequency table by the name of its buffer."""
    return {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}


def random_tokens(model: Any) -> torch.Tensor:
    """[1, NUM_TOKENS], the same in every process."""
    vocab_size = model.get_input_embeddings().num_embeddings
    return torch.randint(0, vocab_size, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """[1, NUM_TOKENS, V] of the random tokens."""
    return model(input_ids=random_tokens(model), use_cache=False).logits


def main() -> None:
    folder, base, answer = sys.argv[1:]
    try:
        opened = open_folder(Path(folder), Path(base) if base else None)
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
    tables = rotary_buffers(opened.model)  # before a forward, in which some rope types rewrite them
    found = {"logits": logits(opened.model).contiguous(), **{f"buffer {name}": table for name, table in tables.items()}}
    foreign = [name for name in sys.modules if name.startswith(("recipes", "lightning_modules", "datamodules"))]
    save_file(found, answer, metadata={"foreign": json.dumps(foreign)})


if __name__ == "__main__":
    main()
