"""When gradients travel: once an optimizer step, with its last micro-batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


def synchronise_gradients(wrapped: nn.Module | None, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """A context for one micro-batch's forward and backward that reduces gradients over ranks only when `last`.

    Args:
        wrapped: What the strategy made of the LightningModule (DDP, or the module itself).
        model: The model inside, which FSDP2 may have sharded.
        last: Whether this is the step's last micro-batch.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    elif isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return nullcontext()
