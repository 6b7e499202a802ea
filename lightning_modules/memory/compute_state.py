"""What a computation depends on besides its inputs, kept so that it can be run again: random state and autocast.

Cost: 5 KB of the host's random state for each that is kept, and 16 bytes of a GPU's. Without it dropout would draw
another mask, and products would come in another precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class ComputeState:
    """Random state and autocast at one point of a forward pass."""

    device: torch.device
    host_random: torch.Tensor
    device_random: torch.Tensor | None
    autocast_dtype: torch.dtype | None

    @classmethod
    def now(cls, device: torch.device) -> ComputeState:
        """The state in which a computation on `device` would run at this moment."""
        return cls(
            device=device,
            host_random=torch.get_rng_state(),
            device_random=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            autocast_dtype=autocast_dtype(device),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Inside, computations draw and round as they did then; the random state outside is left alone."""
        devices = [self.device] if self.device_random is not None else []
        with torch.random.fork_rng(devices=devices), uncached_autocast(self.device, self.autocast_dtype):
            torch.default_generator.set_state(self.host_random)
            if self.device_random is not None:
                torch.cuda.set_rng_state(self.device_random, self.device)
            yield


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The working precision that autocast gives products on `device`; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def uncached_autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast that casts a weight anew and remembers no cast.

    A cast made without gradients and remembered would be handed to the next use of the weight, with gradients, and cut
    the weight off from its gradient: so does torch 2.11 (pytorch issue 158232, mended in 2.13).
    """
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)
