"""RoPE held at the table of one length, for types whose table follows the longest position met (dynamic, longrope).

A cache holds keys that were rotated when they were read. Were the table to follow the length, keys read early would be
rotated otherwise than the queries that look for them, and a prompt read in chunks otherwise than one read whole. So the
table of the length that is going to be reached is set once, and stays until everything is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_modules.attention.layout import padded_lengths
from lightning_modules.rope.certificate import LENGTH_DEPENDENT
from lightning_modules.rope.config import by_layer_kind, current_rope_parameters
from lightning_modules.rope.contract import rotary_modules


@contextmanager
def same_rotary_tables(model: torch.nn.Module) -> Iterator[None]:
    """Puts back what modules whose RoPE follows the longest position (dynamic, longrope) change in a forward."""
    modules = list(rotary_modules(model).values())
    kept = [
        (vars(module).copy(), {name: (b, b.clone()) for name, b in module.named_buffers(recurse=False)})
        for module in modules
    ]
    try:
        yield
    finally:
        for module, (attributes, buffers) in zip(modules, kept, strict=True):
            vars(module).clear()  # of what the forward added
            vars(module).update(attributes)
            module._buffers = {name: buffer.copy_(values) for name, (buffer, values) in buffers.items()}


@contextmanager
def rope_at_length(model: Any, length: int) -> Iterator[tuple[float, ...]]:
    """Every forward inside rotates as one of `length` tokens would; afterwards the tables are what they were.

    Args:
        model: A transformers decoder.
        length: Tokens that are going to be read and written. Lengths are rounded up by at most an eighth, so that one
            more question about a text does not rotate all of it anew.

    Yields:
        The frequencies and factors in force; keys that were rotated with others cannot be used.
    """
    modules = list(rotary_modules(model).values())
    kinds = by_layer_kind(model.config, current_rope_parameters(model.config))
    following = [kind for kind, parameters in kinds.items() if parameters["rope_type"] in LENGTH_DEPENDENT]
    with same_rotary_tables(model):
        for module in modules if following else ():
            for kind in following:
                _set_length(module, kind, int(padded_lengths(torch.tensor([length]))))
            _stop_following(module, following)
        yield tuple(value for module in modules for value in _table(module))


def _set_length(module: Any, kind: str | None, length: int) -> None:
    """Has transformers compute the table: it grows from whatever was met before, so that is forgotten first."""
    options = {} if kind is None else {"layer_type": kind}
    device = getattr(module, "inv_freq" if kind is None else f"{kind}_inv_freq").device
    for last_position in (0, length - 1):
        module(torch.empty(1, device=device), torch.tensor([[last_position]], device=device), **options)


def _stop_following(module: Any, following: list[str | None]) -> None:
    """`rope_type` is what transformers' decorator asks before it looks at the positions; `default` is left alone."""
    if isinstance(module.rope_type, dict):
        module.rope_type = {**module.rope_type, **dict.fromkeys(following, "default")}
    else:
        module.rope_type = "default"


def _table(module: torch.nn.Module) -> list[float]:
    factors = [float(value) for name, value in vars(module).items() if name.endswith("attention_scaling")]
    return [*factors, *(value for _, buffer in module.named_buffers(recurse=False) for value in buffer.tolist())]
