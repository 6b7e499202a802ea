"""What an ablation's file and the words beside it become: cells, their words, and sentences about what does not fit."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.packing.concat_chunk import ConcatChunk
from recipes import compose as composing
from recipes.ablating.grid import Ablation, read_ablation
from recipes.ablating.running import compose_cells
from recipes.compose import ConfigError, compose
from tests.datamodules.toy import make_plan
from tests.grids import quick_where

ABLATIONS = (
    "dynamic_ntk_vs_naive_vs_trained",
    "extension_vs_more_tokens",
    "length_warmup",
    "long_instruction_fraction",
    "packing",
    "rope_base",
    "smollm2_rope",
    "utk_ablations",
    "utk_baselines",
)
WITH_MINE = ", ".join(sorted((*composing.ablations(), "mine")))
STUDIED = {"length_warmup": {"seed"}, "packing": {"seed", "max_steps"}}
"""What an ablation varies on purpose of what is the same in all cells of others."""
NEEDS_A_MODEL = {"smollm2_rope": "model.path"}
"""Ablations of a model that the user brings, and the key that names it."""
HEADER = ("Paper", "Source", "Run", "Expect", "Differs")

GRID = """
recipe: demo/extend
words: [data.max_steps=7, seed=1, rope=adjusted_base]
axes:
  theta: {key: rope.rope_theta, values: [10000.0, 1.0e+6]}
  mask:
    - {name: masked, words: [packing.document_mask=true]}
    - {name: one document, words: [packing.document_mask=false, seed=2]}
"""

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes conf/ablation/mine.yaml into a copy of conf/."""
    folder = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), folder)
    monkeypatch.setattr(composing, "conf_folder", lambda: folder)

    def written(text: str) -> None:
        (folder / "ablation" / "mine.yaml").write_text(text, encoding="utf-8")

    return written


def mine(*words: str) -> Ablation:
    return read_ablation(["ablation=mine", *words])


