from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest storage that any operation inside allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(outputs):
            if tensor.untyped_storage().data_ptr() not in given:  # a view allocates nothing
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return outputs


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]
