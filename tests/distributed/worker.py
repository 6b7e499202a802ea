"""A few optimizer steps in the real Trainer, written to files: `python -m tests.distributed.worker <folder>`.

With several devices Lightning starts this module again for each further rank. Starting costs far more than the steps,
so one start does all jobs of the folder's `jobs.json`, those of `run` here and those of the modules beside it; what
each rank returns lies in `<job>.<rank>.pt`.
"""

import json  # no `annotations` from the future here: DDP looks at the types of its hook
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.nn.parallel import DistributedDataParallel

from datamodules.step_batches import collate
from lightning_modules.base import CausalLMModule
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.optim.adamw_bf16 import adamw_bf16
from lightning_modules.optim.muon import muon
from lightning_modules.peft.long_lora import LongLora
from lightning_modules.strategies.sharding import ShardedStrategy
from tests.distributed.gated_runs import gated
from tests.distributed.rope_by_step import rope_by_step
from tests.distributed.sampled_steps import sampled_steps
from tests.distributed.stopped_runs import stopped_and_resumed
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    TinySource,
    make_module,
    make_trainer,
    sgd,
    step_loader,
    uneven_rows,
    whole,
)

OPTIMIZERS = {
    "sgd": sgd,
    "muon": partial(muon, lr=1e-2, weight_decay=0.1),
    "adamw_bf16": partial(adamw_bf16, lr=1e-2, weight_decay=0.1),
}


class CountedReductions(pl.Callback):
    """Counts the collectives that carry gradients, where DDP and FSDP2 start them."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.register_comm_hook(None, self._all_reduce)
        else:
            original = _fsdp_param_group.foreach_reduce  # type: ignore[attr-defined]

            def counted(*args: Any, **kwargs: Any) -> Any:
                self.count += 1
                return original(*args, **kwargs)

            _fsdp_param_group.foreach_reduce = counted  # type: ignore[attr-defined]

    def _all_reduce(self, _: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.count += 1
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train on the four uneven rows, dealt to ranks and micro-batches as the job says."""
    ranks, strategy_name = job["ranks"], job["strategy"]
    reductions, recorded = CountedReductions(), RecordedGradients()
    strategy: Any = "auto"
    if strategy_name == "ddp":
        strategy = DDPStrategy(process_group_backend="gloo")
    elif strategy_name == "fsdp":
        reduce = job.get("reduce_gradients", "every_micro_batch")
        strategy = ShardedStrategy(data_parallel_size=ranks, reduce_gradients=reduce, process_group_backend="gloo")
    half = job.get("bf16", False)  # base weights and computing
    precision = "bf16-mixed" if half and strategy_name != "fsdp" else "32-true"
    trainer = make_trainer(devices=ranks, strategy=strategy, callbacks=[recorded, reductions], precision=precision)
    module: CausalLMModule = make_module(
        max_steps=job["steps"],
        optimizer=OPTIMIZERS[job.get("optimizer", "sgd")],
        activation_memory=ActivationMemory(**job.get("activations", {})),
        adapter=LongLora(**job["adapter"]) if "adapter" in job else None,
        **({"source": TinySource(dtype=torch.bfloat16), "compute_dtype": torch.bfloat16} if half else {}),
    )
    rows = uneven_rows()[trainer.global_rank :: ranks]
    sizes = job["micro_batches"]
    assert sum(sizes) == len(rows)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    step = [collate(rows[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
    trainer.fit(module, step_loader([step] * job["steps"]))
    return {
        "gradients": recorded.steps,
        "weights": {name: whole(p.detach()) for name, p in module.causal_lm.named_parameters()},
        "reductions": reductions.count,
    }


def done(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    match job["kind"]:
        case "stopped":
            return stopped_and_resumed(job, folder)
        case "gate":
            return gated(job)
        case "rope_by_step":
            return rope_by_step()
        case "conversations":
            return sampled_steps(folder, strategy=job["strategy"])
    return run(job)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")).items():
        result = done(job, folder / name)
        torch.save(result, folder / f"{name}.{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()  # left open, gloo's threads now and then abort the process as it ends


if __name__ == "__main__":
    main()
