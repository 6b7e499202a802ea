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


def visible(ids: torch.Tensor, window: int | None) -> torch.Tensor:
    """Brute force: who sees whom, token by token. [B, T, T] bool"""
    B, T = ids.shape
    found = torch.zeros(B, T, T, dtype=torch.bool)
    for row in range(B):
        for i in range(T):
            for j in range(i + 1):
                same_fragment = window is None or i // window == j // window
                found[row, i, j] = bool(ids[row, i] == ids[row, j]) and same_fragment
    return found


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("window", [1, 7, 16, 20, 47, 48, 100])
def test_window_is_the_brute_force_mask(window: int, masked: bool):
    """Interleaved documents, or one a row; with padding; windows that divide the row and others."""
    generator = torch.Generator().manual_seed(window)
    ids = torch.randint(0, 3, (2, 48), generator=generator) * 2**40 if masked else torch.zeros(2, 48, dtype=torch.long)
    ids[1, 41:] = PADDING_DOCUMENT
    layout = DocumentLayout.from_document_ids(ids, window=window)
    real = ids != PADDING_DOCUMENT
    expected = visible(ids, window) & real[:, :, None] & real[:, None, :]

    causal = torch.ones(48, 48, dtype=torch.bool).tril()
    by_ids = (layout.document_ids[:, :, None] == layout.document_ids[:, None, :]) & causal & real[:, :, None]
    assert torch.equal(by_ids, expected)
    assert torch.equal(layout.document_ids == PADDING_DOCUMENT, ~real)

    by_blocks = torch.zeros(2 * 48, 2 * 48, dtype=torch.bool)
    for group in (group for block in layout.blocks for group in block.tolist()):
        for place, token in enumerate(group):
            by_blocks[token, group[: place + 1]] = True
    by_blocks = torch.stack([by_blocks[row * 48 : row * 48 + 48, row * 48 : row * 48 + 48] for row in range(2)])
    assert torch.equal(by_blocks, expected)


def test_window_of_a_whole_row_changes_nothing():
    ids = torch.tensor([[4, 4, 4, 4], [5, 5, 6, 6]])
    ours, theirs = DocumentLayout.from_document_ids(ids, window=4), DocumentLayout.from_document_ids(ids)
    assert torch.equal(ours.places, theirs.places)
    assert [block.tolist() for block in ours.blocks] == [block.tolist() for block in theirs.blocks]


def test_window_must_hold_a_token():
    with pytest.raises(ValueError, match="window=0 must be a whole number of at least 1"):
        DocumentLayout.from_document_ids(torch.zeros(1, 4, dtype=torch.long), window=0)


def test_moving_keeps_everything():
    layout = DocumentLayout.from_document_ids(torch.tensor([[5, 9, 5, 5]]))
    moved = layout.to("meta")
    assert {tensor.device.type for tensor in (moved.document_ids, moved.places, *moved.blocks)} == {"meta"}
    assert moved.whole_rows == layout.whole_rows


@pytest.mark.parametrize("ids", [torch.zeros(4, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)])
def test_ids_without_tokens_are_refused(ids: torch.Tensor):
    with pytest.raises(ValueError, match=r"give \[B, T\]"):
        DocumentLayout.from_document_ids(ids)
