"""LoRA on one device, side by side: this project, and what people use instead.

    python -m benchmarks.long_sft                                       8B at 8K and 32K on a GPU; toy size without one
    python -m benchmarks.long_sft lengths=131072 arms=ours,hf_trainer   one timed step takes a minute there
    python -m benchmarks.long_sft out=docs/long_sft.md

Every arm is a process of its own with the same random weights, rows and steps: LoRA of rank 16 on all linear layers,
one row of one document a step. Programs with settings are run with each, and the fastest that fits counts. The table
gives tokens/s, the ratio to the tuned transformers Trainer, peak memory, MFU (model FLOPs of `accounting.py` over 989
TFLOP/s), the share of the roof of an H200 for the same recomputation, and the loss of step 1, in which all must agree.
TRL is run where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.accounting import PEAK_DATASHEET
from benchmarks.sft_arms.job import Job, Result

HUGGING_FACE_SETTINGS: list[dict[str, Any]] = [
    {"gradient_checkpointing": False},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"every_n_layers": 2}},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"offload": True}},
]
OUR_SETTINGS: list[dict[str, Any]] = [
    {"recompute": "none"},
    {"recompute": "keep_attention"},
    {"recompute": "keep_attention", "mlp_tile_size": 4096},
    {"recompute": "keep_attention", "mlp_tile_size": 4096, "offload_to_host": True, "keep_on_device": 2},
]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "ours": OUR_SETTINGS,
    "bare_loop": OUR_SETTINGS,
    "hf_trainer": HUGGING_FACE_SETTINGS,
    "hf_trainer_cudnn": HUGGING_FACE_SETTINGS,
    "trl_trainer": HUGGING_FACE_SETTINGS,
    "plain_lightning": HUGGING_FACE_SETTINGS[:2],
}
NAMES = {
    "ours": "this project",
    "bare_loop": "this project, bare loop",
    "hf_trainer": "transformers Trainer + PEFT",
    "hf_trainer_cudnn": "the same, given cuDNN attention",
    "trl_trainer": "TRL SFTTrainer + PEFT",
    "plain_lightning": "Lightning + transformers + PEFT",
}
REFERENCE = "hf_trainer"
PATIENCE_SECONDS = 3600


def arms() -> dict[str, Callable[[Job], Result]]:
    """Name -> program."""
    from benchmarks.sft_arms import ours, peers

    return {
        "ours": ours.through_the_trainer,
        "bare_loop": ours.bare_loop,
        "hf_trainer": peers.hf_trainer,
        "hf_trainer_cudnn": peers.hf_trainer_cudnn,
        "trl_trainer": peers.trl_trainer,
        "plain_lightning": peers.plain_lightning,
    }


def run_here(job: Job) -> Result:
    """One arm in this process; what it cannot do is said in its result."""
    try:
        return arms()[job.arm](job)
    except torch.OutOfMemoryError:
        return Result(failure="out of memory")
    except (ImportError, TypeError, ValueError) as error:  # not installed, or without that setting
        return Result(failure=str(error).splitlines()[0][:120])


def run_apart(job: Job) -> Result:
    """One arm in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.long_sft", f"job={json.dumps(asdict(job))}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no word"]
        return Result(failure="out of memory" if "OutOfMemory" in done.stderr else lines[-1][:120])
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def best(jobs: Sequence[Job], run: Callable[[Job], Result]) -> tuple[Job, Result]:
    """The fastest of some settings that ran; the first with its failure if none did."""
    done = [(job, run(job)) for job in jobs]
    finished = [(job, result) for job, result in done if result.seconds is not None]
    return min(finished, key=lambda one: one[1].seconds or 0.0) if finished else done[0]


def table(outcomes: dict[int, list[tuple[Job, Result]]]) -> str:
    """All lengths, as Markdown."""
    titles = "tokens/s | to tuned Trainer | peak GiB (reserved) | MFU | of roof | loss of step 1"
    lines = [f"| length | program | setting | {titles} |", "|---:|:---|:---|---:|---:|---:|---:|---:|---:|"]
    for length, done in outcomes.items():
        reference = next((r.seconds for job, r in done if job.arm == REFERENCE), None)
        lines += [_line(length, job, result, reference) for job, result in done]
    return "\n".join(lines)


def _line(length: int, job: Job, result: Result, reference: float | None) -> str:
    setting = ", ".join(f"{key}={value}" for key, value in job.setting.items()) or "–"  # noqa: RUF001
    if result.seconds is None:
        return f"| {length:,} | {NAMES[job.arm]} | – | {result.failure} | | | | | |"  # noqa: RUF001
    flops = job.shape.model_flops([length], lora=True)
    ratio = f"{reference / result.seconds:.2f}" if reference else "–"  # noqa: RUF001
    recompute = job.setting.get("recompute") or ("full" if job.setting.get("gradient_checkpointing") else "none")
    on_gpu = job.device.type == "cuda"
    mfu = f"{flops / result.seconds / PEAK_DATASHEET:.1%}" if on_gpu else "not measured"
    roof = job.shape.roof_seconds([length], lora=True, recompute=recompute) / result.seconds
    cells = [
        f"{length:,}",
        NAMES[job.arm],
        setting,
        f"{length / result.seconds:,.0f}",
        ratio,
        _gib(result),
        mfu,
        f"{roof:.2f}" if on_gpu else "not measured",
        f"{result.first_loss:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def _gib(result: Result) -> str:
    """Peak of the tensors, and of what torch took from the device for them."""
    peak = f"{(result.allocated_bytes or 0) / 2**30:.1f}"
    return peak if result.reserved_bytes is None else f"{peak} ({result.reserved_bytes / 2**30:.1f})"


def main(words: Sequence[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    if "job" in given:
        print(json.dumps(run_here(Job(**json.loads(given["job"]))).as_dict()))
        return
    on_gpu = torch.cuda.is_available()
    model = given.get("model", "llama_8b" if on_gpu else "toy")
    lengths = [int(n) for n in given.get("lengths", "8192,32768" if on_gpu else "256").split(",")]
    chosen = (
        given["arms"].split(",")
        if "arms" in given
        else [name for name in SETTINGS if name != "trl_trainer" or importlib.util.find_spec("trl") is not None]
    )
    timed = int(given.get("steps", 5))
    outcomes: dict[int, list[tuple[Job, Result]]] = {}
    for length in lengths:
        outcomes[length] = []
        for arm in chosen:
            settings = SETTINGS[arm] if on_gpu else SETTINGS[arm][:2]
            warm_up = 3 if length < 131072 else 1
            jobs = [Job(arm, model, length, setting, warm_up=warm_up, timed=timed) for setting in settings]
            outcomes[length].append(best(jobs, run_apart))
            print(f"{length:,} {arm}: {outcomes[length][-1][1]}", file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if on_gpu else "the CPU, at toy size; nothing was measured on a GPU"
    text = f"LoRA, {model}, on {device} (python -m benchmarks.long_sft {' '.join(words)})\n\n{table(outcomes)}\n"
    print(text)
    if "out" in given:
        Path(given["out"]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
