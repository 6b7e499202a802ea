"""Steps of conversations: the same samples and gradient in every layout, for every weighting and world size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.batch import IGNORE_INDEX, Batch, num_targets, target_weight
from datamodules.packed_dataset import PackedDataset
from datamodules.packing.best_fit_packing import BestFitPacking
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.length_buckets import LengthBuckets
from datamodules.packing.padded import Padded
from datamodules.packing.plan import Packing
from datamodules.step_batches import StepSampler, step_collator
from datamodules.supervised_finetuning import SupervisedFinetuningDataModule
from datamodules.tokens.store import TokenStore, write_store
from lightning_modules.attention.registry import register_attention_functions
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from tests.datamodules.toy import Texts, make_texts, make_tokenizer
from tests.lightning_modules.tiny_models import tiny_model

LENGTHS = {"short": [5, 9, 7, 3, 6, 8, 4, 11], "long": [30, 22, 27]}
MAX_SEQLEN = 32
PACKINGS = {
    "packed": BestFitPacking(MAX_SEQLEN, document_mask=True, reset_positions=True),
    "padded": Padded(MAX_SEQLEN),
    "length_buckets": LengthBuckets(MAX_SEQLEN, rows_per_group=2),
}
WEIGHTINGS = ["token", "sample", "sqrt"]


class Data(SupervisedFinetuningDataModule):
    """Over stores of random conversations."""

    folder: Path
    lengths: Mapping[str, Sequence[int]] = LENGTHS

    def prepare_store(self, name: str) -> TokenStore:
        lengths = self.lengths.get(name, [12, 5, 20])
        folder = self.folder / f"{name}-{len(lengths)}"
        if not folder.exists():
            write_conversations(folder, lengths, seed=len(name))
        return TokenStore(folder)


def write_conversations(folder: Path, lengths: Sequence[int], *, seed: int) -> None:
    """A quarter to three quarters of each are labels: the answer at its end."""
    rng = np.random.default_rng(seed)
    masks = [np.arange(n) >= rng.integers(max(n // 4, 1), max(3 * n // 4, 2)) for n in lengths]
    store = write_store(folder, [rng.integers(0, 64, n) for n in lengths], vocab_size=64, meta={})
    (store.folder / "loss_mask.bin").write_bytes(np.concatenate(masks).astype(np.uint8).tobytes())


def make_data(folder: Path, packing: Packing, **options: Any) -> Data:
    defaults: dict[str, Any] = {
        "tokens_per_step": None,
        "samples_per_step": 4,
        "micro_batch_size": 2,
        "max_steps": 3,
        "loss_weighting": "token",
        "seed": 3,
    }
    lengths = options.pop("lengths", LENGTHS)
    sources: Any = dict.fromkeys(lengths)
    data = Data(sources=sources, packing=packing, cache_dir=str(folder / "cache"), **{**defaults, **options})
    data.folder, data.lengths = folder, lengths
    data.prepare_data()
    data.setup()
    return data


def batches_of_step(data: Data, step: int, *, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """What one rank computes in a step, by the loader's own sampler and collator."""
    assert data.data is not None
    sampler = StepSampler(
        num_steps=data.num_steps,
        sequences_per_step=data.sequences_per_step,
        consumed=lambda: 0,
        rank=rank,
        world_size=world_size,
        share=lambda rows, rank: data._planner.share(data.data.plan, rows, rank, world_size=world_size),  # type: ignore[union-attr]
        may_be_uneven=True,
    )
    rows = list(sampler)[step]
    return step_collator(data.micro_batch_size, MAX_SEQLEN)([data.data[i] for i in rows])


def samples_of_step(data: Data, step: int) -> list[tuple[str, int]]:
    assert data.data is not None
    rows = range(step * data.sequences_per_step, (step + 1) * data.sequences_per_step)
    return sorted((piece.source, piece.document) for i in rows for piece in data.data.provenance(i))