def faults(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_ablation(words)
    return str(error.value).splitlines()


def test_cells_are_the_product_of_the_axes_in_order(write: Write) -> None:
    write(GRID)
    cells = mine().cells
    assert [cell.name for cell in cells] == [
        "theta-10000_mask-masked",
        "theta-10000_mask-one-document",
        "theta-1000000_mask-masked",
        "theta-1000000_mask-one-document",
    ]
    assert [cell.title for cell in cells][1:3] == [
        "theta=10000, mask=one document",
        "theta=1000000, mask=masked",
    ]
    assert [cell.places for cell in cells] == [
        {"theta": theta, "mask": mask} for theta, mask in itertools.product((1e4, 1e6), ("masked", "one document"))
    ]
    assert cells[2].words == (
        *("recipe=demo/extend", "data.max_steps=7", "seed=1", "rope=adjusted_base"),
        *("rope.rope_theta=1000000.0", "packing.document_mask=true"),
    )


def test_an_axis_wins_over_the_file_and_the_command_line_over_its_words(write: Write) -> None:
    write(GRID)
    cells = mine("data.max_steps=9", "scale=toy", "recipe=index_1p9b_32k/pretrain").cells
    for cell, seed in zip(cells, (1, 2, 1, 2), strict=True):
        config = compose(cell.words).config
        assert (config.data.max_steps, config.seed, config.recipe_name) == (9, seed, "index_1p9b_32k/pretrain")
        assert config.rope.rope_theta == cell.places["theta"]
        assert config.packing.document_mask is (cell.places["mask"] == "masked")


def test_the_command_line_changes_the_grid_itself(write: Write) -> None:
    write(GRID)
    changed = mine("ablation.axes.theta.values=[5e4,2]")
    assert [cell.places["theta"] for cell in changed.cells] == [5e4, 5e4, 2.0, 2.0]
    assert changed.words == ("ablation.axes.theta.values=[5e4,2]",)


def test_a_list_of_cells_needs_no_axes(write: Write) -> None:
    write("recipe: demo/extend\ncells:\n  - {name: as it is}\n  - {name: 'linear, x8', words: [rope=linear]}\n")
    cells = mine().cells
    assert [(cell.name, cell.title) for cell in cells] == [("as-it-is", "as it is"), ("linear-x8", "linear, x8")]
    assert compose(cells[1].words).choices["rope"] == "linear"


def test_values_are_spelled_as_on_the_command_line(write: Write) -> None:
    write("recipe: demo/extend\naxes:\n  lengths: {key: evaluation.lengths, values: [[512, 1024], [4096]]}\n")
    assert [compose(cell.words).config.evaluation.lengths for cell in mine().cells] == [[512, 1024], [4096]]
    write("recipe: demo/extend\naxes:\n  every: {key: trainer.validate_every_n_steps, values: [null, 5]}\n")
    assert [compose(cell.words).config.trainer.validate_every_n_steps for cell in mine().cells] == [None, 5]
    write("recipe: demo/extend\naxes:\n  mask: {key: packing.document_mask, values: [true, false]}\n")
    assert [compose(cell.words).config.packing.document_mask for cell in mine().cells] == [True, False]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], f"no ablation given; add ablation=<name>, one of: {WITH_MINE}"),
        (["ablation=rope"], "ablation=rope does not exist; nearest: rope_base"),
        (["ablation=zzz"], f"ablation=zzz does not exist; there are: {WITH_MINE}"),
        (["ablation=mine", "ablation=mine"], "ablation is given twice; keep one"),
        (["ablation=mine", "fast"], "'fast' is not of the form key=value"),
        (["ablation=mine", "resume=here"], "resume=here means nothing to a grid; auto goes on where it stopped"),
        (["ablation=mine", "run_folder=a"], "run_folder cannot be set here, as every cell has a folder of its own"),
        (["ablation=mine", "checkpoint=a"], "checkpoint cannot be set here, as every cell measures the run"),
        (
            ["ablation=mine", "rope.rope_theta=3"],
            "rope.rope_theta differs between cells; leave rope.rope_theta=… out, or set ablation.axes.theta.values=[…]",
        ),
        (
            ["ablation=mine", "packing.document_mask=true"],
            "packing.document_mask differs between cells; leave packing.docume",
        ),
        (["ablation=mine", "ablation.axis=3"], "axis is not a key of an ablation; did you mean axes?"),
        (["ablation=mine", "ablation.axes.theta.values=3"], "axes.theta must have key, and values as a list such as"),
        (["ablation=mine", "ablation.axes.theta.values=[3,3]"], "axis theta has theta-3 twice; keep one"),
    ],
)
def test_words_that_do_not_fit(write: Write, words: list[str], sentence: str) -> None:
    write(GRID)
    (found,) = faults(*words)
    assert sentence in found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("axes: {a: {key: seed, values: [1]}}", "recipe must name the preset"),
        ("recipe: demo/extend", "there must be either axes, whose product is the grid, or a list of cells"),
        ("recipe: demo/extend\naxes: {a: {key: seed, values: [1]}}\ncells: [{name: b}]", "either axes"),
        ("recipe: demo/extend\ncells: [{name: a, word: [seed=1]}]", "cells[0]={'name': 'a', 'word': ['seed=1']} must"),
        ("recipe: demo/extend\ncells: [{name: a, words: [seed]}]", "cells[0].words=['seed'] must be a list of key=val"),
        ("recipe: demo/extend\ncells: [{name: a}, {name: 'a '}]", "axis cell has a twice"),
        ("recipe: demo/extend\ncells: [{name: '?'}]", "whose name has no letter or digit"),
        ("recipe: demo/extend\nwords: [seed=1, seed=2]\ncells: [{name: a}]", "words has seed twice; keep one"),
        ("recipe: demo/extend\naxes: {length: {key: seed, values: [1]}}", "axes.length must have a name of letters"),
        (
            "recipe: demo/extend\naxes: {a: {key: seed, values: [1]}, b: {key: seed, values: [2]}}",
            "axes a and b both set seed; let one of them",
        ),
        ("recipe: demo/extend\ncells: [{name: a}]\npictures: [{name: a, kind: pie}]", "kind: lines or heat_map"),
        (
            "recipe: demo/extend\ncells: [{name: a}]\npictures: [{name: a, kind: lines, x: theta, series: cell}]",
            "pictures[0].x=theta is not there; there are length, cell",
        ),
        (
            "recipe: demo/extend\ncells: [{name: a}]\n"
            "pictures: [{name: a, kind: heat_map, x: length, y: cell, metric: speed}]",
            "pictures[0].metric=speed is not measured; allowed are perplexity, needle",
        ),
        ("recipe: demo/extend\ncells: [{name: a}]\nmarks: [{name: a, theta: 3}]", "marks[0]={'name': 'a', 'theta': 3}"),
        ("recipe: demo/extend\ncells: [", "line 3"),
        ("- a", "the file must hold the keys"),
    ],
)
def test_files_that_do_not_fit(write: Write, text: str, sentence: str) -> None:
    write(f"{text}\n")
    assert any(sentence in fault and fault.startswith("ablation=mine: ") for fault in faults("ablation=mine"))


