"""Synthetic tables: a share of the rows becomes a table as long as the row; the answer alone is learned."""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.augmentations.base import TrainingSequence
from datamodules.augmentations.few_shot_packing import FewShotPacking
from datamodules.augmentations.synthetic_tables import SyntheticTables
from datamodules.tokens.policy import TokenPolicy
from tests.datamodules.tasks.table_solver import QUESTION_KINDS, parse, solve
from tests.datamodules.toy import make_tokenizer

ROOT = Path(__file__).parents[3]
DOCUMENT_TOKEN = 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The demo's, of 4096 tokens."""
    return AutoTokenizer.from_pretrained(ROOT / "lightning_modules" / "models" / "demo")


@pytest.fixture(scope="module")
def tables(tokenizer: PreTrainedTokenizerBase) -> SyntheticTables:
    return SyntheticTables(probability=1.0).with_tokenizer(tokenizer, vocab_size=4096)


def documents(*lengths: int) -> list[np.ndarray]:
    return [np.full(length, DOCUMENT_TOKEN + number, dtype=np.int64) for number, length in enumerate(lengths)]


def made(tables: SyntheticTables, row: list[np.ndarray], max_seqlen: int, seed: int = 0) -> TrainingSequence:
    return tables(row, max_seqlen=max_seqlen, generator=np.random.default_rng((7, seed)))


