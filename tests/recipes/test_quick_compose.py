"""What is composed without Hydra is what Hydra composes: the same keys in the same order, the same options."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from recipes import compose as composing
from recipes import quick_compose
from recipes.compose import OVERLAYS, compose, conf_folder, groups_on_disk, options, presets
from recipes.quick_compose import preset_parts, preset_values
from tests.grids import quick_where

ROOT = Path(__file__).parents[2]
GROUPS = [group for group in groups_on_disk() if group not in OVERLAYS]
MOST_OPTIONS = max(len(options(group)) for group in GROUPS)
KEYS = [
    ["seed=3", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.99]", "precision=fp32"],
    [
        "output_dir='a b'",
        "cache_dir=/a/b",
        "checkpoint=null",
        "packing.max_seqlen=${context_length}",
        "about.paper=???",
    ],
    ["evaluation.needle={num_samples: 2}", "+corpus.mixture.more=0.5", "+model.source.settings.attention_dropout=0.2"],
    ["++seed=4", "~export.dtype", "+corpus.mixture={more: 1}"],
    ["prepare/engine=ray", "+new.key=[1,{a: b}]"],
]


def by_hydra(words: list[str], folder: Path) -> tuple[DictConfig, dict[str, str]]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        config = hydra.compose("config", overrides=words, return_hydra_config=True)
    choices = {group: option for group, option in config.hydra.runtime.choices.items() if "hydra/" not in group}
    with open_dict(config):
        del config["hydra"]
    return config, choices


def as_text(config: DictConfig) -> str:
    return json.dumps(OmegaConf.to_container(config), indent=1)


@pytest.fixture
def no_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "_composed_once", lambda _, words: pytest.fail(f"{words} left to Hydra"))


ONE_OF_EACH_PAPER = (
    "demo/base",
    "index_1p9b_32k/sft",
    "longskywork_13b_200k/long_sft",
    "together_llama2_7b_32k/few_shot",
    "utk_qwen2_7b_128k/pretrain",
)


@pytest.mark.parametrize("preset", quick_where([(name,) for name in presets()], lambda name: name in ONE_OF_EACH_PAPER))
@pytest.mark.usefixtures("no_hydra")
def test_preset_has_the_values_and_options_that_hydra_gives_it(preset: str) -> None:
    assert set(presets()) > set(ONE_OF_EACH_PAPER)
    expected, choices = by_hydra([f"recipe={preset}"], conf_folder())
    expected.recipe_name = preset
    found = preset_values(preset)
    assert as_text(found.config) == as_text(expected)
    assert found.choices == choices


@pytest.mark.usefixtures("no_hydra")
def test_parts_of_a_preset_are_those_of_the_whole() -> None:
    for preset in presets():
        whole, choices = preset_values(preset)
        parts, same = preset_parts(preset, ["packing", "data"])
        names = [str(key) for key in whole if key not in GROUPS or key in ("packing", "data")]
        assert as_text(parts) == as_text(OmegaConf.masked_copy(whole, names)), preset
        assert same == choices


@pytest.mark.usefixtures("no_hydra")
@pytest.mark.parametrize("overlays", list(product(["none"], ["paper", "toy"], ["none", "two_steps"])))
def test_preset_under_its_overlays_is_what_hydra_makes_of_it(overlays: tuple[str, str, str]) -> None:
    words = ["recipe=demo/extend", *(f"{group}={option}" for group, option in zip(OVERLAYS[1:], overlays, strict=True))]
    assert_as_by_hydra(words)


@pytest.mark.usefixtures("no_hydra")
@pytest.mark.parametrize(
    ("preset", "k"),
    quick_where(product([None, "recipe=demo/sft"], range(MOST_OPTIONS)), lambda preset, k: bool(preset) == bool(k % 2)),
)
def test_every_option_is_what_hydra_makes_of_it(k: int, preset: str | None) -> None:
    """The k-th option of every group at once."""
    named = [f"{group}={options(group)[k % len(options(group))]}" for group in GROUPS]
    assert_as_by_hydra([preset, *named] if preset else named)


@pytest.mark.parametrize("words", KEYS, ids=" ".join)
def test_single_keys_are_what_hydra_makes_of_them(words: list[str]) -> None:
    assert_as_by_hydra(["recipe=demo/extend", "corpus=classics", *words])


def assert_as_by_hydra(words: list[str]) -> None:
    found = composing._hydra(words)
    without_preset = [] if any(word.startswith("recipe=") for word in words) else ["~recipe"]
    expected, choices = by_hydra([*without_preset, *words], conf_folder())
    assert as_text(found.config) == as_text(expected)
    assert {group: option for group, option in found.choices.items() if "hydra/" not in group} == choices


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (composing, quick_compose):
        monkeypatch.setattr(module, "conf_folder", lambda: folder)
    return folder


@pytest.mark.parametrize(
    "lines",
    [
        "defaults:\n  - demo/base\n  - _self_\ncontext_length: 1024\n",
        "defaults:\n  - /optimizer@data.other: adamw\n",
        "defaults:\n  - override /optimizer: muon\ndata:\n  packing:\n    document_mask: false\n",
    ],
)
def test_preset_in_another_style_is_hydras(lines: str, conf: Path) -> None:
    (conf / "recipe" / "unusual.yaml").write_text(f"# @package _global_\n{lines}", encoding="utf-8")
    config, _ = preset_values("unusual")
    expected, _ = by_hydra(["recipe=unusual"], conf)
    expected.recipe_name = "unusual"
    assert as_text(config) == as_text(expected)


def test_key_that_is_there_twice_is_refused_as_by_hydra(conf: Path) -> None:
    with (conf / "optimizer" / "adamw.yaml").open("a") as file:
        file.write("lr: 1.0\nlr: 2.0\n")
    with pytest.raises(composing.ConfigError, match="found duplicate key lr"):
        compose(["recipe=demo/extend", "optimizer=adamw"])


def test_thirty_presets_are_listed_within_a_second(tmp_path: Path) -> None:
    for package in ("recipes", "conf"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "conf" / "recipe"
    text = (folder / "demo" / "extend.yaml").read_text(encoding="utf-8")
    for k in range(30):
        (folder / f"copy_{k}.yaml").write_text(text, encoding="utf-8")
    code = (
        "import time; from recipes.list import table; rows = [line for line in table().splitlines() if line[0] != ' '];"
        "print(len(rows), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines, seconds = done.stdout.split()
    assert int(lines) == 2 + 30 + len(presets())
    assert float(seconds) < 1.0
