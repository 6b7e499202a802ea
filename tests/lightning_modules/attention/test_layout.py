from __future__ import annotations

import pytest
import torch

from datamodules.batch import PADDING_DOCUMENT
from lightning_modules.attention.layout import GRANULE, DocumentLayout, padded_lengths


def documents_of(ids: torch.Tensor) -> list[list[int]]:
    """Brute force: flat positions of every document of every row, padding left out."""
    T = ids.shape[1]
    return [
        [row * T + t for t in range(T) if ids[row, t] == value]
        for row in range(len(ids))
        for value in sorted(set(ids[row].tolist()) - {PADDING_DOCUMENT})
    ]


@pytest.mark.parametrize("length", [7, 150, 700])
def test_blocks_hold_every_document_once_and_in_order(length: int):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(-1, 5, (3, length), generator=generator) * (2**40)  # far apart: a product key would overflow
    ids[ids < 0] = PADDING_DOCUMENT
    layout = DocumentLayout.from_document_ids(ids)
    found = []
    for row in [row.tolist() for block in layout.blocks for row in block]:
        real = sorted(set(row))
        assert row == real + [real[-1]] * (len(row) - len(real))  # in order, filled up with its last token
        found.append(real)
    assert sorted(found) == sorted(documents_of(ids))


def test_places_bring_every_token_back_and_padding_to_the_zero():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(-1, 4, (2, 300), generator=generator)
    layout = DocumentLayout.from_document_ids(ids)
    flat = torch.cat([block.flatten() for block in layout.blocks] + [torch.tensor([-7])])
    padding = ids.flatten() == PADDING_DOCUMENT
    expected = torch.where(padding, -7, torch.arange(600))
    assert torch.equal(flat[layout.places], expected)


def test_lengths_are_few_and_waste_at_most_an_eighth():
    lengths = torch.arange(1, 20_000)
    padded = padded_lengths(lengths)
    assert (padded >= lengths).all()
    assert (padded % GRANULE == 0).all()
    assert ((padded - lengths).double() / lengths)[lengths >= 512].max() < 0.125
    assert ((padded - lengths) < GRANULE)[lengths < 1024].all()
    assert len(padded.unique()) <= 8 + 8 * 6  # at most 8 an octave, from 512 to 20,000


@pytest.mark.parametrize(("ids", "whole"), [([[4, 4], [4, 4]], True), ([[4, 4], [4, 5]], False), ([[4, 5, 4]], False)])
def test_whole_rows_means_one_document_a_row(ids: list[list[int]], whole: bool):
    assert DocumentLayout.from_document_ids(torch.tensor(ids)).whole_rows is whole


def test_moving_keeps_everything():
    layout = DocumentLayout.from_document_ids(torch.tensor([[5, 9, 5, 5]]))
    moved = layout.to("meta")
    assert {tensor.device.type for tensor in (moved.document_ids, moved.places, *moved.blocks)} == {"meta"}
    assert moved.whole_rows == layout.whole_rows


@pytest.mark.parametrize("ids", [torch.zeros(4, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)])
def test_ids_without_tokens_are_refused(ids: torch.Tensor):
    with pytest.raises(ValueError, match=r"give \[B, T\]"):
        DocumentLayout.from_document_ids(ids)
