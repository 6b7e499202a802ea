"""Perplexity by context length and needle recall, in memory that does not grow with length times vocabulary.

Algorithm: the backbone runs over the whole row, the output head only over the positions that predict the scored tail,
and those in chunks, so that [T, V] logits never exist (32K x 49K in fp32 are 6.4 GB). Cost: one forward a row; the
head's part is tail x V. Alternative: `generate`, which costs a step a token and says nothing about near misses.
"""

# B rows, T tokens, H hidden size, V vocabulary, L lengths, D depths, S samples, A answer tokens

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional as F

HEAD_CHUNK = 1024
"""Positions whose logits are held at once."""

AttentionKwargs = Callable[[torch.Tensor], dict[str, Any]]
"""From document_ids [B, T] to what the attention in use reads besides hidden states."""


class TailScore(NamedTuple):
    token_losses: torch.Tensor  # [B, last] fp32, negative log-likelihood in nats
    correct: torch.Tensor  # [B, last] bool, the most likely token is the true one


class NeedleResult(NamedTuple):
    """Needle recall of one model; `answer_nll` still moves where recall is flat at 0 or 1."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    recall: np.ndarray  # [L, D] share of samples whose answer tokens are all right, 0..1
    answer_nll: np.ndarray  # [L, D] nats of a whole answer, mean over samples

    def mean_recall(self) -> dict[int, float]:
        """Length -> recall, mean over depths."""
        return {length: float(row.mean()) for length, row in zip(self.lengths, self.recall, strict=True)}


class NeedleCell(Protocol):
    @property
    def input_ids(self) -> np.ndarray: ...  # [S, T], ends in the answer
    @property
    def answers(self) -> np.ndarray: ...  # [S, A]


class Needles(Protocol):
    """What `needle_recall` asks of a grid; `datamodules.evaluation.NeedleGrid` is one."""

    @property
    def lengths(self) -> Sequence[int]: ...
    @property
    def depths(self) -> Sequence[float]: ...
    def rows(self, length: int, depth: float) -> NeedleCell: ...


def document_ids_only(document_ids: torch.Tensor) -> dict[str, Any]:
    return {"document_ids": document_ids}


def score(
    model: Any,
    input_ids: torch.Tensor,
    last: int,
    *,
    dtype: torch.dtype | None = None,
    attention_kwargs: AttentionKwargs = document_ids_only,
) -> TailScore:
    """Loss and top-1 correctness of each row's final tokens, every row one document.

    Args:
        model: A causal LM of transformers (or one wrapped by peft): `get_decoder()` and `get_output_embeddings()`.
        input_ids: [B, T] int64 on the model's device.
        last: How many final tokens are scored, 1..T-1.
        dtype: Autocast of the backbone, such as torch.bfloat16, or None for none; the head runs in its own weights'
            dtype, since bf16 logits would round losses to about 1 %.
        attention_kwargs: What the attention reads, made from document_ids (zeros) [B, T].

    Returns:
        [B, last] losses and correctness.
    """
    B, T = input_ids.shape
    if not 1 <= last < T:
        raise ValueError(f"last={last} tokens of rows of {T} cannot be scored; the first token has nothing before it")
    refuse_rescaled_logits(model.config)
    with torch.autocast(input_ids.device.type, dtype=dtype, enabled=dtype is not None):
        hidden_states = model.get_decoder()(
            input_ids=input_ids,
            position_ids=torch.arange(T, device=input_ids.device).expand(B, T),
            use_cache=False,
            **attention_kwargs(torch.zeros_like(input_ids)),
        ).last_hidden_state
    head = model.get_output_embeddings()
    hidden = hidden_states[:, -last - 1 : -1].flatten(0, 1).to(head.weight.dtype)  # [B * last, H]
    targets = input_ids[:, -last:].flatten()
    losses, correct = [], []
    for states, target in zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True):
        with torch.autocast(input_ids.device.type, enabled=False):
            logits = head(states).float()  # [chunk, V]
        losses.append(F.cross_entropy(logits, target, reduction="none"))
        correct.append(logits.argmax(-1) == target)
    return TailScore(torch.cat(losses).view(B, last), torch.cat(correct).view(B, last))


def refuse_rescaled_logits(config: Any) -> None:
    """Some models cap or scale the logits after the head; say so before the numbers are wrong."""
    for name, neutral in {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}.items():
        value = getattr(config, name, neutral)
        if value not in (None, neutral):
            raise ValueError(
                f"the model's config has {name}={value}, which this evaluation does not apply; use suite=lm_eval"
            )


def perplexity_by_length(
    model: Any,
    windows: Mapping[int, np.ndarray],
    *,
    tail_tokens: int,
    batch_tokens: int = 32768,
    dtype: torch.dtype | None = None,
    attention_kwargs: AttentionKwargs = document_ids_only,
) -> dict[int, float]:
    """Perplexity of the windows' tails for each context length; `tail_windows` makes them share the tails.

    Args:
        model: As in `score`; it comes back in the mode (train or eval) that it came in.
        windows: length -> [W, length] int64.
        tail_tokens: How many final tokens of each window count.
        batch_tokens: Most tokens in one forward; a row is never split.
        dtype: As in `score`.
        attention_kwargs: As in `score`.

    Returns:
        length -> exp of the mean loss over windows and tails.
    """
    perplexity = {}
    with evaluating(model):
        for length, rows in windows.items():
            total = 0.0
            for batch in batches(rows, batch_tokens, device_of(model)):
                tail = score(model, batch, tail_tokens, dtype=dtype, attention_kwargs=attention_kwargs)
                total += tail.token_losses.double().sum().item()
            perplexity[length] = math.exp(total / (len(rows) * tail_tokens))
    return perplexity


def needle_recall(
    model: Any,
    grid: Needles,
    *,
    batch_tokens: int = 32768,
    dtype: torch.dtype | None = None,
    attention_kwargs: AttentionKwargs = document_ids_only,
) -> NeedleResult:
    """Share of needles found at each length and depth: every answer token is the most likely one, teacher-forced.

    This equals exact match of greedy generation: a greedy answer is right exactly when each token is the most likely
    one, given the right ones before it.

    Args:
        model: As in `score`; it comes back in the mode (train or eval) that it came in.
        grid: `datamodules.evaluation.NeedleGrid`.
        batch_tokens: Most tokens in one forward; a row is never split.
        dtype: As in `score`.
        attention_kwargs: As in `score`.
    """
    recall = np.zeros((len(grid.lengths), len(grid.depths)))
    answer_nll = np.zeros_like(recall)
    with evaluating(model):
        for row, length in enumerate(grid.lengths):
            for column, depth in enumerate(grid.depths):
                cell = grid.rows(length, depth)
                for batch in batches(cell.input_ids, batch_tokens, device_of(model)):
                    tail = score(model, batch, cell.answers.shape[1], dtype=dtype, attention_kwargs=attention_kwargs)
                    recall[row, column] += tail.correct.all(-1).sum().item()
                    answer_nll[row, column] += tail.token_losses.double().sum().item()
                recall[row, column] /= len(cell.answers)
                answer_nll[row, column] /= len(cell.answers)
    return NeedleResult(tuple(grid.lengths), tuple(grid.depths), recall, answer_nll)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval and inference mode inside; afterwards every module is in the mode it was in (some may have been frozen)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def batches(rows: np.ndarray, batch_tokens: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Rows [N, T] as [B, T] tensors with B * T <= batch_tokens, or B = 1."""
    for batch in torch.from_numpy(rows).split(max(1, batch_tokens // rows.shape[1])):
        yield batch.to(device)


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
