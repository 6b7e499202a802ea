"""Every preset on disk: it says what a preset says, composes, means the same at every scale, and trains two steps."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipes import compose as composing
from recipes.cli import run
from recipes.compose import Composed, compose
from recipes.train import train
from tests.small_bundle import small_words

RECIPES = composing.conf_folder() / "recipe"
NUM_PRESETS = 30
PRESETS = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))

HEADER = ("Paper", "Source", "Run", "Expect", "Differs")
MAX_LINES = 80

SIZES = (
    "model",  # another one, with its tokenizer; how its weights are held stays
    "context_length",
    "data.tokens_per_step",
    "data.samples_per_step",
    "data.micro_batch_size",
    "data.max_steps",
    "data.epochs",
    "data.validation_sequences",
    "lr_schedule.warmup_steps",
    "evaluation.perplexity.tail_tokens",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.log_every_n_steps",
    "trainer.checkpoint_every_n_steps",
    "strategy",  # of several GPUs; a step is the same in each
    "memory",  # what is kept of a layer, and what is computed again
)
"""What a scale may change; all else is mechanism. Corpora and chat templates have tests of their own below."""

NUMBERS = (
    "context_length",
    "data.micro_batch_size",
    "packing.document_mask",
    "packing.reset_positions",
    "optimizer.lr",
    "optimizer.weight_decay",
    "lr_schedule.warmup_steps",
    "lr_schedule.min_lr_ratio",
)
"""What every preset writes itself, even where it equals a default."""

ONE_OF = (("data.tokens_per_step", "data.samples_per_step"), ("data.max_steps", "data.epochs"))
"""And how large a step is, and how long a run."""

LONGEST_ROW = 1024
"""Of the rows that are trained on here; the model is extended to the whole context all the same."""


def test_presets_are_all_found() -> None:
    assert len(PRESETS) == NUM_PRESETS
    assert composing.presets() == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_header_and_length(preset: str) -> None:
    package, *lines = (RECIPES / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    names = [match[1] for line in lines if (match := re.match(r"# (\w+) +\S", line))]
    assert tuple(names) == HEADER
    assert f"recipe={preset}" in next(line for line in lines if line.startswith("# Run"))
    assert len(lines) + 1 <= MAX_LINES


@pytest.mark.parametrize("preset", PRESETS)
def test_numbers_are_written_in_the_preset(preset: str) -> None:
    own = OmegaConf.load(RECIPES / f"{preset}.yaml")
    assert isinstance(own, DictConfig)
    assert [key for key in NUMBERS if OmegaConf.select(own, key) is None] == []
    assert [keys for keys in ONE_OF if all(OmegaConf.select(own, key) is None for key in keys)] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_says_what_it_extends_and_how_far(preset: str) -> None:
    config = compose([f"recipe={preset}"]).config
    assert config.recipe_name == preset
    assert config.about.paper
    assert config.about.extends
    assert config.about.continues in (None, *PRESETS)
    native = config.about.native_context_length or config.model.original_context_length
    assert config.context_length == native * config.extension_factor


def test_numbers_of_every_paper_are_tested_apart_from_its_presets() -> None:
    files = (Path(__file__).parent / "papers").glob("test_*.py")
    written = "\n".join(file.read_text(encoding="utf-8") for file in files)
    untested = [preset for preset in PRESETS if not preset.startswith("demo/") and f'"{preset}"' not in written]
    assert untested == []


@pytest.mark.parametrize("scale", ["toy", "single_gpu"])
@pytest.mark.parametrize("preset", PRESETS)
def test_scale_changes_sizes_only(preset: str, scale: str) -> None:
    paper, scaled = at_scale(preset, "paper"), at_scale(preset, scale)
    assert mechanism(paper.config) == mechanism(scaled.config)
    assert held(paper.config) == held(scaled.config)
    kept = scaled.choices["chat_template"] == paper.choices["chat_template"]
    assert kept or scaled.choices["chat_template"] == {"toy": "plain", "single_gpu": "chatml"}[scale]
    assert kept == (paper.config.chat_template == scaled.config.chat_template)
    original, factor = scaled.config.model.original_context_length, scaled.config.extension_factor
    lengths = {"toy": original * min(factor, 8), "single_gpu": min(original * factor, 32768)}
    assert scaled.config.context_length == pytest.approx(lengths[scale], abs=0.5)
    assert scale != "single_gpu" or scaled.config.data.max_steps <= 3000


@cache
def at_scale(preset: str, scale: str) -> Composed:
    return compose([f"recipe={preset}", f"scale={scale}"])


def mechanism(config: DictConfig) -> dict[str, Any]:
    """Every key that is no size, as it is written; of rope, and of how the corpus is mixed, the values."""
    written = leaves(OmegaConf.to_container(config))
    apart = ("corpus", "chat_template", "rope")
    found = {
        key: value
        for key, value in written.items()
        if not any(f"{key}.".startswith(f"{size}.") for size in (*SIZES, *apart))
    }
    rules = ("mixture", "phases", "mix_at", "sampling", "at_exhaustion")
    nodes = {"rope": config.rope, **{f"corpus.{rule}": config.corpus[rule] for rule in rules}}
    found |= {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}
    assert len(found) > 80
    return found


def held(config: DictConfig) -> str | None:
    """The precision that a model's weights are held in; of one that is made from a seed, fp32."""
    return config.model.source.get("dtype", "float32")


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    """Dotted key -> what is written there."""
    if not isinstance(node, dict) or not node:
        return {name: node}
    return {
        key: value
        for part, child in node.items()
        for key, value in leaves(child, f"{name}.{part}" if name else str(part)).items()
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.usefixtures("small_bundle")
def test_trains_two_steps_at_toy_scale(preset: str, tmp_path: Path, cache_dir: Path) -> None:
    toy = at_scale(preset, "toy").config
    row = min(toy.packing.max_seqlen, LONGEST_ROW)
    words = [
        f"recipe={preset}",
        "scale=toy",
        "debug=two_steps",
        *small_words(toy),
        f"packing.max_seqlen={row}",
        f"data.tokens_per_step={row}",
        "data.micro_batch_size=1",
        "data.validation_sequences=1",
        "evaluation.answers.lengths=[512]",
        "evaluation.answers.num_samples=1",
        "trainer.progress_bar=false",
        "trainer.accelerator=cpu",
        "resume=never",
        f"output_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    ]
    assert run(words, train) == 0
    (folder,) = (path for path in (tmp_path / preset).iterdir() if not path.is_symlink())
    assert (tmp_path / preset / "latest").resolve() == folder
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (info["recipe"], info["status"], info["steps"]) == (preset, "finished", 2)
    assert OmegaConf.load(folder / "config.yaml").data.max_steps == 2
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val_loss"] > 0
    assert (folder / "log.txt").is_file()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000002.ckpt"]
    assert [*(folder / "tensorboard").glob("events.out.tfevents.*")]
