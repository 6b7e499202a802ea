"""`python -m recipes.plan`: its own words, its mistakes, JSON, and three real steps beside what was predicted."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import exit_status
from recipes.compose import ConfigError
from recipes.plan import parted, plan
from recipes.planning import calibration, three_steps
from tests.recipes.words import replaced

INDEX = ["recipe=index_1p9b_32k/pretrain", "hardware=h100_80gb"]


def test_words_of_the_plan_are_parted_from_those_of_the_recipe() -> None:
    asked = parted([*INDEX, "devices=8", "nodes=2", "price=2.5", "rope=linear"])
    assert asked.recipe == ["recipe=index_1p9b_32k/pretrain", "rope=linear", "trainer.devices=8", "trainer.num_nodes=2"]
    assert asked.own == {"hardware": "h100_80gb", "devices": "8", "nodes": "2", "price": "2.5"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (INDEX[:1], "no hardware given; add hardware=<name>, one of: a100_40gb, "),
        ([INDEX[0], "hardware=h100"], "hardware=h100 does not exist; nearest: h100_80gb"),
        ([*INDEX, "devices=none"], "devices=none must be a whole number of at least 1"),
        ([*INDEX, "devices=7"], "128 sequences per step do not divide over 7 ranks"),
        ([*INDEX, "devices=8", "devices=4"], "devices is given twice"),
        ([*INDEX, "devices=8", "trainer.devices=4"], "trainer.devices is given twice"),
        ([*INDEX, "price=much"], "price=much must be a number of at least 0"),
        ([*INDEX, "format=yaml"], "format=yaml is not known; allowed are text, json"),
        ([*INDEX, "calibrate=yes"], "calibrate=yes is not known; allowed are true, false"),
        ([*INDEX, "calibration=nowhere.json"], "calibration=nowhere.json cannot be read"),
        ([*INDEX, "optimizer.lrr=1"], "unknown key 'optimizer.lrr'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: print(plan(words))) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {sentence}")
    assert len(said.err.splitlines()) == 1


def test_json_says_what_the_text_says(tmp_path: Path) -> None:
    words = [*INDEX, "devices=8", "price=2.5", f"cache_dir={tmp_path}"]
    text, found = plan(words), json.loads(plan([*words, "format=json"]))
    assert found["fits"]
    assert "\nfits\n" in text
    assert f"steps      {found['steps']:,}" in text
    assert found["tokens"] == 2384 * 4194304
    assert found["recommended"] in text
    assert f"{found['longest_context']:,} tokens" in text
    low, high = found["device_hours"]
    assert found["cost"] == pytest.approx([2.5 * low, 2.5 * high])
    assert low / 8 * 3600 / found["steps"] == pytest.approx(found["step_seconds"][0])
    assert not any(tmp_path.iterdir())


def steps_in_this_process(words: Sequence[str]) -> dict[str, Any]:
    """What the child process does, without its seconds of imports."""
    with redirect_stdout(io.StringIO()) as out:
        three_steps.main(words)
    return json.loads(out.getvalue().splitlines()[-1])


def test_calibration_measures_three_steps_and_later_plans_read_it(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measured_steps", steps_in_this_process)
    words = [*tiny, "hardware=cpu"]
    assert "not known how long" in plan(words)
    told = plan([*words, "calibrate=true"])
    (file,) = (tmp_path / "cache" / "calibrations").iterdir()
    assert f"kept in {file}" in told
    assert not (tmp_path / "outputs").exists()
    kept = calibration.read_calibration(file)
    plain, corrected = (json.loads(plan([*words, "format=json", *more])) for more in (["calibration=null"], []))
    assert corrected["need"]["tensors"] == pytest.approx(kept.memory_factor * plain["need"]["tensors"])
    assert plain["step_seconds"] is None
    assert corrected["step_seconds"][0] > 0
    assert corrected == json.loads(plan([*words, "format=json", f"calibration={file}"]))
    longer = json.loads(plan(replaced([*words, "format=json"], "data.tokens_per_step=4096")))
    assert longer["step_seconds"][0] == pytest.approx(2 * corrected["step_seconds"][0], rel=0.2)


def test_steps_of_a_cpu_are_not_kept_as_those_of_a_gpu(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measured_steps", lambda _: pytest.fail("steps were run"))
    said = r"on a CPU here, which says nothing of hardware=h100_80gb; add hardware=cpu"
    with pytest.raises(ConfigError, match=said):
        plan([*tiny, "hardware=h100_80gb", "calibrate=true"])
    words = [word for word in tiny if not word.startswith("trainer.accelerator=")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"on a GPU here, which says nothing of hardware=cpu; add trainer"):
        plan([*words, "trainer.accelerator=auto", "hardware=cpu", "calibrate=true"])
    assert not (tmp_path / "cache" / "calibrations").exists()


@pytest.mark.parametrize("factor", ['"a"', "0", "NaN", "-1"])
def test_a_calibration_without_factors_is_refused(factor: str, tmp_path: Path) -> None:
    file = tmp_path / "made.json"
    file.write_text(f'{{"machine": "one", "memory_factor": {factor}, "least_flops": 1.0, "most_flops": 2.0}}')
    with pytest.raises(ConfigError, match=r"^calibration=[^\n]*made\.json cannot be read"):
        calibration.read_calibration(file)


def test_steps_that_cannot_run_are_said_as_training_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        returncode, stdout, stderr = 2, "", "note: something\nerror: optimizer.lr=0 must be above 0\n"

    monkeypatch.setattr(calibration.subprocess, "run", lambda *_, **__: Refused)
    with pytest.raises(ConfigError, match=r"^optimizer\.lr=0 must be above 0$"):
        calibration.measured_steps([])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("memory=gradient_checkpointing", "data.micro_batch_size=1"),
        ("peft=lora", "optimizer=adamw", "optimizer.lr=1e-3", "precision=fp32"),
        ("memory=tiled_mlp", "memory.activations.mlp_tile_size=256", "packing.max_seqlen=1024"),
    ],
)
def test_resident_memory_of_a_process_is_within_a_tenth(changes: tuple[str, ...], tmp_path: Path) -> None:
    """The resident set above what the process has for itself (three_steps.py), at some 100 to 300 MiB of tensors."""
    words = [
        "recipe=demo/extend",
        "corpus=classics",
        "corpus.sources.classics.path=${bundled:classics/heldout.jsonl.zst}",
        "packing.max_seqlen=512",
        "data.tokens_per_step=2048",
        "evaluation.lengths=[1024]",
        "trainer.accelerator=cpu",
        "trainer.num_threads=1",
        f"cache_dir={tmp_path}",
        "hardware=cpu",
    ]
    plan([*replaced(words, *changes), "calibrate=true"])
    (file,) = (tmp_path / "calibrations").iterdir()
    assert calibration.read_calibration(file).memory_factor == pytest.approx(1, abs=0.1)
