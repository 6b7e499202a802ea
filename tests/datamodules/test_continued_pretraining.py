from collections import Counter, abc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from datamodules.augmentations.base import TrainingSequence
from datamodules.batch import PADDING_DOCUMENT, Batch, num_targets
from datamodules.continued_pretraining import ContinuedPretrainingDataModule
from datamodules.corpora.files import FileCorpus, FileShard
from datamodules.length_schedules.dataset_decomposition import DatasetDecomposition
from datamodules.length_schedules.shapes import stages
from datamodules.length_schedules.sort_by_length import SortByLength
from datamodules.packing.best_fit_packing import BestFitPacking
from datamodules.packing.concat_chunk import ConcatChunk
from datamodules.packing.length_buckets import LengthBuckets
from datamodules.packing.padded import Padded
from datamodules.tokens.policy import TokenPolicy
from tests.datamodules.toy import Texts, make_texts, make_tokenizer, write_jsonl

T = 32
TEXTS = {"short": ["tiny"] * 400, "long": make_texts(30, seed=1), "validation": make_texts(8, seed=2)}


def make_module(folder: Path, *, rank: int = 0, world_size: int = 1, step: int = 0, **changes) -> Any:
    """The data module of one rank, as the trainer would see it after `step` optimizer steps."""
    corpora = {}
    for name, texts in TEXTS.items():
        if not (folder / f"{name}.jsonl").exists():
            write_jsonl(folder / f"{name}.jsonl", texts)
        corpora[name] = FileCorpus(str(folder / f"{name}.jsonl"))
    options = {
        "sources": {"short": corpora["short"], "long": corpora["long"]},
        "validation": corpora["validation"],
        "packing": ConcatChunk(max_seqlen=T),
        "tokens_per_step": 8 * T,
        "micro_batch_size": 3,
        "max_steps": 64,
        "cache_dir": str(folder / "cache"),
        "seed": 7,
    }
    module = ContinuedPretrainingDataModule(**options | changes)
    module.tokenizer = make_tokenizer()
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, global_step=step)  # type: ignore[assignment]
    return module


def ready(folder: Path, **changes) -> Any:
    module = make_module(folder, **changes)
    module.prepare_data()
    module.setup()
    return module


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch["input_ids"].tolist()]


def test_training_rows_are_the_tokenized_documents_one_after_the_other(tmp_path: Path):
    module = ready(tmp_path, mixture={"long": 1.0})
    tokenizer = module.tokenizer
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS["long"]]
    order = np.random.default_rng((7, 0)).permutation(len(documents))
    stream = [token for document in order for token in documents[document]]
    found = [token for step in module.train_dataloader() for row in rows_of(step) for token in row]
    assert len(found) == 64 * 8 * T
    size = min(len(stream), len(found))
    assert found[:size] == stream[:size]


def test_step_holds_all_its_sequences_in_micro_batches(tmp_path: Path):
    steps = list(ready(tmp_path).train_dataloader())
    assert len(steps) == 64
    assert {tuple(tuple(batch["input_ids"].shape) for batch in step) for step in steps} == {((3, T), (3, T), (2, T))}


def test_mixture_is_a_share_of_tokens_however_long_the_documents_are(tmp_path: Path):
    """Documents of two tokens and of hundreds, 3:1; by document it would be far off."""
    module = ready(tmp_path, mixture={"short": 3, "long": 1}, token_policy=None)
    tiny = {*module.tokenizer("tiny")["input_ids"], module.tokenizer.eos_token_id}
    tokens = Counter()
    for step in module.train_dataloader():
        for row in rows_of(step):
            tokens["short" if set(row) <= tiny else "long"] += T
    assert tokens.total() == 64 * 8 * T
    assert abs(tokens["short"] / tokens.total() - 0.75) < 0.005


def test_phases_are_counted_in_tokens_and_come_before_the_mixture(tmp_path: Path):
    phases = [{"tokens": 256 * T, "mixture": {"short": 1.0}}]
    module = ready(tmp_path, mixture={"long": 1.0}, phases=phases, max_steps=64)
    sources = [module.data.provenance(i)[0].source for i in range(len(module.data))]
    assert sources == ["short"] * 256 + ["long"] * 256