def one_by_one(data: Data, samples: Sequence[tuple[str, int]], weighting: str) -> dict[str, torch.Tensor]:
    """The gradient by plain transformers: one conversation a forward, torch's own cross-entropy."""
    model = tiny_model("llama", attention="sdpa")
    losses, weights = [], []
    for source, document in samples:
        store = data.prepare_store(source)
        ids = torch.from_numpy(store.slice(document, 0, LENGTHS[source][document]))
        mask = torch.from_numpy(store.mask_slice(document, 0, len(ids)))
        labels = torch.where(mask, ids, IGNORE_INDEX)[1:]
        found = F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], labels, reduction="none")[labels >= 0]
        weight = {"token": 1.0, "sample": 1 / len(found), "sqrt": 1 / math.sqrt(len(found))}[weighting]
        losses.append(weight * found.sum())
        weights.append(weight * len(found))
    (torch.stack(losses).sum() / sum(weights)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def gradient_over_ranks(data: Data, step: int, world_size: int) -> dict[str, torch.Tensor]:
    """What the ranks of a run add up to, each micro-batch scaled by the weight of the whole step."""
    register_attention_functions()
    model = CausalLMWithLoss(tiny_model("llama", attention="lcr_per_document"), loss_chunk_size=5)
    batches = [batches_of_step(data, step, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(own) for own in batches}) == 1, "sharded ranks meet in every micro-batch"
    total = sum(target_weight(batch) for own in batches for batch in own)
    for batch in (batch for own in batches for batch in own):
        (model(batch).loss_sum / total).backward()
    return {
        name: parameter.grad for name, parameter in model.causal_lm.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("layout", PACKINGS)
def test_gradient_of_a_step_is_that_of_its_conversations_one_by_one(
    layout: str, weighting: str, tmp_path: Path
) -> None:
    data = make_data(tmp_path, PACKINGS[layout], loss_weighting=weighting)
    padded = make_data(tmp_path, PACKINGS["padded"])
    for step in (0, 2):
        samples = samples_of_step(data, step)
        assert len(samples) == 4
        assert samples == samples_of_step(padded, step)
        expected = one_by_one(data, samples, weighting)
        for world_size in (1, 2, 3):
            found = gradient_over_ranks(data, step, world_size)
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                scale = float(gradient.abs().max())
                torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-6 * scale, msg=name)


def test_weightings_differ(tmp_path: Path) -> None:
    gradients = [
        gradient_over_ranks(make_data(tmp_path, PACKINGS["packed"], loss_weighting=weighting), 0, 1)
        for weighting in WEIGHTINGS
    ]
    flat = [torch.cat([gradient.flatten() for gradient in found.values()]) for found in gradients]
    assert all(float((flat[a] - flat[b]).norm() / flat[a].norm()) > 0.05 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_sample_weighs_one_and_a_root_weighs_the_root_of_its_labels(tmp_path: Path) -> None:
    counts = []
    for weighting in WEIGHTINGS:
        data = make_data(tmp_path, PACKINGS["packed"], loss_weighting=weighting)
        counts.append(sum(map(target_weight, batches_of_step(data, 1))))
    stores = [(data.prepare_store(source), document) for source, document in samples_of_step(data, 1)]
    labels = [
        sum(store.mask_slice(document, 0, int(store.lengths[document])).tolist()[1:]) for store, document in stores
    ]
    assert counts == pytest.approx([sum(labels), 4, sum(map(math.sqrt, labels))], rel=1e-6)


@pytest.mark.parametrize("layout", PACKINGS)
def test_epochs_read_every_conversation_so_often_and_then_the_run_ends(layout: str, tmp_path: Path) -> None:
    data = make_data(tmp_path, PACKINGS[layout], max_steps=None, epochs=2)
    assert data.num_steps == math.ceil(2 * 11 / 4)
    read = [sample for step in range(data.num_steps) for sample in samples_of_step(data, step)]
    every = [(source, document) for source, own in LENGTHS.items() for document in range(len(own))]
    assert sorted(read) == sorted(2 * every)
    assert len(samples_of_step(data, data.num_steps - 1)) == 2
    assert sum(num_targets(batch) for batch in batches_of_step(data, data.num_steps - 1)) > 0
    lengths = [sum(LENGTHS[source][d] for source, d in samples_of_step(data, step)) for step in range(data.num_steps)]
    assert [data.tokens_read(step) for step in range(data.num_steps)] == [*accumulate(lengths)]


def test_epochs_of_packed_rows_end_with_a_step_that_is_not_full(tmp_path: Path) -> None:
    data = make_data(
        tmp_path, PACKINGS["packed"], samples_per_step=None, tokens_per_step=2 * MAX_SEQLEN, max_steps=None, epochs=2
    )
    assert data.data is not None
    read = [(p.source, p.document) for i in range(len(data.data)) for p in data.data.provenance(i)]
    assert sorted(read) == sorted(2 * [(source, d) for source, own in LENGTHS.items() for d in range(len(own))])
    assert len(data.data) == 2 * data.num_steps
    for world_size in (1, 2):
        for rank in range(world_size):
            assert sum(map(num_targets, batches_of_step(data, data.num_steps - 1, rank=rank, world_size=world_size)))


@pytest.mark.parametrize("mix_by", ["samples", "tokens"])
def test_mixture_is_of_samples_or_of_tokens(mix_by: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = {"short": rng.integers(2, 4, 40).tolist(), "long": rng.integers(20, 32, 10).tolist()}
    data = make_data(
        tmp_path,
        PACKINGS["packed"],
        lengths=lengths,
        mixture={"short": 0.7, "long": 0.3},
        mix_by=mix_by,
        samples_per_step=10,
        max_steps=20,
    )
    assert data.data is not None
    plan = data.data.plan
    size = np.ones(len(plan.lengths)) if mix_by == "samples" else plan.lengths
    share = size[plan.sources == plan.names.index("long")].sum() / size.sum()
    largest = size.max() / size.sum()  # shares hold to within an item
    assert abs(share - 0.3) <= largest + 1e-9
    in_steps = [sum(source == "long" for source, _ in samples_of_step(data, step)) for step in range(20)]
    if mix_by == "samples":
        assert {2, 3, 4} >= set(in_steps)


def test_mixture_by_samples_holds_where_steps_are_of_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = {"short": rng.integers(2, 4, 400).tolist(), "long": rng.integers(20, 32, 100).tolist()}
    data = make_data(
        tmp_path,
        PACKINGS["packed"],
        lengths=lengths,
        mixture={"short": 3, "long": 1},
        mix_by="samples",
        samples_per_step=None,
        tokens_per_step=8 * MAX_SEQLEN,
        max_steps=40,
    )
    assert data.data is not None
    sources = data.data.plan.sources
    assert (sources == data.data.plan.names.index("long")).mean() == pytest.approx(0.25, abs=0.02)


def test_epochs_with_rules_of_their_own_are_mixed_to_the_end(tmp_path: Path) -> None:
    """Long ones are read three times and short ones once; the last steps are not of the long ones alone."""
    lengths = {"short": [4] * 60, "long": [20] * 20}
    for mix_by in ("tokens", "samples"):
        data = make_data(
            tmp_path,
            PACKINGS["packed"],
            lengths=lengths,
            max_steps=None,
            epochs=1,
            mix_by=mix_by,
            sampling={"long": {"max_epochs": 3}},
        )
        assert data.num_steps == 30
        halves = [sum(s == "long" for step in range(*ends) for s, _ in samples_of_step(data, step)) for ends in HALVES]
        assert sum(halves) == 60
        assert abs(halves[0] - halves[1]) <= 2
        assert data.rows is not None
        assert data.rows.notes == ()


HALVES = [(0, 15), (15, 30)]


@pytest.mark.parametrize("mix_by", ["samples", "tokens"])
def test_source_that_ends_too_soon_is_an_error_unless_others_may_share_the_rest(mix_by: str, tmp_path: Path) -> None:
    options = {
        "lengths": {"short": [4] * 40, "long": [20] * 6},
        "mixture": {"short": 1, "long": 1},
        "sampling": {"long": {"max_epochs": 1}},
        "mix_by": mix_by,
        "samples_per_step": 5,
        "max_steps": 20,
    }
    with pytest.raises(
        ValueError, match=r"long\.max_epochs=1 ends the source after \d+% of the run's [\d,]+ " + mix_by
    ):
        make_data(tmp_path, PACKINGS["packed"], **options)
    data = make_data(tmp_path, PACKINGS["packed"], **options, at_exhaustion="renormalise")
    last = max(step for step in range(20) if any(source == "long" for source, _ in samples_of_step(data, step)))
    assert data.rows is not None
    (note,) = data.rows.notes
    assert note.startswith(f"long is read out after {last + 1} steps (corpus.sampling.long.max_epochs)")


def test_share_that_no_document_comes_of_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"mixture": {"short": 0.999, "long": 0.001}, "mix_by": "samples", "max_steps": 10}
    make_data(tmp_path, PACKINGS["packed"], **options, samples_per_step=4)
    assert "note: long has a share of 0.001 and is not read once in this run of 40 documents" in capsys.readouterr().err
    data = make_data(tmp_path, PACKINGS["packed"], **options, samples_per_step=300)
    assert data.data is not None
    assert (data.data.plan.sources == 1).sum() in (2, 3, 4)
    assert "is not read once" not in capsys.readouterr().err


SETTINGS: dict[str, Any] = {"mixture": {"short": 1, "long": 1}, "samples_per_step": 4, "max_steps": 3, "seed": 3}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"samples_per_step": 5}, False),
        ({"samples_per_step": None, "tokens_per_step": 4 * MAX_SEQLEN}, False),
        ({"max_steps": 4}, False),
        ({"mix_by": "samples"}, False),
        ({"seed": 4}, False),
        ({"mixture": {"short": 1, "long": 2}}, False),
        ({"mixture": None}, False),
        ({"mixture": None, "max_steps": None, "epochs": 1}, False),
        ({"sampling": {"long": {"max_epochs": 9}}}, False),
        ({"loss_weighting": "sqrt"}, True),
        ({"micro_batch_size": 1}, True),
    ],
)
def test_plan_is_another_where_a_setting_changes_the_rows(changes: dict[str, Any], same: bool, tmp_path: Path) -> None:
    one, other = (make_data(tmp_path, PACKINGS["packed"], **{**SETTINGS, **more}) for more in ({}, changes))
    assert (one.state_dict()["plan"] == other.state_dict()["plan"]) is same


