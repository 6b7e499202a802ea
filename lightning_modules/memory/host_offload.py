"""The inputs of checkpointed layers in the host's memory between forward and backward.

    forward    layer 0      layer 1      layer 2      layer 3      keep_on_device=1
    to host       x0 ------>   x1 ------>   x2 ------>             x3 stays
    backward   layer 3      layer 2      layer 1      layer 0
    to device     x2 ------>   x1 ------>   x0 ------>

Copies run on a stream of their own beside the computation of the next layer, at most two at a time in the forward and
one ahead of its layer in the backward, so that a device holds three inputs and not one for each layer. They are hidden
where the host takes 8 KiB a token and layer of an 8B model as fast as a layer computes (3.5 GB/s at 131072 tokens).
The last layers' inputs are wanted again at once and stay. On a CPU the same code makes plain copies.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_modules.memory.layer_calls import LayerCall

COPIES_AT_ONCE = 2
"""Copies to the host whose sources are still held, before the computation waits for the older one."""


class HostBlocks:
    """Blocks of host memory of one size, handed out last in, first out.

    The size is a power of two, an eighth of the first request or less, at most `largest`: torch rounds pinned memory
    up to a power of two, and one buffer for each checkpoint would waste up to half of the host.
    """

    def __init__(self, *, largest: int = 64 << 20) -> None:
        self.largest = largest
        self.block_bytes = 0
        self.num_blocks = 0
        self._free: list[torch.Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Host memory that was ever needed at once, handed out or not."""
        return self.num_blocks * self.block_bytes

    def take(self, num_bytes: int, *, pinned: bool) -> list[torch.Tensor]:
        """Blocks that hold `num_bytes` together, [block_bytes] uint8 each."""
        if not self.block_bytes:
            self.block_bytes = min(1 << max(0, (num_bytes // 8).bit_length() - 1), self.largest)
        return [self._block(pinned) for _ in range(-(-num_bytes // self.block_bytes))]

    def give_back(self, blocks: list[torch.Tensor]) -> None:
        self._free += reversed(blocks)

    def _block(self, pinned: bool) -> torch.Tensor:
        if self._free:
            return self._free.pop()
        self.num_blocks += 1
        return torch.empty(self.block_bytes, dtype=torch.uint8, pin_memory=pinned)


class OffloadedInput:
    """One layer's input, wherever it is: on its device, in host blocks, or on its way."""

    def __init__(self, hidden_states: torch.Tensor, *, blocks: HostBlocks, below: OffloadedInput | None) -> None:
        self.shape, self.dtype, self.device = hidden_states.shape, hidden_states.dtype, hidden_states.device
        self.below = None if below is None else weakref.ref(below)
        self.on_device: torch.Tensor | None = hidden_states.detach()
        self.on_host: list[torch.Tensor] = []
        self.arrived: Any = None
        self._blocks = blocks

    def __del__(self) -> None:  # a forward without a backward
        self._blocks.give_back(self.on_host)


class HostOffload:
    """Holds layers' inputs on the host.

    Args:
        num_layers: Layers of the model.
        keep_on_device: The last layers, whose inputs are not moved.
        largest_block: Bytes of a block of host memory, at most.
    """

    def __init__(self, *, num_layers: int, keep_on_device: int, largest_block: int = 64 << 20) -> None:
        self.first_kept = num_layers - keep_on_device
        self.blocks = HostBlocks(largest=largest_block)
        self._newest: weakref.ref[OffloadedInput] | None = None
        self._leaving: deque[tuple[Any, torch.Tensor]] = deque()
        self._streams: dict[torch.device, Any] = {}

    def save(self, hidden_states: torch.Tensor, call: LayerCall) -> OffloadedInput:
        """Start to move a layer's input away, unless the layer is one of the last."""
        newest = self._newest() if self._newest is not None and call.layer > 0 else None
        saved = OffloadedInput(hidden_states, blocks=self.blocks, below=newest)
        self._newest = weakref.ref(saved)
        if call.layer < self.first_kept:
            self._send(saved)
            self._forget_sources(COPIES_AT_ONCE)
        else:
            self._forget_sources(0)
        return saved

    def load(self, saved: OffloadedInput) -> torch.Tensor:
        """The input back on its device; that of the layer below is sent after it."""
        self._forget_sources(0)
        self._fetch(saved)
        tensor, saved.on_device = saved.on_device, None
        if tensor is None:
            raise RuntimeError("a layer's input was handed over to its recomputation; a backward pass can run once")
        if saved.arrived is not None:
            torch.cuda.current_stream(saved.device).wait_event(saved.arrived)
        if saved.below is not None and (below := saved.below()) is not None:
            self._fetch(below)
        return tensor

    def _send(self, saved: OffloadedInput) -> None:
        source, saved.on_device = saved.on_device, None
        assert source is not None
        flat = source.contiguous().view(-1).view(torch.uint8)
        saved.on_host = self.blocks.take(flat.numel(), pinned=source.is_cuda)
        with self._beside(saved.device):
            for block, piece in zip(saved.on_host, flat.split(self.blocks.block_bytes), strict=True):
                block[: len(piece)].copy_(piece, non_blocking=True)
            self._leaving.append((_event(saved.device), flat))

    def _fetch(self, saved: OffloadedInput) -> None:
        if not saved.on_host:
            return
        # Allocated on the computing stream, which will free it; the copy waits for what still uses that memory.
        tensor = torch.empty(saved.shape, dtype=saved.dtype, device=saved.device)
        with self._beside(saved.device):
            pieces = tensor.view(-1).view(torch.uint8).split(self.blocks.block_bytes)
            for block, piece in zip(saved.on_host, pieces, strict=True):
                piece.copy_(block[: len(piece)], non_blocking=True)
            saved.arrived = _event(saved.device)
        # Whoever takes the blocks next fills them on the same stream, behind this copy.
        self.blocks.give_back(saved.on_host)
        saved.on_device, saved.on_host = tensor, []

    def _forget_sources(self, left: int) -> None:
        """Let go of the device's memory of copies to the host, oldest first, once they are through."""
        while len(self._leaving) > left:
            done, source = self._leaving.popleft()
            if done is not None:
                torch.cuda.current_stream(source.device).wait_event(done)

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """On the copying stream, after everything that the computing stream has been given so far."""
        if device.type != "cuda":
            yield
            return
        # Not run: there was no GPU to run it on.
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield


def _event(device: torch.device) -> Any:
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