def test_phase_of_an_unknown_source_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"names \['other'\]"):
        make_module(tmp_path, mixture={"long": 1.0}, phases=[{"tokens": 1, "mixture": {"other": 1.0}}])


def test_without_a_mixture_sources_weigh_their_tokens(tmp_path: Path):
    module = ready(tmp_path)
    sizes = {name: module.prepare_store(name).num_tokens for name in ("short", "long")}
    assert module.request.mixture.ratios == pytest.approx({name: n / sum(sizes.values()) for name, n in sizes.items()})


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (2, 2)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_ranks_and_workers_share_out_the_same_steps(tmp_path: Path, world_size: int, num_workers: int):
    alone = list(ready(tmp_path, max_steps=4).train_dataloader())
    ranks = [
        list(ready(tmp_path, rank=r, world_size=world_size, num_workers=num_workers, max_steps=4).train_dataloader())
        for r in range(world_size)
    ]
    for step in range(4):
        shares = [rows_of(steps[step]) for steps in ranks]
        assert {len(share) for share in shares} == {8 // world_size}
        interleaved = [row for rows in zip(*shares, strict=True) for row in rows]
        assert interleaved == rows_of(alone[step])


SCHEDULES = {
    "cut": stages(max_seqlen=T, max_steps=6, stages=[{"length": 8, "until_step": 3}, {"length": T}]),
    "window": stages(max_seqlen=T, max_steps=6, mechanism="window"),
    "sort": SortByLength(),
    "remix": SortByLength(remix=True),
    "decomposition": DatasetDecomposition(max_seqlen=T, smallest=2),
}


def fields_of(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """Every field of every row."""
    fields: list[dict[str, Any]] = [{**batch} for batch in batches]
    return [row for batch in fields for row in zip(*(values.tolist() for values in batch.values()), strict=True)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_length_schedule_is_the_same_for_ranks_workers_and_a_resumed_run(tmp_path: Path, name: str):
    options = {"length_schedule": SCHEDULES[name], "max_steps": 6}
    alone = [fields_of(step) for step in ready(tmp_path, **options).train_dataloader()]
    resumed = []
    for rank in range(2):
        module = ready(tmp_path, rank=rank, world_size=2, num_workers=2 * rank, **options)
        module.load_state_dict({"sequences_consumed": 16})
        resumed.append([fields_of(step) for step in module.train_dataloader()])
    assert [len(steps) for steps in resumed] == [4, 4]
    merged = [[row for pair in zip(*shares, strict=True) for row in pair] for shares in zip(*resumed, strict=True)]
    assert merged == alone[2:]


@pytest.mark.parametrize("name", SCHEDULES)
def test_length_schedule_leaves_validation_and_the_size_of_steps_alone(tmp_path: Path, name: str):
    module, plain = (ready(tmp_path, max_steps=6, **options) for options in ({"length_schedule": SCHEDULES[name]}, {}))
    validation, theirs = ([fields_of([b]) for b in data.val_dataloader()] for data in (module, plain))
    assert validation == theirs
    steps = list(module.train_dataloader())
    assert [sum(batch["input_ids"].numel() for batch in step) for step in steps] == [8 * T] * 6


def test_data_module_tells_the_lengths_of_each_step(tmp_path: Path):
    def told(name: str) -> list[tuple[int, int | None]]:
        module = ready(tmp_path, max_steps=6, length_schedule=SCHEDULES[name])
        return [(module.context_length(step), module.attention_window(step)) for step in range(6)]

    assert told("cut") == [(8, None)] * 3 + [(T, None)] * 3
    assert told("window") == [(4, 4), (4, 4), (8, 8), (16, 16), (16, 16), (T, None)]
    assert told("sort") == told("remix") == [(T, None)] * 6
    decomposed = told("decomposition")
    assert {window for _, window in decomposed} == {None}
    assert {length for length, _ in decomposed} <= {2, 4, 8, 16, 32}
    assert len(set(decomposed)) > 1


def test_dropped_tokens_are_told_once_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for rank in range(2):
        ready(tmp_path, rank=rank, world_size=2, length_schedule=DatasetDecomposition(max_seqlen=T, smallest=2))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: length_schedule.smallest")]
    assert [message.split(" tokens of ")[1].split(",")[0] for message in told] == ["short", "long"]


def test_phases_with_an_order_of_its_own_are_refused(tmp_path: Path):
    phases = [{"tokens": 1, "mixture": {"short": 1.0}}]
    with pytest.raises(ValueError, match=r"corpus\.phases would be undone by the order of length_schedule"):
        make_module(tmp_path, mixture={"long": 1.0}, phases=phases, length_schedule=SCHEDULES["sort"])
    make_module(tmp_path, mixture={"long": 1.0}, phases=phases, length_schedule=SCHEDULES["remix"])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resumed_run_sees_what_the_uninterrupted_one_would_have_seen(tmp_path: Path, world_size: int):
    whole = [sorted(rows_of(step)) for step in ready(tmp_path, max_steps=6).train_dataloader()]
    state = ready(tmp_path, max_steps=6, step=2).state_dict()
    assert state["sequences_consumed"] == 16
    ranks = []
    for rank in range(world_size):
        module = ready(tmp_path, max_steps=6, rank=rank, world_size=world_size)
        module.load_state_dict(state)
        ranks.append([rows_of(step) for step in module.train_dataloader()])
    merged = [sorted(row for share in shares for row in share) for shares in zip(*ranks, strict=True)]
    assert merged == whole[2:]


class Reversed:
    """Every row backwards from a place that the row's own generator draws, without that many tokens."""

    def num_pushed_out(
        self, documents: abc.Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> int:
        return int(generator.integers(sum(map(len, documents))))

    def __call__(
        self, documents: abc.Sequence[np.ndarray], *, max_seqlen: int, generator: np.random.Generator
    ) -> TrainingSequence:
        tokens = np.concatenate(documents)
        tokens = tokens[int(generator.integers(len(tokens))) :][::-1]
        places = np.arange(len(tokens))
        return TrainingSequence(tokens, places > 0, np.zeros_like(places), places)


LAYOUTS: dict[str, dict[str, Any]] = {
    "best_fit, documents mixed": {
        "packing": BestFitPacking(T, document_mask=True, reset_positions=True),
        "mix_at": "document",
        "mixture": {"short": 1, "long": 1},
    },
    "length_buckets": {"packing": LengthBuckets(T, rows_per_group=3), "sampling": {"short": {"max_epochs": 9}}},
    "augmented": {"packing": Padded(T), "augmentation": Reversed()},
    "balanced over windows": {
        "packing": ConcatChunk(T, document_mask=True),
        "balance_window_steps": 2,
        "quadratic_cost": 0.01,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_steps_hold_the_same_rows_for_any_ranks_and_workers_after_resuming_too(tmp_path: Path, layout: str):
    options = {"max_steps": 5, **LAYOUTS[layout]}

    def steps(world_size: int, num_workers: int, consumed: int) -> list[list[tuple[int, ...]]]:
        ranks = []
        for rank in range(world_size):
            module = ready(tmp_path, rank=rank, world_size=world_size, num_workers=num_workers, **options)
            module.load_state_dict({"sequences_consumed": consumed})
            ranks.append([everything_in(step) for step in module.train_dataloader()])
        return [sorted(row for share in shares for row in share) for shares in zip(*ranks, strict=True)]

    whole = steps(1, 0, 0)
    assert [len(step) for step in whole] == [8] * 5
    assert len(set(map(tuple, whole))) == 5
    assert steps(2, 2, 16) == whole[2:]
    assert steps(4, 0, 16) == whole[2:]
    assert steps(1, 4, 0) == whole


def everything_in(step: list[Batch]) -> list[tuple[int, ...]]:
    """All fields of each row of a step, without the padding that depends on who else is in the micro-batch."""
    rows = []
    for batch in step:
        for b in range(len(batch["input_ids"])):
            own = batch["document_ids"][b] != PADDING_DOCUMENT
            rows.append(tuple(value for field in batch.values() for value in field[b][own].tolist()))  # type: ignore[attr-defined]
    return rows


def test_ledger_counts_tokens_that_an_augmentation_pushes_out_of_their_rows(tmp_path: Path):
    module = ready(tmp_path, packing=ConcatChunk(T), augmentation=Reversed(), max_steps=8)
    lost = sum(T - len(module.data[i].input_ids) for i in range(64))
    assert module.ledger().pushed_out == lost / (64 * T) > 0.1
    assert ready(tmp_path, packing=ConcatChunk(T), max_steps=8).ledger().pushed_out == 0


def test_rows_are_shared_out_by_what_they_cost(tmp_path: Path):
    """Rows of one long document cost more than rows of many short ones; the costliest rank is near the mean."""
    options = {"packing": ConcatChunk(T, document_mask=True), "quadratic_cost": 1.0, "tokens_per_step": 32 * T}
    spread = []
    for quadratic in (0.0, 1.0):
        costs = np.zeros(4)
        for rank in range(4):
            module = ready(tmp_path, rank=rank, world_size=4, **options | {"quadratic_cost": quadratic, "max_steps": 1})
            (step,) = module.train_dataloader()
            for batch in step:
                for row in batch["document_ids"].tolist():
                    costs[rank] += sum(n * n for n in Counter(row).values())
        spread.append(costs.max() / costs.mean())
    assert spread[1] < 1.01 < spread[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_rows_of_like_length_stay_together_on_any_number_of_ranks(tmp_path: Path, world_size: int):
    padding = {}
    for packing in (Padded(512), LengthBuckets(512, rows_per_group=4)):
        held = places = 0
        for rank in range(world_size):
            options = {"packing": packing, "tokens_per_step": 64 * 512, "max_steps": 4, "micro_batch_size": 4}
            module = ready(tmp_path, rank=rank, world_size=world_size, mixture={"short": 1, "long": 9}, **options)
            for step in module.train_dataloader():
                for batch in step:
                    own = (batch["document_ids"] != PADDING_DOCUMENT).sum(dim=1)
                    held, places = held + int(own.sum()), places + len(own) * int(own.max())
        padding[type(packing)] = 1 - held / places
    assert padding[LengthBuckets] < 0.1
    assert world_size == 1 or padding[Padded] > 2 * padding[LengthBuckets]


def test_windows_exchange_rows_so_that_few_a_rank_cost_alike(tmp_path: Path):
    """One row a rank: nothing can be shared out within a step, unless rows change steps."""
    options = {"packing": ConcatChunk(T, document_mask=True), "tokens_per_step": 4 * T, "max_steps": 64}
    slowest = []
    for window in (0, 16):
        module = ready(tmp_path, quadratic_cost=1.0, balance_window_steps=window, **options)
        costs = [sum(n * n for n in Counter(module.data[i].document_ids.tolist()).values()) for i in range(256)]
        steps = np.reshape(costs, (64, 4))
        slowest.append(float((steps.max(axis=1) / steps.mean(axis=1)).mean()))
    assert slowest[1] < 1.1 < 1.3 < slowest[0]


def test_validation_rows_do_not_depend_on_the_seed(tmp_path: Path):
    rows = [ready(tmp_path, seed=seed).validation_data for seed in (1, 2)]
    assert [rows[0].provenance(i) for i in range(4)] == [rows[1].provenance(i) for i in range(4)]


@pytest.mark.parametrize("name", ["sort", "decomposed"])
def test_exchanging_rows_between_steps_of_a_schedule_with_its_own_order_is_refused(tmp_path: Path, name: str):
    schedule = SCHEDULES["sort"] if name == "sort" else DatasetDecomposition(max_seqlen=T, smallest=2)
    with pytest.raises(ValueError, match=r"data\.balance_window_steps would undo the order of length_schedule"):
        make_module(tmp_path, balance_window_steps=2, length_schedule=schedule)


def test_micro_batch_ends_where_its_longest_row_does(tmp_path: Path):
    module = ready(tmp_path, packing=Padded(4 * T), tokens_per_step=32 * T, mixture={"short": 1.0})
    (shapes,) = {tuple(batch["input_ids"].shape) for step in module.train_dataloader() for batch in step[:1]}
    assert shapes == (3, 64), "rows of two tokens, padded to a multiple of 64 and not to 128"


def test_augmentation_of_rows_that_a_schedule_cuts_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="an augmentation makes whole rows, and this length_schedule cuts them"):
        ready(tmp_path, augmentation=Reversed(), length_schedule=stages(max_seqlen=T, max_steps=64))


def test_plan_is_made_once_and_opened_by_every_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = ready(tmp_path, max_steps=4)
    monkeypatch.setattr("datamodules.length_schedules.context_length_warmup.plan_run", lambda _: pytest.fail("again"))
    again = ready(tmp_path, max_steps=4)
    assert [again.data.provenance(i) for i in range(32)] == [first.data.provenance(i) for i in range(32)]
    with pytest.raises(pytest.fail.Exception, match="again"):
        ready(tmp_path, max_steps=4, seed=8)


def test_every_setting_that_changes_rows_has_a_plan_of_its_own(tmp_path: Path):
    base = {"max_steps": 4, "mixture": {"short": 0.5, "long": 0.5}}
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 8},
        {"max_steps": 5},
        {"mixture": {"short": 0.4, "long": 0.6}},
        {"phases": [{"tokens": T, "mixture": {"short": 1.0}}]},
        {"mix_at": "document"},
        {"sampling": {"short": {"max_epochs": 50}}},
        {"sampling": {"short": {"max_epochs": 50}}, "at_exhaustion": "renormalise"},
        {"packing": Padded(T)},
        {"packing": ConcatChunk(T, document_mask=True)},
        {"tokens_per_step": 4 * T},
        {"length_schedule": SCHEDULES["sort"]},
        {"balance_window_steps": 2},
        {"balance_window_steps": 2, "quadratic_cost": 1.0},
        {"balance_window_steps": 2, "quadratic_cost": 1.0, "augmentation": Reversed()},
        {"token_policy": TokenPolicy(append_eos=False)},
    ]
    for number, change in enumerate(changes, 1):
        ready(tmp_path, **base | change)
        ready(tmp_path, **base | change)
        assert len([path for path in (tmp_path / "cache" / "plans").iterdir() if path.is_dir()]) == number, change


def test_mixture_that_does_not_sum_to_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ready(tmp_path, mixture={"short": 3, "long": 1})
    assert "note: corpus.mixture sums to 4, not 1; its ratios are divided by that" in capsys.readouterr().err
    ready(tmp_path, mixture={"short": 0.75, "long": 0.25})
    assert "corpus.mixture sums" not in capsys.readouterr().err


def test_source_without_a_share_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = make_module(tmp_path, mixture={"long": 1.0})
    module.unread = ["short"]
    module.setup()
    assert "note: short has no share of the run (corpus.mixture.short=0) and is not read" in capsys.readouterr().err


def test_run_that_ends_before_its_phases_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ready(tmp_path, phases=[{"tokens": 10**6, "mixture": {"long": 1.0}}])
    told = f"note: corpus.phases last for 1,000,000 tokens and the run for {64 * 8 * T:,}: it ends in phase 1 of 1, and"
    assert capsys.readouterr().err.count(told) == 1
    ready(tmp_path, phases=[{"tokens": 100, "mixture": {"long": 1.0}}])
    assert "corpus.phases" not in capsys.readouterr().err


def test_validation_of_fewer_rows_than_asked_for_says_so_on_one_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = len(ready(tmp_path, validation_sequences=10_000).validation_data)
    told = f"note: validation reads {rows:,} sequences and not the 10,000 of data.validation_sequences"
    assert capsys.readouterr().err.count(told) == 1
    ready(tmp_path, validation_sequences=10_000, rank=1, world_size=2)
    ready(tmp_path, validation_sequences=rows)
    assert "note: validation reads" not in capsys.readouterr().err


def test_source_that_is_read_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sampling = {"short": {"max_epochs": 1}}
    ready(tmp_path, mixture={"short": 0.5, "long": 0.5}, sampling=sampling, at_exhaustion="renormalise")
    told = capsys.readouterr().err
    module = ready(tmp_path, mixture={"short": 0.5, "long": 0.5}, sampling=sampling, at_exhaustion="renormalise")
    steps = [i // 8 + 1 for i in range(512) if any(piece.source == "short" for piece in module.data.provenance(i))]
    assert f"note: short is read out after {max(steps)} steps" in told


def test_rules_for_an_unknown_source_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"corpus\.sampling names \['other'\]"):
        make_module(tmp_path, sampling={"other": {"max_epochs": 1}})


def test_state_survives_a_round_trip_without_a_trainer(tmp_path: Path):
    module = make_module(tmp_path)
    module.trainer = None
    assert module.state_dict() == {"sequences_consumed": 0, "plan": None}
    module.load_state_dict({"sequences_consumed": 24})
    assert module.state_dict() == {"sequences_consumed": 24, "plan": None}


def test_checkpoint_of_other_texts_is_refused(tmp_path: Path):
    state = ready(tmp_path, step=2).state_dict()
    ready(tmp_path).load_state_dict(state)
    (tmp_path / "long.jsonl").write_text('{"text": "another document, and a longer one"}\n')
    with pytest.raises(ValueError, match="the checkpoint was made on other rows: the texts, or the order of"):
        ready(tmp_path).load_state_dict(state)


def test_state_of_another_step_size_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"consumed 24 sequences, no whole number of steps of 16; resume with its own"):
        make_module(tmp_path, tokens_per_step=16 * T).load_state_dict({"sequences_consumed": 24})


@pytest.mark.parametrize("num_rows", [1, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_gives_every_rank_as_many_batches_and_scores_each_row_once(
    tmp_path: Path, num_rows: int, world_size: int
):
    alone = list(ready(tmp_path, validation_sequences=num_rows).val_dataloader())
    ranks = [
        list(ready(tmp_path, validation_sequences=num_rows, rank=r, world_size=world_size).val_dataloader())
        for r in range(world_size)
    ]
    shapes = [[tuple(batch["input_ids"].shape) for batch in batches] for batches in ranks]
    assert all(shape == shapes[0] for shape in shapes), "a rank with fewer batches would hang the others"
    assert sum(num_targets(batch) for batches in ranks for batch in batches) == num_rows * (T - 1)
    labels = torch.cat([batch["labels"] for batches in ranks for batch in batches])
    scored = [tuple(row) for row in labels.tolist() if max(row) >= 0]
    assert sorted(scored) == sorted(rows_of(alone))


def test_small_validation_corpus_is_not_read_twice(tmp_path: Path):
    module = ready(tmp_path, validation_sequences=10_000)
    store = module.prepare_store("validation")
    assert len(module.validation_data) == -(-store.num_tokens // T)
    seen = Counter()
    for i in range(len(module.validation_data)):
        for _, document, start, end in module.validation_data.provenance(i):
            seen.update((document, place) for place in range(start, end))
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("changes", [{"validation": None}, {"validation_sequences": 0}])
def test_validation_can_be_left_out(tmp_path: Path, changes: dict):
    assert ready(tmp_path, **changes).val_dataloader() == []


def test_setup_reads_no_corpus_that_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_module(tmp_path).prepare_data()
    module = make_module(tmp_path)
    monkeypatch.setattr(FileShard, "documents", lambda *_: pytest.fail("the corpus was read again"))
    module.prepare_data()
    module.setup()
    assert len(module.data) == 64 * 8
    with pytest.raises(pytest.fail.Exception, match="read again"):
        make_module(tmp_path, token_policy=TokenPolicy(append_eos=False)).prepare_data()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_step": 8 * T + 1}, r"tokens_per_step=257 is not a multiple of max_seqlen=32; set data\.tokens"),
        ({"mixture": {"short": 1, "lnog": 1}}, r"corpus\.mixture names \['lnog'\], but corpus\.sources are"),
        ({"sources": {"validation": Texts(["a"])}}, "a source cannot be called 'validation'"),
    ],
)
def test_wrong_argument_is_refused_at_once(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_module(tmp_path, **changes)


def test_ranks_that_do_not_divide_a_step_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="8 sequences per step do not divide over 3 ranks"):
        ready(tmp_path, world_size=3).train_dataloader()


class Recorder(pl.LightningModule):
    """Trains one weight and writes down the rows of each optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: list[list[tuple[int, ...]]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)

    def training_step(self, batches: list[Batch], batch_idx: int) -> None:
        self.steps.append(rows_of(batches))
        optimizer: Any = self.optimizers()
        self.manual_backward(self.weight.sum())
        optimizer.step()

    def on_train_batch_end(self, *_: Any) -> None:
        self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / f"{self.global_step}.ckpt")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass


def fit(folder: Path, *, checkpoint: Path | None = None) -> Recorder:
    data = make_module(folder, max_steps=6)
    data.trainer = None
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return module


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*dataloader is not resumable")
def test_lightning_resumes_with_the_next_step_and_stops_at_the_last(tmp_path: Path):
    whole = fit(tmp_path)
    resumed = fit(tmp_path, checkpoint=tmp_path / "2.ckpt")
    assert len(whole.steps) == 6
    assert resumed.steps == whole.steps[2:]