def test_epochs_are_part_of_the_plan(tmp_path: Path) -> None:
    names = [
        make_data(tmp_path, PACKINGS["packed"], max_steps=None, epochs=epochs).state_dict()["plan"] for epochs in (1, 2)
    ]
    assert names[0] != names[1]


def test_few_labels_and_none(tmp_path: Path) -> None:
    """A text of 12 tokens, an answer of one token, and samples with no label that is predicted."""
    masks = [np.ones(12), np.eye(10)[9], np.zeros(10), np.ones(1), np.eye(7)[0]]
    lengths = {"odd": [len(mask) for mask in masks]}
    store = write_store(tmp_path / "odd-5", [np.arange(n) for n in lengths["odd"]], vocab_size=64, meta={})
    (store.folder / "loss_mask.bin").write_bytes(np.concatenate(masks).astype(np.uint8).tobytes())
    for layout, packing in PACKINGS.items():
        for weighting, expected in (("token", 12), ("sample", 2), ("sqrt", 1 + math.sqrt(11))):
            options: dict[str, Any] = {"samples_per_step": 5, "max_steps": 1, "loss_weighting": weighting}
            data = make_data(tmp_path, packing, lengths=lengths, **options)
            for world_size in (1, 2):
                ranks = [batches_of_step(data, 0, rank=rank, world_size=world_size) for rank in range(world_size)]
                weight = sum(target_weight(batch) for own in ranks for batch in own)
                assert weight == pytest.approx(expected, rel=1e-6), (layout, weighting)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_row_that_its_step_does_not_need_is_empty(weighting: str, tmp_path: Path) -> None:
    data = make_data(
        tmp_path, PACKINGS["padded"], max_steps=None, epochs=1, samples_per_step=5, loss_weighting=weighting
    )
    assert data.data is not None
    assert len(data.data) == 15
    for i in range(11, 15):
        assert [len(values) for values in data.data[i] if values is not None] == [0] * (
            5 if weighting == "token" else 6
        )


