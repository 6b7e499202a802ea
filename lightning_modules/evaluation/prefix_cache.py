"""Keys and values of a prompt, kept from one question to the next: what two prompts begin with alike is read once.

Algorithm: the token ids that were read stand beside their keys and values. The next prompt keeps as many leading tokens
as are the same, one by one, and reads the rest; an edit in the middle of a text therefore costs what stands behind it.
Cost: the memory of the keys and values (2 * layers * kv heads * head dim * bytes a token), one comparison of ids a
prompt. Alternative: transformers' DynamicCache, which copies all keys and values for every token it appends.
"""

# K kv heads, T tokens, D head dim

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

WITH_KEYS = ("full_attention", "sliding_attention", "chunked_attention")
"""Values of `layer_types` whose layers keep keys and values; others keep a state that cannot be taken back."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room, so that appending copies nothing that is there already.

    A layer with a sliding window keeps everything too: the window is in the mask, and tokens can be taken back.
    """

    def __init__(self, **options: Any) -> None:  # transformers hands over settings of other kinds of layers
        super().__init__(**options)
        self.room = 0
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, K, T, D] keys and values; returns all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < end:
            self._move(key_states, value_states, start, max(end, self.room))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.truncate(end)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def truncate(self, length: int) -> None:
        """Keep so many tokens."""
        if self._buffers:
            self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def _move(self, key_states: torch.Tensor, value_states: torch.Tensor, start: int, room: int) -> None:
        fresh = [states.new_empty(*states.shape[:-2], room, states.shape[-1]) for states in (key_states, value_states)]
        for new, old in zip(fresh, self._buffers, strict=False):
            new[..., :start, :] = old[..., :start, :]
        self._buffers = fresh


class PrefixCache:
    """What one model has read. Use it with that model alone, and forget it when the weights change."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        self._rope: tuple[float, ...] = ()

    def begin(self, token_ids: Sequence[int], *, rope: tuple[float, ...], room: int) -> int:
        """Keep what the next prompt shares with what was read.

        Args:
            token_ids: The prompt. At least its last token is read anew, as its logits are wanted.
            rope: The frequencies that its keys are rotated with; under others nothing is kept.
            room: Tokens that are going to be held, answer included.

        Returns:
            How many leading tokens need not be read.
        """
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.token_ids, token_ids[:-1], strict=False))
        kept = sum(1 for _ in same) if rope == self._rope else 0
        if kept == 0:
            self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        self._rope = rope
        self._truncate(token_ids[:kept])
        for layer in self._layers:
            layer.room = room
        self.cache.layer_class_to_replicate = _with_room(room)
        return kept

    def end(self, token_ids: Sequence[int]) -> None:
        """Note what was read in forwards that came to their end; what an interrupted one left is written over."""
        self.token_ids = list(token_ids)

    @property
    def _layers(self) -> list[RoomyLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, RoomyLayer)]

    def _truncate(self, token_ids: Sequence[int]) -> None:
        self.token_ids = list(token_ids)
        for layer in self._layers:
            layer.truncate(len(token_ids))


def refuse_uncached(config: PretrainedConfig) -> None:
    """Some models keep a running state and not the keys of every token, which no prefix can be cut out of.

    Raises:
        ValueError: This is one of them.
    """
    kinds = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ()) - {*WITH_KEYS}
    if kinds:
        raise ValueError(
            f"a model of model_type={config.model_type} has layers of {', '.join(sorted(kinds))}, whose state cannot be"
            " kept by token; choose a decoder with attention in every layer"
        )


def _with_room(room: int) -> Any:
    """What transformers calls when it meets a layer for the first time."""

    def make() -> RoomyLayer:
        layer = RoomyLayer()
        layer.room = room
        return layer

    return make
