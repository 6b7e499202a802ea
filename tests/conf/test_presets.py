"""Every preset on disk: it says what a preset says, composes, means the same at every scale, and trains two steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipes import compose as composing
from recipes.cli import run
from recipes.compose import compose
from recipes.train import train

RECIPES = composing.conf_folder() / "recipe"
NUM_PRESETS = 6
PRESETS = sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))

HEADER = ("Paper", "Source", "Run", "Expect", "Differs")
MAX_LINES = 80

MECHANISM = (
    "stage",
    "length_schedule._target_",
    "rope",
    "attention",
    "lr_schedule.min_lr_ratio",
    "corpus.mixture",
    "data.token_policy",
    "packing.document_mask",
    "packing.reset_positions",
    "extension_factor",
    "memory.activations.recompute",
    "trainer.gradient_clip_norm",
    "precision",
    "seed",
)
"""What no scale may change."""

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


@pytest.mark.parametrize("preset", PRESETS)
def test_scale_changes_sizes_only(preset: str) -> None:
    paper, toy = (compose([f"recipe={preset}", f"scale={scale}"]).config for scale in ("paper", "toy"))
    assert mechanism(paper) == mechanism(toy)
    assert paper.context_length / paper.model.original_context_length == pytest.approx(
        toy.context_length / toy.model.original_context_length
    )


def mechanism(config: DictConfig) -> dict[str, Any]:
    found = {key: OmegaConf.select(config, key) for key in MECHANISM}
    assert None not in found.values()
    # A chat template is written in the control tokens of its model, and a conversation's limit is that of a row.
    policy = {
        key: value for key, value in found["data.token_policy"].items() if key not in ("template", "context_length")
    }
    found["data.token_policy"] = policy
    optimizer = {key: value for key, value in config.optimizer.items() if key != "lr"}
    return {**found, "packing": config.packing._target_, "optimizer": optimizer}


def files(config: DictConfig) -> list[str]:
    """Sources that read files."""
    return [str(name) for name, source in config.corpus.sources.items() if "path" in source]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token stores, shared by the presets."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("preset", PRESETS)
def test_trains_two_steps_at_toy_scale(preset: str, tmp_path: Path, cache_dir: Path) -> None:
    toy = compose([f"recipe={preset}", "scale=toy"]).config
    row = min(toy.packing.max_seqlen, LONGEST_ROW)
    words = [
        f"recipe={preset}",
        "scale=toy",
        "debug=two_steps",
        # The whole training text takes six seconds to tokenise, once for each source.
        *(f"corpus.sources.{name}.path=${{bundled:classics/heldout.jsonl.zst}}" for name in files(toy)),
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