def test_step_that_fits_into_a_row_is_the_one_that_the_packing_would_make(tmp_path: Path) -> None:
    """The packing is not asked, as there is nothing to decide; it leaves the samples of a row in their order."""
    lengths = {"short": [5, 9, 7, 3, 6, 8]}
    options: dict[str, Any] = {"lengths": lengths, "samples_per_step": 3, "max_steps": 2}
    packed, padded = (make_data(tmp_path, PACKINGS[layout], **options) for layout in ("packed", "padded"))
    assert packed.data is not None
    assert padded.data is not None
    assert (len(packed.data), len(padded.data)) == (2, 6)
    for step in range(2):
        row = packed.data.provenance(step)
        assert row == [piece for i in range(3 * step, 3 * step + 3) for piece in padded.data.provenance(i)]
        asked = PACKINGS["packed"].rows(np.array([piece.end for piece in row]), seed=3, complete=True)
        assert (asked.offsets.tolist(), asked.items.tolist()) == ([0, 3], [0, 1, 2])


def test_what_rows_do_to_conversations_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen, cut = "conversations that share a row see one another", "rows begin in the middle of a conversation"
    steps = {"samples_per_step": None, "tokens_per_step": 2 * MAX_SEQLEN}
    for packing, options, expected in (
        (PACKINGS["packed"], {}, (False, False)),
        (BestFitPacking(MAX_SEQLEN), {}, (True, False)),
        (Padded(MAX_SEQLEN), {}, (False, False)),
        (ConcatChunk(MAX_SEQLEN, document_mask=True, reset_positions=True), steps, (False, True)),
        (ConcatChunk(MAX_SEQLEN), steps, (True, True)),
    ):
        make_data(tmp_path, packing, **options)
        told = capsys.readouterr().err
        assert (seen in told, cut in told) == expected, packing


