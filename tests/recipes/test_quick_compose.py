from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes import compose as composing
from recipes import quick_compose
from recipes.compose import compose, presets
from recipes.quick_compose import preset_values

ROOT = Path(__file__).parents[2]


def test_every_preset_has_the_values_and_options_that_hydra_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_compose, "compose", lambda words: pytest.fail(f"{words} left to Hydra"))
    assert len(presets()) >= 4
    for preset in presets():
        expected, (config, choices) = compose([f"recipe={preset}"]), preset_values(preset)
        theirs = {group: option for group, option in expected.choices.items() if not group.startswith("hydra")}
        assert choices == theirs
        assert OmegaConf.to_container(config) == OmegaConf.to_container(expected.config), preset


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
    assert config == compose(["recipe=unusual"]).config


def test_thirty_presets_are_listed_within_a_second(tmp_path: Path) -> None:
    for package in ("recipes", "conf"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "conf" / "recipe"
    text = (folder / "demo" / "extend.yaml").read_text(encoding="utf-8")
    for k in range(30):
        (folder / f"copy_{k}.yaml").write_text(text, encoding="utf-8")
    code = "import time; from recipes.list import table; print(len(table().splitlines()), time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines, seconds = done.stdout.split()
    assert int(lines) == 2 + 30 + len(presets())
    assert float(seconds) < 1.0
