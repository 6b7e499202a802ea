"""When gradients travel: once an optimizer step, with its last micro-batch, or with every one.

once a step            every rank holds all gradients of the model in fp32 until then: 4 bytes a parameter
every micro-batch      FSDP2 alone: a rank holds its share of them; a reduction more for every micro-batch, which a
                       backward pass over tens of thousands of tokens hides
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lightning_modules.strategies.sharding import EVERY_MICRO_BATCH, ShardedStrategy


def synchronise_gradients(strategy: Strategy, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """A context for one micro-batch's forward and backward that reduces gradients over ranks when they should travel.

    Args:
        strategy: Of the trainer.
        model: The model inside, which FSDP2 may have sharded.
        last: Whether this is the step's last micro-batch.
    """
    if isinstance(model, FSDPModule):
        every = isinstance(strategy, ShardedStrategy) and strategy.reduce_gradients == EVERY_MICRO_BATCH
        model.set_requires_gradient_sync(last or every)
    elif isinstance(strategy.model, DistributedDataParallel) and not last:
        return strategy.model.no_sync()
    return nullcontext()