def test_resumed_run_goes_on_with_the_next_step(tmp_path: Path) -> None:
    data = make_data(tmp_path, PACKINGS["packed"])
    assert data.data is not None
    whole = [[row.tolist() for row in (batch["input_ids"] for batch in step)] for step in data.train_dataloader()]
    data.consumed = data.sequences_per_step
    rest = [[row.tolist() for row in (batch["input_ids"] for batch in step)] for step in data.train_dataloader()]
    assert len(whole) == 3
    assert rest == whole[1:]


def test_labels_are_the_masks_of_the_stores(tmp_path: Path) -> None:
    data = make_data(tmp_path, PACKINGS["packed"])
    assert isinstance(data.data, PackedDataset)
    for i in range(len(data.data)):
        row = data.data[i]
        pieces = data.data.provenance(i)
        masks = [data.prepare_store(p.source).mask_slice(p.document, p.start, p.end) for p in pieces]
        expected = np.concatenate(masks) if masks else np.zeros(0, dtype=bool)
        np.testing.assert_array_equal(row.labels != IGNORE_INDEX, expected)
        np.testing.assert_array_equal(row.labels[expected], row.input_ids[expected])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_step": None}, r"a step is so many tokens or so many samples; set one of them"),
        ({"tokens_per_step": 64}, r"a step is so many tokens or so many samples; set one of them"),
        ({"epochs": 2}, r"data\.max_steps=3 and data\.epochs=2: a run is so many steps or so many epochs"),
        ({"max_steps": None, "epochs": 1, "mixture": {"short": 1.0}}, r"data\.epochs=1 reads every source whole"),
        ({"loss_weighting": "mean"}, r"data\.loss_weighting=mean is not known; allowed are token, sample, sqrt"),
        ({"packing": ConcatChunk(MAX_SEQLEN)}, r"packing=concat_chunk cuts conversations"),
        ({"balance_window_steps": 2}, r"data\.balance_window_steps would change"),
        ({"packing": Padded(16)}, r"a sample of 30 tokens is longer than packing\.max_seqlen=16"),
        ({"mix_by": "rows"}, r"data\.mix_by=rows is not known; allowed are tokens, samples"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    packing = options.pop("packing", PACKINGS["packed"])
    with pytest.raises(ValueError, match=message):
        make_data(tmp_path, packing, **options)


def test_plain_text_is_refused(tmp_path: Path) -> None:
    data = SupervisedFinetuningDataModule(
        sources={"short": Texts(make_texts(5))},
        packing=PACKINGS["packed"],
        tokens_per_step=None,
        samples_per_step=4,
        micro_batch_size=1,
        max_steps=1,
        seed=0,
        cache_dir=str(tmp_path),
    )
    data.tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="source short holds plain text, of which no token is an answer"):
        data.prepare_data()


@pytest.mark.parametrize("layout", PACKINGS)
def test_validation_is_of_the_same_conversations_in_every_layout(layout: str, tmp_path: Path) -> None:
    """Where a step is so many samples; the loss of two layouts can then be compared."""
    data = make_data(tmp_path, PACKINGS[layout], validation=Texts(()), validation_sequences=2)
    assert data.validation_data is not None
    pieces = [piece for i in range(len(data.validation_data)) for piece in data.validation_data.provenance(i)]
    whole = make_data(tmp_path, PACKINGS["padded"], validation=Texts(()), validation_sequences=2)
    assert whole.validation_data is not None
    expected = [piece for i in range(2) for piece in whole.validation_data.provenance(i)]
    assert len(expected) == 2
    assert sorted(pieces) == sorted(expected)
