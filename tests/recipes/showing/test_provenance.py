"""What `python -m recipes.show` says of each number, and what it no longer claims once something changed it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes import compose as composing
from recipes import quick_compose
from recipes.cli import run
from recipes.compose import compose
from recipes.provenance import reading
from recipes.provenance.reading import preset_file
from recipes.show import show
from recipes.showing.provenance import numbers, summary

PRESET = "recipe=demo/extend"
TITLE = "# Where its numbers come from"


def block(*words: str) -> dict[str, str]:
    """Key -> what stands behind it, with wrapped lines joined."""
    lines = show(compose(words)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(TITLE))
    found: dict[str, str] = {}
    for line in lines[start + 1 : lines.index("", start)]:
        assert len(line) <= 120
        assert line.startswith("#   ")
        if line[4] != " ":
            key = line[4:].split()[0]
            found[key] = " ".join(line[4 + len(key) :].split())
        else:
            found[key] += f" {' '.join(line[1:].split())}"
    return found


def test_every_number_is_shown_with_what_its_line_says() -> None:
    shown = block(PRESET)
    lines = preset_file("demo/extend").read_text(encoding="utf-8").splitlines()
    commented = [re.match(r" *(?:- override /)?(\w+): \S.* # ([a-z -]+): (.+)$", line) for line in lines]
    found = [match.groups() for match in commented if match]
    assert len(found) >= 15
    for name, kind, text in found:
        said = [said for key, said in shown.items() if name in (key, key.split(".")[-1])]
        claimed = f"{kind} {' '.join(text.replace(';', '; ').split())}"
        assert [said for said in said if said.endswith((claimed, f"{kind} as above"))], name


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (["scale=toy"], "data.max_steps", "20 changed by scale=toy; the preset has 70"),
        (["scale=toy", "data.max_steps=3"], "data.max_steps", "3 changed by data.max_steps=3; the preset has 70"),
        (["rope=linear"], "rope", "linear changed by rope=linear; the preset has adjusted_base"),
        (["rope=linear"], "rope.rope_theta", "(not there) changed by rope=linear; the preset has 320000.0"),
        (["debug=two_steps"], "data.max_steps", "2 changed by debug=two_steps; the preset has 70"),
        (
            ["corpus.mixture.recall=0.4"],
            "corpus.mixture",
            "recall: 0.4} changed by corpus.mixture.recall=0.4; the preset has {classics: 0.5, recall: 0.5}",
        ),
        (
            ["+corpus.mixture.validation=0.5"],
            "corpus.mixture",
            "validation: 0.5} changed by +corpus.mixture.validation=0.5; the preset has {classics: 0.5, recall: 0.5}",
        ),
        (["rope=yarn", "rope.factor=8.0"], "rope", "yarn changed by rope=yarn; the preset has adjusted_base"),
        (["optimizer.lr=${extension_factor}"], "optimizer.lr", "changed by optimizer.lr=${extension_factor}"),
        (["context_length=2048", "extension_factor=4"], "extension_factor", "4 changed by extension_factor=4; the"),
        (["optimizer.lr=0.001"], "optimizer.lr", "0.001 our choice where demo/base ended"),
    ],
)
def test_changed_number_names_what_changed_it_and_claims_no_more(words: list[str], key: str, said: str) -> None:
    found = block(PRESET, *words)[key]
    assert said in found
    assert ("changed by" in found) != any(kind in found for kind in ("published", "our choice", "computed "))


def test_count_is_that_of_the_comments_and_of_the_changes() -> None:
    shown = block(PRESET, "scale=toy")
    line = next(line for line in show(compose([PRESET, "scale=toy"])).splitlines() if line.startswith("# Numbers"))
    found = re.findall(r"(\d+) ([a-z ]+?)(?: by (\S+))?(?:[,;]|$)", line.removeprefix("# Numbers"))
    assert sum(int(count) for count, _, _ in found) == len(shown)
    changed = [int(count) for count, kind, word in found if (kind, word) == ("changed", "scale=toy")]
    assert changed == [sum("changed by scale=toy" in said for said in shown.values())]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (composing, quick_compose, reading):
        monkeypatch.setattr(module, "conf_folder", lambda: folder)
    monkeypatch.setattr("recipes.show.conf_folder", lambda: folder)
    return folder


def test_variant_speaks_for_what_it_says_and_voids_what_it_changes(conf: Path) -> None:
    (conf / "variant" / "mine").mkdir()
    (conf / "variant" / "mine" / "linear.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /packing: best_fit # our choice: whole documents\n"
        'data:\n  max_steps: 71 # published: "71", section 9\n  num_workers: 1\noptimizer:\n  lr: 0.5\n'
        "  eps: 1.0e-6 # our choice: larger\n",
        encoding="utf-8",
    )
    shown = block(PRESET, "variant=mine/linear")
    assert list(shown).index("optimizer.eps") == list(shown).index("optimizer.weight_decay") + 1
    assert shown["packing"] == "best_fit our choice whole documents (variant=mine/linear)"
    assert shown["data.max_steps"] == '71 published "71", section 9 (variant=mine/linear)'
    assert shown["optimizer.lr"] == "0.5 changed by variant=mine/linear; the preset has 0.001"
    toy = block(PRESET, "variant=mine/linear", "scale=toy")
    assert toy["data.max_steps"] == "20 changed by scale=toy; variant=mine/linear has 71"


def test_preset_of_ones_own_needs_no_provenance(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = preset_file("demo/extend").read_text(encoding="utf-8")
    bare = re.sub(r" +# .*", "", text)
    (conf / "recipe" / "mine.yaml").write_text(bare, encoding="utf-8")
    shown = show(compose(["recipe=mine"]))
    assert TITLE not in shown
    assert "# Numbers" not in shown
    assert OmegaConf.create(shown).data.max_steps == 70
    assert run(["recipe=mine"], lambda config: None) == 0
    assert capsys.readouterr().err == ""
    (conf / "recipe" / "mine.yaml").write_text(
        bare.replace("lr: 1.0e-3", "lr: 1.0e-3 # our choice: mine"), encoding="utf-8"
    )
    assert summary(numbers(compose(["recipe=mine"]))) == "1 our choice"