def test_ablations_on_disk_are_all_found() -> None:
    assert tuple(composing.ablations()) == ABLATIONS


@pytest.mark.parametrize("name", quick_where([(name,) for name in ABLATIONS], lambda name: "utk" not in name))
def test_every_cell_on_disk_is_valid_and_trains_equally_long(name: str) -> None:
    lines = composing.ablation_file(name).read_text(encoding="utf-8").splitlines()
    assert tuple(match[1] for line in lines if (match := re.match(r"# (\w+) +\S", line))) == HEADER
    ablation = read_ablation([f"ablation={name}"])
    if key := NEEDS_A_MODEL.get(name):
        with pytest.raises(ConfigError, match=f"^every cell: {key} has no value; add {key}=… to the command line"):
            compose_cells(ablation)
        return
    composed = compose_cells(ablation)
    assert list(composed) == [cell.name for cell in ablation.cells]
    configs = [cell.config for cell in composed.values()]
    studied = STUDIED.get(name, set())
    assert len({config.seed for config in configs}) == 1 or "seed" in studied
    assert len({config.data.max_steps for config in configs}) == 1 or "max_steps" in studied
    # As many tokens, or samples where steps are of these, in every cell.
    per_step = [config.data.tokens_per_step or config.data.samples_per_step for config in configs]
    assert len({config.data.max_steps * n for config, n in zip(configs, per_step, strict=True)}) == 1
    assert len({tuple(c.config.evaluation.lengths) for c in composed.values()}) == 1


def test_more_tokens_are_the_tokens_of_the_extension_in_the_same_order() -> None:
    """Rows of 512 and of 4096 deal each source's stream out to the same token."""
    cells = compose_cells(read_ablation(["ablation=extension_vs_more_tokens"]))
    lengths = np.random.default_rng(0).integers(20, 9000, 300)

    def stream(name: str) -> dict[str, np.ndarray]:
        config = cells[name].config
        data, max_seqlen = config.data, config.packing.max_seqlen
        rows = data.max_steps * data.tokens_per_step // max_seqlen
        ratios = dict(config.corpus.mixture)
        stores = dict.fromkeys(ratios, lengths)
        plan = make_plan(stores, ConcatChunk(max_seqlen), ratios=ratios, num_rows=rows, seed=config.seed)
        found: dict[str, list[tuple[int, int]]] = {source: [] for source in ratios}
        for row in range(rows):
            for piece in plan.segments(row):
                found[piece.source] += [(piece.document, token) for token in range(piece.start, piece.end)]
        return {source: np.array(tokens) for source, tokens in found.items()}

    extension, more_tokens = stream("demo-extend"), stream("more-tokens-at-512-RoPE-unchanged")
    assert set(extension) == {"classics", "recall"}
    for source, tokens in extension.items():
        assert len(tokens) == 70 * 8192 // 2
        np.testing.assert_array_equal(tokens, more_tokens[source])
    assert cells["more-tokens-at-512-RoPE-unchanged"].choices["rope"] == "unchanged"