def split(row: TrainingSequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompt, what is learned, and what comes behind."""
    learned = np.flatnonzero(row.loss_mask)
    assert len(learned) == learned[-1] - learned[0] + 1, "what is learned is one stretch"
    return row.input_ids[: learned[0]], row.input_ids[learned[0] : learned[-1] + 1], row.input_ids[learned[-1] + 1 :]


def test_what_is_learned_is_the_right_answer_to_the_rest(tables: SyntheticTables, tokenizer: PreTrainedTokenizerBase):
    kinds, formats = Counter(), Counter()
    for seed in range(150):
        prompt, answer, behind = split(made(tables, documents(2048), 2048, seed))
        text = tokenizer.decode(prompt)
        assert isinstance(text, str)
        solved = solve(text)
        assert tokenizer.decode(answer) == f" {solved.answer}{tokenizer.eos_token}"
        assert tokenizer.encode(f"{text} {solved.answer}", add_special_tokens=False) == [*prompt, *answer[:-1]]
        assert set(behind) <= {DOCUMENT_TOKEN}
        kinds[solved.kind] += 1
        formats[parse(text).format, parse(text).question_first] += 1
    assert set(kinds) == set(QUESTION_KINDS)
    assert len(formats) == 6


@pytest.mark.parametrize(("max_seqlen", "num_rows", "smallest"), [(512, 60, 0.3), (4096, 30, 0.96), (65536, 3, 0.96)])
def test_a_table_is_as_large_as_the_row_and_never_larger(
    tables: SyntheticTables, max_seqlen: int, num_rows: int, smallest: float
):
    filled = []
    for seed in range(num_rows):
        row = made(tables, documents(max_seqlen), max_seqlen, seed)
        assert {len(field) for field in row} == {max_seqlen}
        filled.append(max_seqlen - len(split(row)[2]))
    assert max(filled) <= max_seqlen
    assert min(filled) >= smallest * max_seqlen
    assert np.mean(filled) >= 0.9 * max_seqlen


def test_what_stays_free_holds_the_beginning_of_the_documents_as_packing_would_have_it(
    tokenizer: PreTrainedTokenizerBase,
):
    row_of = documents(5, 3000)
    for document_mask in (True, False):
        for reset_positions in (True, False):
            tables = SyntheticTables(1.0, document_mask=document_mask, reset_positions=reset_positions)
            row = made(tables.with_tokenizer(tokenizer, vocab_size=4096), row_of, 2048)
            behind = split(row)[2]
            edge = 2048 - len(behind)
            assert len(behind) > 5
            assert behind.tolist() == [DOCUMENT_TOKEN] * 5 + [DOCUMENT_TOKEN + 1] * (len(behind) - 5)
            assert row.document_ids.tolist() == [0] * edge + [int(document_mask)] * len(behind)
            begins = edge if reset_positions else 0
            assert row.position_ids.tolist() == [*range(edge), *range(edge - begins, 2048 - begins)]


def test_every_token_of_the_documents_is_in_the_row_or_counted(tokenizer: PreTrainedTokenizerBase):
    tables = SyntheticTables(0.5).with_tokenizer(tokenizer, vocab_size=4096)
    chosen = 0
    for row_of in (documents(900, 1148), documents(30), documents()):
        for seed in range(8):
            row = made(tables, row_of, 2048, seed)
            behind = row.input_ids if row.loss_mask.all() else split(row)[2]
            counted = tables.num_pushed_out(row_of, max_seqlen=2048, generator=np.random.default_rng((7, seed)))
            assert len(behind) + counted == sum(map(len, row_of))
            chosen += counted > 0
    assert 4 <= chosen <= 20


def test_rows_that_are_not_chosen_are_as_packing_made_them():
    row_of = [np.array([10, 11, 12]), np.array([20]), np.array([30, 31])]
    expected = {
        (False, False): ([0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]),
        (True, False): ([0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]),
        (False, True): ([0, 0, 0, 0, 0, 0], [0, 1, 2, 0, 0, 1]),
        (True, True): ([0, 0, 0, 1, 2, 2], [0, 1, 2, 0, 0, 1]),
    }
    for (document_mask, reset_positions), (document_ids, position_ids) in expected.items():
        tables = SyntheticTables(0.0, document_mask=document_mask, reset_positions=reset_positions)
        row = made(tables, row_of, 8)  # without a tokenizer too
        assert row.input_ids.tolist() == [10, 11, 12, 20, 30, 31]
        assert row.loss_mask.tolist() == [True] * 6
        assert row.document_ids.tolist() == document_ids
        assert row.position_ids.tolist() == position_ids
        assert {field.dtype for field in (row.input_ids, row.document_ids, row.position_ids)} == {np.dtype(np.int64)}


def test_share_of_rows_is_the_probability(tokenizer: PreTrainedTokenizerBase):
    tables = SyntheticTables(0.25).with_tokenizer(tokenizer, vocab_size=4096)
    chosen = [not made(tables, documents(600), 600, seed).loss_mask.all() for seed in range(400)]
    assert 0.19 < np.mean(chosen) < 0.31


@pytest.mark.parametrize("lengths", [(), (1,), (2,), (1, 1), (2, 2)])
def test_few_and_short_documents_are_sane(tables: SyntheticTables, lengths: tuple[int, ...]):
    row = made(tables, documents(*lengths), 1024)
    prompt, answer, behind = split(row)
    assert len(behind) == min(sum(lengths), 1024 - len(prompt) - len(answer))
    assert len({len(field) for field in row}) == 1
    unchanged = made(SyntheticTables(0.0), documents(*lengths), 1024)
    assert unchanged.input_ids.tolist() == np.concatenate([*documents(*lengths), np.zeros(0)]).tolist()
    assert {len(field) for field in unchanged} == {sum(lengths)}


def test_token_policy_stands_around_the_problem(tokenizer: PreTrainedTokenizerBase):
    policy = TokenPolicy(prepend_bos=True, append_eos=False, separator="\n")
    tables = SyntheticTables(1.0, token_policy=policy).with_tokenizer(tokenizer, vocab_size=4096)
    for seed in range(10):
        row = made(tables, [], 1024, seed)
        prompt, answer, _ = split(row)
        assert prompt[0] == tokenizer.bos_token_id
        text = tokenizer.decode(prompt[1:])
        assert isinstance(text, str)
        assert text.startswith("\n")
        assert tokenizer.decode(answer) == f" {solve(text[1:]).answer}"
        assert not row.loss_mask[:-1].all()


def test_a_row_depends_on_generator_and_size_alone_and_its_object_pickles(tables: SyntheticTables):
    again = pickle.loads(pickle.dumps(tables))
    for seed in range(5):
        expected = made(tables, documents(1500), 1500, seed)
        for field, same in zip(expected, made(again, documents(1500), 1500, seed), strict=True):
            np.testing.assert_array_equal(field, same)
    rows = {made(tables, documents(1500), 1500, seed).input_ids.tobytes() for seed in range(5)}
    assert len(rows) == 5


def test_a_coarser_tokenizer_is_filled_as_well():
    """Of 300 tokens: hardly more than bytes, so the estimate from few characters has to hold there too."""
    tables = SyntheticTables(1.0).with_tokenizer(make_tokenizer(300), vocab_size=300)
    for seed in range(8):
        row = made(tables, documents(6000), 6000, seed)
        assert len(split(row)[2]) < 0.04 * 6000


def test_a_row_without_room_for_a_table_is_an_error_that_names_the_key(tables: SyntheticTables):
    with pytest.raises(ValueError, match=r"max_seqlen=64 has no room .*; raise context_length or set augmentation\.pr"):
        made(tables, documents(64), 64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"probability": 1.5}, r"augmentation\.probability=1\.5 must be from 0 to 1"),
        ({"formats": ["xml"]}, r"augmentation\.formats=\['xml'\] must list one or more of markdown, csv, json"),
        ({"families": []}, r"augmentation\.families=\[\] must list one or more of retrieval, chain_of_thought, global"),
    ],
)
def test_impossible_settings_name_the_key(change: dict[str, Any], told: str):
    settings: dict[str, Any] = {"probability": 0.5} | change
    with pytest.raises(ValueError, match=told):
        SyntheticTables(**settings)


@pytest.mark.parametrize(
    ("name", "kind"), [("synthetic_tables", SyntheticTables), ("few_shot_packing", FewShotPacking)]
)
def test_conf_sets_every_argument(name: str, kind: type):
    root = OmegaConf.create(
        {
            "data": OmegaConf.load(ROOT / "conf" / "data" / "continued_pretraining.yaml"),
            "packing": {"document_mask": False, "reset_positions": True},
            "augmentation": OmegaConf.load(ROOT / "conf" / "augmentation" / f"{name}.yaml"),
        }
    )
    assert {key for key in root.augmentation if key != "_target_"} == set(inspect.signature(kind).parameters)
    built = instantiate(root.augmentation, _convert_="all")
    assert isinstance(built, kind)
    if isinstance(built, SyntheticTables):
        assert built.token_policy == TokenPolicy()
        assert (built.document_mask, built.reset_positions) == (False, True)
