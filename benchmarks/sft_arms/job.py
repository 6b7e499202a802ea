"""What every arm shares: the model, its weights, the rows, and how steps are timed."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.accounting import LLAMA_8B, TOY, Shape
from datamodules.batch import Batch

SHAPES = {"llama_8b": LLAMA_8B, "toy": TOY}


@dataclass(frozen=True)
class Job:
    """One arm at one length.

    Args:
        arm: Name of a program.
        model: `llama_8b` or `toy`.
        length: Tokens of a row, which is one document; a step is one row.
        setting: What the arm is tuned by, such as its recomputation.
        warm_up: Steps before the clock runs.
        timed: Steps that are timed.
        label_share: Share of the tokens at a row's end that are labels.
    """

    arm: str
    model: str
    length: int
    setting: dict[str, Any] = field(default_factory=dict)
    warm_up: int = 3
    timed: int = 5
    label_share: float = 1.0

    @property
    def shape(self) -> Shape:
        return SHAPES[self.model]

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights and of the computing."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def num_steps(self) -> int:
        return self.warm_up + self.timed


@dataclass
class Result:
    """What one arm did.

    Attributes:
        seconds: Of the median step.
        allocated_bytes: Peak, on CUDA; on a CPU the most memory that the process had.
        reserved_bytes: Peak of what torch took from the device.
        first_loss: Of the first step, which no update has touched yet.
        failure: Why there is nothing else, in a few words.
    """

    seconds: float | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    first_loss: float | None = None
    failure: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_of(shape: Shape, *, length: int) -> LlamaConfig:
    """A Llama of this shape that reads so many tokens."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )


def random_model(job: Job, *, attention: str) -> LlamaForCausalLM:
    """The same weights for every arm, drawn where they are used: N(0, 0.02), norms 1."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(job.shape, length=job.length))
    model.to_empty(device=job.device)
    generator = torch.Generator(job.device).manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(job.dtype)
        if parameter.ndim == 1:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0, 0.02, generator=generator)
        parameter.requires_grad_(False)
        assert name
    rotary = type(model.model.rotary_emb)(model.config)  # to_empty left its table as it found it
    model.model.rotary_emb = rotary.to(job.device)
    model.set_attn_implementation(attention)
    return model


def row(job: Job, step: int) -> Batch:
    """One document of random tokens; never zeros, on which products are faster than on numbers."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, job.shape.vocab_size, (1, job.length), generator=generator)
    labels = ids.clone()
    labels[:, : round(job.length * (1 - job.label_share))] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(job.length)[None],
        document_ids=torch.zeros_like(ids),
    )


class Clock:
    """Times steps, and takes the median of those after the warm-up."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.seconds: list[float] = []
        self._began = 0.0

    def begin(self) -> None:
        self._wait()
        self._began = time.perf_counter()

    def end(self) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self._began)

    def result(self, *, first_loss: float) -> Result:
        assert len(self.seconds) == self.job.num_steps, f"{len(self.seconds)} steps of {self.job.num_steps}"
        timed = sorted(self.seconds[self.job.warm_up :])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        reserved = None
        if self.job.device.type == "cuda":
            peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return Result(timed[len(timed) // 2], peak, reserved, first_loss)

    def _wait(self) -> None:
        if self.job.device.type == "cuda":
            torch.cuda.synchronize()
