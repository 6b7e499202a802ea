"""What a forward pass keeps for its backward pass, by torch's own hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Kept(NamedTuple):
    """One tensor that is kept; views of one storage are one."""

    dtype: torch.dtype
    num_bytes: int


@contextmanager
def kept_tensors(*, but: torch.nn.Module | None = None) -> Iterator[list[Kept]]:
    """Collects the storages that forwards inside keep, without the parameters of a model."""
    known = set() if but is None else {p.untyped_storage().data_ptr() for p in but.parameters()}
    found: dict[int, Kept] = {}
    tensors: list[torch.Tensor] = []  # alive, so that no storage takes a freed one's address
    out: list[Kept] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found.setdefault(storage.data_ptr(), Kept(tensor.dtype, storage.nbytes()))
            tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield out
    out.extend(found.values())
