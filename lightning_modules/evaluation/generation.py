"""Answers of a decoder to long prompts, with a cache, token by token.

Algorithm: all of the prompt but its last token is read in chunks whose keys and values are kept; transformers'
`generate` then goes on from there on `sdpa`, since our attentions have no cache. Nothing ever holds [T, V] logits or
[T, T] masks: a chunk of C tokens has a mask of C * T. Cost: one forward of the prompt, and one of a single token for
each token of the answer, both on what a `PrefixCache` does not hold yet. Alternative: `generate` alone, which reads the
prompt in one forward and takes its settings partly from the model's folder.
"""

# T tokens of the prompt, V vocabulary

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from lightning_modules.evaluation.prefix_cache import PrefixCache, refuse_uncached
from lightning_modules.evaluation.scoring import device_of, evaluating
from lightning_modules.evaluation.streaming_text import StreamingText
from lightning_modules.rope.at_length import rope_at_length

PREFILL_CHUNK = 2048
"""Tokens of the prompt that are read in one forward."""

OUR_ATTENTIONS = "lcr_"
"""What the names of our attention functions begin with; none of them has a cache."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is drawn; as it stands, the most likely token each time.

    Args:
        max_new_tokens: Length of the answer at most.
        temperature: Divides the logits before drawing; 0 draws nothing and takes the most likely token.
        top_p: Draw among the most likely tokens that have this share of the probability together, above 0 up to 1.
        repetition_penalty: Above 1, makes tokens that the answer already has less likely. The prompt does not count, or
            a long text could no longer be quoted.
        stop_ids: Tokens that end the answer.
        stop_strings: Texts that end the answer and are no part of it.
        seed: Draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed, words in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (the most likely token) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 is none"),
            ("seed", 0 <= self.seed < 2**63, "a whole number, not negative"),
        ):
            if not allowed:
                raise ValueError(f"{name}={getattr(self, name)} must be {words}")


class Generation(NamedTuple):
    """One answer.

    Attributes:
        text: Without special tokens and stop strings.
        token_ids: All that were drawn, the one that ended the answer included.
        num_prompt_tokens: Tokens of the prompt.
        num_reused_tokens: Those of them that a cache held already.
        first_token_seconds: From the call to the first token of the answer; 0 if there is none.
        seconds: From the call to the last.
        stopped_by: stop_id | stop_string | max_new_tokens | interruption.
    """

    text: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_reused_tokens: int
    first_token_seconds: float
    seconds: float
    stopped_by: str

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, as the first waits for the prompt; 0 if there are none."""
        drawing = self.seconds - self.first_token_seconds
        return (len(self.token_ids) - 1) / drawing if len(self.token_ids) > 1 and drawing > 0 else 0.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while an answer was made; `generation` is what there is of it."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self.generation = generation


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    *,
    decoding: Decoding = Decoding(),
    cache: PrefixCache | None = None,
    on_text: Callable[[str], None] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Generation:
    """One answer to one prompt.

    Weights, modes, random state, attention and RoPE tables of the model are afterwards what they were.

    Args:
        model: A decoder of transformers, not sharded, its RoPE patched or not; in training or not.
        tokenizer: Its tokenizer.
        prompt_ids: The prompt, one token or more.
        decoding: How the answer is drawn.
        cache: What this model has read before, and from now on this prompt and its answer; None keeps nothing.
        on_text: Called with each piece of text as it comes.
        prefill_chunk: Tokens of the prompt read in one forward.

    Raises:
        ValueError: The prompt is empty, or the model has layers that keep no keys and values.
        Interrupted: Ctrl-C; the cache is in order, and the answer so far is in it.
    """
    if not prompt_ids:
        raise ValueError("the prompt has no token; give at least one")
    refuse_uncached(model.config)
    cache = PrefixCache() if cache is None else cache
    prompt = list(prompt_ids)
    text = StreamingText(
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)),
        stop_strings=decoding.stop_strings,
        on_text=on_text,
    )
    answer = _Answer(prompt, text, frozenset(decoding.stop_ids))
    length = len(prompt) + decoding.max_new_tokens
    device = device_of(model)
    with evaluating(model), with_cached_attention(model), rope_at_length(model, length) as rope, _seeded(decoding.seed):
        answer.num_reused = answer.num_held = cache.begin(prompt, rope=rope, room=length)
        try:
            input_ids = torch.tensor([prompt], device=device)  # [1, T]
            for chunk in input_ids[:, answer.num_reused : -1].split(prefill_chunk, dim=1):
                if chunk.shape[1]:
                    read_chunk(model, chunk, cache)
                    answer.num_held += chunk.shape[1]
            model.generate(  # type: ignore[operator]  # of GenerationMixin, which every causal model has
                input_ids,
                attention_mask=torch.ones_like(input_ids),  # or tokens that are called padding would be left out
                past_key_values=cache.cache,
                stopping_criteria=[answer],
                logits_processor=_penalty(decoding, len(prompt)),
                generation_config=_settings(decoding),
            )
        except KeyboardInterrupt as interruption:
            answer.stopped_by = "interruption"
            raise Interrupted(answer.generation()) from interruption
        finally:
            cache.end([*prompt, *answer.token_ids][: answer.num_held])
    return answer.generation()


