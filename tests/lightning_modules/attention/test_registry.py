from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from datamodules.batch import PADDING_DOCUMENT
from lightning_modules.attention.layout import DocumentLayout
from lightning_modules.attention.registry import (
    PER_DOCUMENT_ATTENTION,
    REFERENCE_ATTENTION,
    per_document_attention_forward,
    register_attention_functions,
)
from tests import processes
from tests.lightning_modules.tiny_models import ARCHITECTURES, tiny_model

NAMES = [REFERENCE_ATTENTION, PER_DOCUMENT_ATTENTION]

DOCUMENT_IDS = {
    "whole_rows": torch.tensor([[0] * 30, [4] * 30]),
    "contiguous": torch.tensor([[0] * 11 + [1] * 18 + [2], [2] * 3 + [1] * 27]),
    "interleaved": torch.tensor([[0] * 6 + [1] * 5 + [0] * 9 + [2, 1] * 5, [0, 1, 2] * 10]),
    "padded": torch.tensor([[0] * 9 + [1] * 15 + [-1] * 6, [0] * 20 + [-1] * 10]),
}


@pytest.fixture(autouse=True)
def _registered():
    register_attention_functions()


def make_batch(document_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random `input_ids` and positions that count within each document, both [B, T]."""
    input_ids = torch.randint(0, 64, document_ids.shape, generator=torch.Generator().manual_seed(2))
    position_ids = torch.zeros_like(document_ids)
    for row in range(len(document_ids)):
        for document in document_ids[row].unique():
            members = document_ids[row] == document
            position_ids[row, members] = torch.arange(int(members.sum()))
    return input_ids, position_ids


def documents_of(document_ids: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """(row, positions of the document) of every document that is not padding."""
    return [
        (row, (document_ids[row] == document).nonzero().flatten())
        for row in range(len(document_ids))
        for document in document_ids[row].unique()
        if document != PADDING_DOCUMENT
    ]


def next_token_loss(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Summed loss of one document, [S, V] and [S]."""
    return F.cross_entropy(logits[:-1], input_ids[1:], reduction="sum")


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("name", DOCUMENT_IDS)
@pytest.mark.parametrize("as_layout", [False, True])
def test_packed_documents_equal_one_forward_a_document(architecture: str, attention: str, name: str, as_layout: bool):
    document_ids = DOCUMENT_IDS[name]
    input_ids, position_ids = make_batch(document_ids)
    facts: dict[str, Any] = {"document_ids": document_ids}
    if as_layout:
        facts = {"document_layout": DocumentLayout.from_document_ids(document_ids)}

    model = tiny_model(architecture, attention=attention)
    logits = model(input_ids=input_ids, position_ids=position_ids, **facts).logits
    packed = [(logits[row, at], input_ids[row, at]) for row, at in documents_of(document_ids)]
    sum((next_token_loss(*pair) for pair in packed), torch.tensor(0.0)).backward()

    alone_model = tiny_model(architecture, attention="eager")
    alone = [(alone_model(input_ids=ids[None]).logits[0], ids) for _, ids in packed]
    sum((next_token_loss(*pair) for pair in alone), torch.tensor(0.0)).backward()

    for (ours, _), (theirs, _) in zip(packed, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = gradients(alone_model)
    for parameter_name, gradient in gradients(model).items():
        scale = expected[parameter_name].abs().max().item()
        torch.testing.assert_close(gradient, expected[parameter_name], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("name", ["contiguous", "interleaved", "padded"])
def test_a_perturbed_token_moves_no_other_document_and_nothing_before_it(attention: str, name: str):
    document_ids = DOCUMENT_IDS[name]
    input_ids, position_ids = make_batch(document_ids)
    model = tiny_model("llama", attention=attention)
    with torch.no_grad():
        before = model(input_ids=input_ids, position_ids=position_ids, document_ids=document_ids).logits
        for row, at in [*documents_of(document_ids), (0, (document_ids[0] == -1).nonzero().flatten())]:
            if len(at) < 2:
                continue
            perturbed = input_ids.clone()
            perturbed[row, at[1]] = (perturbed[row, at[1]] + 1) % 64
            after = model(input_ids=perturbed, position_ids=position_ids, document_ids=document_ids).logits
            moved = (after != before).any(-1)
            allowed = torch.zeros_like(moved)
            allowed[row, at[1:]] = True
            assert moved[row, at[1]]
            assert not (moved & ~allowed).any()


@pytest.mark.parametrize("attention", NAMES)
def test_a_model_without_documents_is_refused(attention: str):
    model = tiny_model("llama", attention=attention)
    with pytest.raises(ValueError, match="was given no documents"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_default_cache_does_not_unmask_documents():
    document_ids = DOCUMENT_IDS["contiguous"]
    input_ids, position_ids = make_batch(document_ids)
    model = tiny_model("llama", attention=PER_DOCUMENT_ATTENTION)
    facts = {"input_ids": input_ids, "position_ids": position_ids, "document_ids": document_ids}
    with torch.no_grad():
        assert torch.equal(model(**facts, use_cache=True).logits, model(**facts, use_cache=False).logits)


def call(**overrides: Any) -> Any:
    options: dict[str, Any] = {"attention_mask": None, "document_ids": torch.zeros(1, 8, dtype=torch.long)}
    query, key = torch.ones(1, 2, 8, 4), torch.ones(1, 1, options.pop("num_keys", 8), 4)
    return per_document_attention_forward(torch.nn.Module(), query, key, key, **{**options, **overrides})


def test_a_window_as_long_as_the_row_is_no_window():
    output, weights = call(sliding_window=8)
    assert output.shape == (1, 8, 2, 4)
    assert weights is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sliding_window": 7}, "no sliding window but the model's is 7 for T=8"),
        ({"attention_mask": torch.ones(1, 8)}, "no attention_mask"),
        ({"softcap": 50.0}, "has no softcap"),
        ({"s_aux": torch.ones(2)}, "has no s_aux"),
        ({"document_ids": torch.zeros(2, 8, dtype=torch.long)}, r"document_ids is \[2, 8\]"),
    ],
)
def test_what_would_be_ignored_is_refused(overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        call(**overrides)


def test_cached_keys_are_refused():
    key = torch.ones(1, 1, 9, 4)
    with pytest.raises(ValueError, match="use_cache=False"):
        per_document_attention_forward(
            torch.nn.Module(), torch.ones(1, 2, 8, 4), key, key, None, document_ids=torch.zeros(1, 8, dtype=torch.long)
        )


def test_registering_twice_adds_two_names_and_no_mask():
    register_attention_functions()
    names = AttentionInterface().valid_keys()
    masks = ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
    for name in NAMES:
        assert list(names).count(name) == 1
        assert name not in masks


def test_importing_registers_nothing():
    code = (
        "import lightning_modules.attention.registry as r; from transformers import AttentionInterface; "
        "assert r.REFERENCE_ATTENTION not in AttentionInterface().valid_keys()"
    )
    done = processes.run([sys.executable, "-c", code], cwd=Path.cwd(), env=os.environ)
    assert done.returncode == 0, done.stderr
