"""A model whose state is what trains: frozen weights are neither saved nor expected.

Two hooks of torch do it for every way a state is saved and read: one file, FSDP2's folders, `load_weights`. Whatever
trains stays strict, so that a missing or foreign tensor of the adapter is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle


def keep_trained_alone(model: torch.nn.Module) -> list[RemovableHandle]:
    """Leave frozen parameters out of `model.state_dict()`, and do not ask for them in `load_state_dict`.

    Returns:
        Handles that undo it.
    """
    return [
        model.register_state_dict_post_hook(_drop_frozen),
        model.register_load_state_dict_post_hook(_forgive_frozen),
    ]


def trained_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that train; a tied one has several."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def _drop_frozen(model: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    trained = {prefix + name for name in trained_names(model)}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]


def _forgive_frozen(model: torch.nn.Module, incompatible: Any) -> None:
    # The names are those of the outermost module that is loaded, which has this one under a prefix it does not tell.
    trained = trained_names(model)
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if trained & _endings(name)]


def _endings(name: str) -> set[str]:
    """a.b.c -> a.b.c, b.c, c."""
    parts = name.split(".")
    return {".".join(parts[k:]) for k in range(len(parts))}
