"""Every variant of a paper: it says what it changes, goes with its preset at every scale, and trains two steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from recipes import compose as composing
from recipes.cli import run
from recipes.compose import compose
from recipes.exporting.inserted_tokens import exported_tokenizer, token_sections
from recipes.train import train
from recipes.validate import validate

VARIANTS = composing.conf_folder() / "variant"
PAPERS = {"utk": ("utk_qwen2_7b_128k/pretrain", 10)}
"""Paper -> the preset that its variants change, and how many there are."""
FILES = [path for paper in PAPERS for path in sorted((VARIANTS / paper).glob("*.yaml"))]
FOUND = [path.relative_to(VARIANTS).with_suffix("").as_posix() for path in FILES]
HEADER = ("Paper", "Source", "Run", "Expect", "Differs")

QUICK = ("utk/attention_mask", "utk/synthetic")
"""What no preset and no test of an option trains: the mask of another paper in this one, and another mixture."""


def preset_of(variant: str) -> str:
    return PAPERS[variant.split("/", maxsplit=1)[0]][0]


def test_variants_are_all_found() -> None:
    counts = {paper: sum(name.startswith(f"{paper}/") for name in FOUND) for paper in PAPERS}
    assert counts == {paper: number for paper, (_, number) in PAPERS.items()}
    assert {*FOUND} < {*composing.options("variant")}


@pytest.mark.parametrize("variant", FOUND)
def test_header(variant: str) -> None:
    package, *lines = (VARIANTS / f"{variant}.yaml").read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert tuple(match[1] for line in lines if (match := re.match(r"# (\w+) +\S", line))) == HEADER
    assert f"recipe={preset_of(variant)} variant={variant}" in next(line for line in lines if line.startswith("# Run"))


@pytest.mark.parametrize("variant", FOUND)
def test_is_one_word_beside_its_preset(variant: str) -> None:
    words = [f"recipe={preset_of(variant)}", f"variant={variant}"]
    assert compose(words).config.recipe_name == preset_of(variant)
    toy = compose([*words, "scale=toy"])
    validate(toy)
    # An export says which tokens of its own UtK put in, and nothing where it is no part of the variant.
    assert bool(token_sections(toy.config)) == (toy.choices["augmentation"] == "untie_the_knots")
    exported_tokenizer(toy.config)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token stores, shared by the variants."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FOUND]
)
def test_trains_two_steps_at_toy_scale(variant: str, tmp_path: Path, cache_dir: Path) -> None:
    preset, row = preset_of(variant), 512
    toy = compose([f"recipe={preset}", f"variant={variant}", "scale=toy"]).config
    words = [
        f"recipe={preset}",
        f"variant={variant}",
        "scale=toy",
        "debug=two_steps",
        # The whole training text takes six seconds to tokenise, once for each source.
        *(
            f"corpus.sources.{name}.path=${{bundled:classics/heldout.jsonl.zst}}"
            for name, source in toy.corpus.sources.items()
            if "path" in source
        ),
        *(f"corpus.sources.{name}.num_documents=24" for name in ("code", "synthetic")),
        f"packing.max_seqlen={row}",
        f"data.tokens_per_step={row}",
        "data.micro_batch_size=1",
        "data.validation_sequences=1",
        "trainer.progress_bar=false",
        "trainer.accelerator=cpu",
        "resume=never",
        f"output_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    ]
    assert run(words, train) == 0
    info = json.loads(((tmp_path / preset / "latest").resolve() / "run.json").read_text(encoding="utf-8"))
    assert (info["recipe"], info["status"], info["steps"]) == (preset, "finished", 2)
