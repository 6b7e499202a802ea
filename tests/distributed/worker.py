"""A few optimizer steps in the real Trainer, written to files: `python -m tests.distributed.worker <job as JSON>`.

With several devices Lightning starts this module again for each further rank.
"""

import json  # no `annotations` from the future here: DDP looks at the types of its hook
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.nn.parallel import DistributedDataParallel

from datamodules.step_batches import collate
from lightning_modules.base import CausalLMModule
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    make_module,
    make_trainer,
    step_loader,
    uneven_rows,
    whole,
)


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
        strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend="gloo")
    trainer = make_trainer(devices=ranks, strategy=strategy, callbacks=[recorded, reductions])
    module: CausalLMModule = make_module(max_steps=job["steps"])
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
        "first": trainer.is_global_zero,
    }


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    for strategy in job["strategies"]:
        result = run({**job, "strategy": strategy})
        if result["first"]:
            torch.save(result, Path(job["folder"]) / f"{strategy}.pt")


if __name__ == "__main__":
    main()
