"""Three documents packed in one row, under every attention that is there: does one see another?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from lightning_modules.attention.leak_probe import LeakReport, probe_leaks
from lightning_modules.attention.registry import (
    PER_DOCUMENT_ATTENTION,
    REFERENCE_ATTENTION,
    register_attention_functions,
)
from recipes.verifying.certificate import NOTE, OK, SKIPPED, VIOLATION, WARNING, Finding
from recipes.verifying.folder import in_short
from recipes.verifying.reload import random_tokens

CHUNKS = ((0, 24), (1, 28), (2, 24), (1, 20))
"""(document, tokens): the middle one begins before the last and ends after it, as shuffled chunks do."""


class Call(NamedTuple):
    """One way of asking for packed documents.

    Attributes:
        attention: Name for `set_attn_implementation`.
        said: How it is called, in words; empty for the way that keeps documents apart.
        facts: Which arguments say where documents are.
        mend: What to call instead.
    """

    attention: str
    said: str = ""
    facts: tuple[str, ...] = ("position_ids", "no cache")
    mend: str = ""


OURS = tuple(
    Call(name, facts=("document_ids", "position_ids", "no cache"))
    for name in (PER_DOCUMENT_ATTENTION, REFERENCE_ATTENTION)
)
THEIRS = (
    Call("sdpa"),
    Call("eager"),
    Call("sdpa", "with use_cache left at its default", ("position_ids",), "pass use_cache=False"),
    Call("sdpa", "with an attention_mask of ones", ("position_ids", "mask", "no cache"), "pass no attention_mask"),
)


def whether_documents_leak(model: Any) -> Iterator[Finding]:
    """Changes one token of each document in turn, under each attention, and looks at the logits of the others."""
    register_attention_functions()
    before = model.config._attn_implementation
    try:
        for call in (*OURS, *THEIRS, *_on_gpus_alone(model)):
            yield _finding(model, call)
    finally:
        model.set_attn_implementation(before)
    if not is_flash_attn_2_available():
        yield Finding(SKIPPED, "flash_attention_2: needs a GPU and the package flash-attn")
    if model.device.type != "cuda":
        yield Finding(SKIPPED, "flex_attention: needs a GPU; on a CPU it compiles for half a minute and more")


def packed_row() -> tuple[torch.Tensor, torch.Tensor]:
    """`document_ids` and `position_ids` of the row, both [1, T]; positions count within each document."""
    document_ids, position_ids, counts = [], [], [0, 0, 0]
    for document, length in CHUNKS:
        document_ids += [document] * length
        position_ids += range(counts[document], counts[document] + length)
        counts[document] += length
    return torch.tensor([document_ids]), torch.tensor([position_ids])


def probe(model: Any, call: Call) -> LeakReport:
    """What moves when a token of a document changes."""
    device = model.device
    document_ids, position_ids = (tensor.to(device) for tensor in packed_row())
    facts = {
        "document_ids": {"document_ids": document_ids},
        "position_ids": {"position_ids": position_ids},
        "mask": {"attention_mask": torch.ones_like(document_ids)},
        "no cache": {"use_cache": False},
    }
    options = {key: value for name in call.facts for key, value in facts[name].items()}
    model.set_attn_implementation(call.attention)

    @torch.no_grad()
    def logits(input_ids: torch.Tensor) -> torch.Tensor:
        # flash-attn has no kernels for fp32.
        with torch.autocast("cuda", torch.bfloat16, enabled=call.attention.startswith("flash")):
            return model(input_ids=input_ids, **options).logits

    vocab_size = model.get_input_embeddings().num_embeddings
    return probe_leaks(logits, random_tokens(model).to(device), document_ids, vocab_size=vocab_size, single_token=True)


def _on_gpus_alone(model: Any) -> list[Call]:
    if model.device.type != "cuda":
        return []
    return [Call("flex_attention"), *([Call("flash_attention_2")] if is_flash_attn_2_available() else [])]


def _finding(model: Any, call: Call) -> Finding:
    name = f"{call.attention} {call.said}".strip()
    try:
        report = probe(model, call)
    except (ValueError, TypeError, RuntimeError, ImportError, NotImplementedError) as error:
        return Finding(SKIPPED, f"{name}: {in_short(error)}")
    others, before, after = report
    if report.leaks:
        moved = f"{others.num_moved} of {others.num_positions} logits of other documents move"
        words = f"{name}: documents see one another; {moved}, by up to {others.largest:.2g}"
        return Finding(WARNING if call.said else VIOLATION, words, call.mend or "train with another attention")
    if report.sees_the_future:
        moved = f"{before.num_moved} of {before.num_positions} logits before a changed token move"
        return Finding(VIOLATION, f"{name}: tokens see their future; {moved}, by up to {before.largest:.2g}")
    if report.blind:
        return Finding(WARNING, f"{name}: no logit moves, whatever changes, so that a leak could not be seen")
    if after.num_moved < after.num_positions:
        words = "no document sees another; the interleaved one is cut apart, as every jump of position_ids begins one"
        return Finding(NOTE, f"{name}: {words} ({after.num_moved} of {after.num_positions} logits move that should)")
    words = f"no document sees another, no token its future; the {after.num_positions} logits move that should"
    return Finding(OK, f"{name}: {words}")
