"""How long a step takes at least, and how long it may take: roofs, and the share of them that is assumed.

    products, attention     FLOPs of flops.py over the peaks of conf/hardware times a share reached
    elementwise             norms, RoPE, activations, residuals: 27 bytes of traffic a token, layer and number of H + I
    optimizer               a step reads and writes weights, gradients and states once
    exposed                 what collectives and copies to the host take longer than what they run beside

Basis: 490 KiB of elementwise traffic a token and layer of an 8B Llama, and attention's backward as 2.5 forwards.
Stated error: the two ends of the shares, which are assumptions; nothing of it was measured on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from recipes.planning.flops import StepFlops, step_flops
from recipes.planning.hardware import Hardware
from recipes.planning.job import Job
from recipes.planning.memory import host_bytes

ELEMENTWISE_BYTES = 27.0
"""490 * 1024 bytes a token and layer of an 8B Llama, by the 18,432 numbers of its H + I."""


class Seconds(NamedTuple):
    """Of one optimizer step."""

    least: float
    most: float


def rank_flops(job: Job, *, seen: float) -> StepFlops:
    """What one rank computes in a step; `seen` is `flops.pairs` of its documents."""
    return step_flops(
        job.model,
        tokens=job.tokens * job.micro_batches,
        seen=seen,
        adapter_weights=None if job.adapter is None else job.adapter_weights,
        recompute=job.memory.recompute,
        layers_per_checkpoint=job.memory.layers_per_checkpoint,
    )


def step_seconds(job: Job, hardware: Hardware, *, seen: float) -> Seconds | None:
    """The time of a step.

    Args:
        job: The run.
        hardware: What it runs on.
        seen: `flops.pairs` of the documents of one rank in a step.

    Returns:
        None where the hardware's speed is not known.
    """
    if hardware.matmul_tflops is None:
        return None
    least, most = (_seconds(job, hardware, seen=seen, best=best) for best in (True, False))
    return Seconds(least, most)


def _seconds(job: Job, hardware: Hardware, *, seen: float, best: bool) -> float:
    matmul, attention, memory = (
        reached[int(best)] for reached in (hardware.matmul_reached, hardware.attention_reached, hardware.memory_reached)
    )
    assert hardware.matmul_tflops is not None
    assert hardware.attention_forward_tflops is not None
    assert hardware.attention_backward_tflops is not None
    assert hardware.memory_gb_per_s is not None
    step, model = rank_flops(job, seen=seen), job.model
    slower = 4.0 if job.precision == "fp32" else 1.0  # products in fp32 run at a fraction of 16 bits' speed
    compute = slower * step.linear / (hardware.matmul_tflops * 1e12 * matmul)
    kernels = step.attention_forward / hardware.attention_forward_tflops
    kernels += step.attention_backward / hardware.attention_backward_tflops
    compute += slower * kernels / (1e12 * attention)
    numbers = model.num_layers * (model.hidden_size + model.intermediate_size)
    traffic = job.tokens * job.micro_batches * ELEMENTWISE_BYTES * numbers
    compute += traffic / (hardware.memory_gb_per_s * 1e9 * memory)
    optimizer = (12.0 * job.trained + 2 * job.moments(adapter=True) + 2 * job.moments(adapter=False)) / job.shards
    return compute + optimizer / (hardware.memory_gb_per_s * 1e9 * memory) + _exposed(job, hardware, compute)


def _exposed(job: Job, hardware: Hardware, compute: float) -> float:
    """What collectives and copies to the host take beyond the computing that they run beside."""
    exposed = 0.0
    if job.ranks > 1:
        links = [hardware.interconnect_gb_per_s]
        links += [hardware.network_gb_per_s] if job.ranks > hardware.devices_per_node else []
        bandwidth = min(link for link in links if link is not None) * 1e9
        share = (job.ranks - 1) / job.ranks
        if job.sharded:
            gathers = 2 * job.micro_batches * job.compute_bytes * job.model.num_parameters  # forward and backward
            reductions = (job.micro_batches if job.reduces_always else 1) * 4 * job.trained
            exposed += max(0.0, share * (gathers + reductions) / bandwidth - compute)
        elif job.strategy == "ddp":  # with the backward of the last micro-batch alone
            exposed += max(0.0, share * 2 * 4 * job.trained / bandwidth - compute / job.micro_batches / 2)
    if job.memory.offload_to_host and hardware.host_gb_per_s is not None:
        away = job.micro_batches * host_bytes(job) / (hardware.host_gb_per_s * 1e9)
        exposed += max(0.0, away - compute / 3) + max(0.0, away - 2 * compute / 3)
    return exposed