def read_chunk(model: PreTrainedModel, input_ids: torch.Tensor, cache: PrefixCache) -> torch.Tensor:
    """Hidden states [1, C, H] of the C tokens that come next; their keys and values go into the cache."""
    return model.get_decoder()(input_ids=input_ids, past_key_values=cache.cache, use_cache=True).last_hidden_state


@contextmanager
def with_cached_attention(model: Any) -> Iterator[None]:
    """An attention of transformers that has a cache, and none of the model's own settings for generating, inside.

    Nor does transformers remind of the model's maximum: how far a model is asked to read is its caller's decision.
    """
    attention, settings = model.config._attn_implementation, model.generation_config
    reminder = logging.getLogger("transformers.generation.stopping_criteria")
    silent, reminder.disabled = reminder.disabled, True
    ours = str(attention).startswith(OUR_ATTENTIONS)
    if ours:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        reminder.disabled = silent
        model.generation_config = settings
        if ours:
            model.set_attn_implementation(attention)


class _Answer(StoppingCriteria):
    """Sees every token as it is drawn: keeps it, gives its text out, and says whether it is the last."""

    def __init__(self, prompt: list[int], text: StreamingText, stop_ids: frozenset[int]) -> None:
        self.token_ids: list[int] = []
        self.num_reused = 0
        self.num_held = 0  # tokens whose forward came to its end
        self.stopped_by = "max_new_tokens"
        self._prompt, self._text, self._stop_ids = prompt, text, stop_ids
        self._started, self._times = time.perf_counter(), [0.0]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        token_id = int(input_ids[0, -1])
        self._times.append(time.perf_counter() - self._started)
        self.token_ids.append(token_id)
        self.num_held = input_ids.shape[1] - 1
        if token_id in self._stop_ids:
            self.stopped_by = "stop_id"
        elif self._text.add(token_id):
            self.stopped_by = "stop_string"
        return torch.full((1,), self.stopped_by != "max_new_tokens", device=input_ids.device)

    def generation(self) -> Generation:
        if self.stopped_by != "stop_string":
            self._text.finish()
        return Generation(
            text=self._text.text,
            token_ids=self.token_ids,
            num_prompt_tokens=len(self._prompt),
            num_reused_tokens=self.num_reused,
            first_token_seconds=self._times[min(1, len(self._times) - 1)],
            seconds=self._times[-1],
            stopped_by=self.stopped_by,
        )


def _settings(decoding: Decoding) -> GenerationConfig:
    """Everything that transformers would otherwise take from defaults of its own is said."""
    drawing = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.temperature > 0,
        use_cache=True,
        **(drawing if decoding.temperature > 0 else {}),
    )


def _penalty(decoding: Decoding, num_prompt_tokens: int) -> list[Any]:
    if decoding.repetition_penalty == 1:
        return []
    return [RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt_ignore_length=num_prompt_tokens)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of its own inside; the generators go on afterwards where they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
