"""The comparison of LoRA programs: its arithmetic, and that all programs train the same thing."""

from __future__ import annotations

import math

import pytest

from benchmarks.accounting import LLAMA_8B, TOY
from benchmarks.long_sft import HUGGING_FACE_SETTINGS, NAMES, OUR_SETTINGS, SETTINGS, arms, best, run_here, table
from benchmarks.sft_arms.job import Job, Result, random_model

NUM_ARMS = 6


def make_job(arm: str, **setting: object) -> Job:
    return Job(arm, "toy", 48, setting, warm_up=0, timed=2)


@pytest.mark.parametrize(
    ("length", "full", "lora"), [(8192, 51.5, 36.7), (32768, 70.8, 56.0), (131072, 148, 133), (524288, 457, 443)]
)
def test_flops_of_a_token_are_those_of_the_published_count(length: int, full: float, lora: float) -> None:
    """GFLOP a token of an 8B Llama, in the convention of Megatron-LM's reports (causal attention as a half)."""
    assert LLAMA_8B.model_flops([length], lora=False) / length / 1e9 == pytest.approx(full, rel=0.005)
    assert LLAMA_8B.model_flops([length], lora=True) / length / 1e9 == pytest.approx(lora, rel=0.005)


def test_weights_are_counted_as_the_model_has_them() -> None:
    model = random_model(make_job("ours"), attention="sdpa")
    matrices = [p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    assert sum(matrices) == TOY.num_matmul
    assert LLAMA_8B.num_matmul == pytest.approx(7.505e9, rel=1e-3)
    assert LLAMA_8B.num_lora == pytest.approx(41.9e6, rel=2e-3)


@pytest.mark.parametrize(("recompute", "tokens_per_second"), [("full", 2979), ("keep_attention", 3591), ("none", 3835)])
def test_roof_of_a_step_at_128k(recompute: str, tokens_per_second: int) -> None:
    seconds = LLAMA_8B.roof_seconds([131072], lora=True, recompute=recompute)
    assert 131072 / seconds == pytest.approx(tokens_per_second, rel=0.01)


def test_every_program_is_named_and_has_settings() -> None:
    assert set(arms()) == set(NAMES) == set(SETTINGS)
    assert len(NAMES) == NUM_ARMS


@pytest.mark.filterwarnings("ignore")  # of the peers' own
def test_programs_start_from_the_same_loss() -> None:
    jobs = [
        make_job("ours", **OUR_SETTINGS[0]),
        make_job("bare_loop", **OUR_SETTINGS[1]),
        make_job("hf_trainer", **HUGGING_FACE_SETTINGS[0]),
        make_job("hf_trainer_cudnn", **HUGGING_FACE_SETTINGS[0]),
        make_job("plain_lightning", **HUGGING_FACE_SETTINGS[1]),
    ]
    results = [run_here(job) for job in jobs]
    assert [result.failure for result in results] == [None] * 5
    losses = [result.first_loss for result in results]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-4)  # the Trainer logs four decimals
    assert losses[0] == pytest.approx(math.log(TOY.vocab_size), rel=0.02)  # random weights of this size know nothing


def test_what_a_program_cannot_do_is_in_the_table() -> None:
    ok = Result(seconds=0.5, allocated_bytes=2**30, first_loss=5.0)
    slow = Result(seconds=1.0, allocated_bytes=2**30, reserved_bytes=3 * 2**30, first_loss=5.0)
    lines = table(
        {
            100: [
                (make_job("ours", recompute="none"), ok),
                (make_job("hf_trainer"), slow),
                (make_job("bare_loop"), Result(failure="out of memory")),
            ]
        }
    ).splitlines()
    assert "| 200 | 2.00 | 1.0 |" in lines[2]
    assert "| 100 | 1.00 | 1.0 (3.0) |" in lines[3]
    assert "out of memory" in lines[4]


def test_the_fastest_setting_that_runs_counts() -> None:
    found = {"a": Result(seconds=2.0), "b": Result(failure="out of memory"), "c": Result(seconds=1.0)}
    jobs = [make_job("ours", recompute=name) for name in found]
    assert best(jobs, lambda job: found[job.setting["recompute"]])[0] == jobs[2]
    assert best(jobs[1:2], lambda job: found[job.setting["recompute"]])[1].failure == "out of memory"
