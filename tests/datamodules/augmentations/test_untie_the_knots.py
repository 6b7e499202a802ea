"""UtK: a row is read back by an independent reader, and every rule is checked on what it finds."""

from __future__ import annotations

import itertools
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import lightning_modules.models
from datamodules.augmentations import untie_the_knots
from datamodules.augmentations.untie_the_knots import UntieTheKnots
from tests.datamodules.augmentations.knots import HUGE, by_document, distinct, many, published_mask, read, row_of
from tests.grids import quick_where

DEMO = Path(lightning_modules.models.__file__).parent / "demo"
VOCAB_SIZE = 4096
FOLLOWED = ["code", "paper"]
FOLLOW = pytest.mark.parametrize("follow", FOLLOWED)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def make(tokenizer: PreTrainedTokenizerBase):
    def made(**settings: Any) -> UntieTheKnots:
        settings = {"probability": 1.0, **settings}
        return UntieTheKnots(**settings).with_tokenizer(tokenizer, vocab_size=VOCAB_SIZE)

    return made


SETTINGS = [
    {},
    {"chunk_count_probabilities": [0.2, 0.3, 0.3, 0.2]},
    {"partial_order": False},
    {"split_points": "even"},
    {"chunk_length": 7},
    {"chunk_length": 7, "partial_order": False, "pin_last_chunk": False},
    {"min_split_length": 30, "chunk_count_probabilities": [0.0, 1.0]},
]
ALL = pytest.mark.parametrize(
    ("settings", "follow"),
    quick_where(
        itertools.product(SETTINGS, FOLLOWED),
        lambda settings, follow: SETTINGS.index(settings) % 2 == FOLLOWED.index(follow),
    ),
)


def test_the_drawing_in_the_docstring_is_what_comes_out(tokenizer: PreTrainedTokenizerBase, make) -> None:
    vocabulary = tokenizer.get_vocab()
    drawn = re.findall(r"^    (documents|row|learned) +(\S.*?)(?:   +[^-+ ].*)?$", untie_the_knots.__doc__ or "", re.M)
    parts = {kind: [text for found, text in drawn if found == kind] for kind in ("documents", "row", "learned")}
    documents = [np.array([vocabulary[word] for word in text.split()]) for text in parts["documents"][0].split("|")]
    augmentation = make(chunk_count_probabilities=[0.5, 0.5])
    row = row_of(augmentation, documents, seed=13, max_seqlen=52)
    words = {token: word for word, token in vocabulary.items()}
    words |= {token: word for word, token in augmentation.knot_tokens.ids.items()}
    assert len(parts["row"]) == len(parts["learned"][:5]) == 5
    assert " ".join(parts["row"]).split() == [words[token] for token in row.input_ids.tolist()]
    assert " ".join(parts["learned"][:5]).split() == ["+" if learned else "-" for learned in row.loss_mask]
    pushed_out = augmentation.num_pushed_out(documents, max_seqlen=52, generator=np.random.default_rng(13))
    assert (pushed_out, sum(map(len, documents))) == (6, 12)


@ALL
def test_no_token_is_lost_and_documents_keep_their_order(make, settings: dict[str, Any], follow: str) -> None:
    augmentation = make(follow=follow, **settings)
    for seed in range(10):
        documents = many(seed)
        chunks = read(augmentation, row_of(augmentation, documents, seed=seed))
        for number, of in by_document(chunks).items():
            np.testing.assert_array_equal(np.concatenate([chunk.body for chunk in of]), documents[number - 1])
        assert len(by_document(chunks)) == len(documents)
        if settings.get("partial_order", True):
            starts = {number: [c.body[0] for c in chunks if c.document == number] for number in by_document(chunks)}
            assert all(places == sorted(places) for places in starts.values())


@ALL
def test_knots_and_ids_stand_where_documents_were_cut(
    tokenizer: PreTrainedTokenizerBase, make, settings: dict[str, Any], follow: str
) -> None:
    augmentation = make(follow=follow, **settings)

    def number(knot: tuple[int, ...] | None) -> int | None:
        if knot is None or "chunk_length" not in settings:
            return None if knot is None else knot[0]
        return int(str(tokenizer.decode(list(knot)))) + 1  # these count from 0

    documents = many(3, total=600)
    chunks = read(augmentation, row_of(augmentation, documents, seed=8))
    tags = [chunk.tag for chunk in chunks if chunk.tag is not None]
    assert len(set(tags)) == len(tags)
    for of in by_document(chunks).values():
        last = len(of) - 1
        for k, chunk in enumerate(of):
            assert number(chunk.head) == (k + 1 if k > 0 else None)
            assert number(chunk.tail) == (k + 1 if k < last else None)
            assert (chunk.tag is not None) == (last > 0 or follow == "paper")
        told = [chunk.told for chunk in of if chunk.told is not None]
        assert told == ([[chunk.tag for chunk in of]] if last > 0 else [])


@ALL
def test_the_loss_mask_is_the_published_one_moved_by_one(make, settings: dict[str, Any], follow: str) -> None:
    augmentation = make(follow=follow, **settings)
    hidden = 0
    for seed in range(10):
        for max_seqlen in (4096, HUGE):
            row = row_of(augmentation, many(seed), seed=seed, max_seqlen=max_seqlen)
            # The position p of the published mask asks for token p + 1.
            assert row.loss_mask[1:].astype(int).tolist() == published_mask(augmentation, row.input_ids.tolist())
            hidden += int((~row.loss_mask).sum())
    assert hidden > 1000


def test_the_first_token_is_learned_where_it_is_a_documents_own(make) -> None:
    """It has nothing before it and no loss, but an inserted one shows as not learned."""
    cut, whole = make(chunk_count_probabilities=[0, 1.0]), make(chunk_count_probabilities=[1.0])
    assert not row_of(cut, distinct(40)).loss_mask[0]
    assert row_of(whole, distinct(40)).loss_mask[0]


def test_without_the_mask_every_token_is_learned(make) -> None:
    documents = many(1)
    masked, plain = (row_of(make(mask_inserted=mask), documents) for mask in (True, False))
    assert plain.loss_mask.all()
    np.testing.assert_array_equal(plain.input_ids, masked.input_ids)


@ALL
def test_the_row_is_full_and_is_the_long_rows_beginning(make, settings: dict[str, Any], follow: str) -> None:
    augmentation = make(follow=follow, **settings)
    for seed in range(5):
        documents = many(seed)
        long, row = (row_of(augmentation, documents, seed=seed, max_seqlen=length) for length in (HUGE, 4096))
        assert [len(values) for values in row] == [4096] * 4
        assert [values.dtype for values in row] == [np.int64, np.bool_, np.int64, np.int64]
        np.testing.assert_array_equal(row.input_ids, long.input_ids[:4096])
        np.testing.assert_array_equal(row.loss_mask, long.loss_mask[:4096])
        np.testing.assert_array_equal(row.position_ids, np.arange(4096))
        assert not row.document_ids.any()
        pushed_out = augmentation.num_pushed_out(documents, max_seqlen=4096, generator=np.random.default_rng(seed))
        assert pushed_out == int((long.input_ids[4096:] >= 10**6).sum()) > 0
        assert augmentation.num_pushed_out(documents, max_seqlen=HUGE, generator=np.random.default_rng(seed)) == 0


def test_a_row_depends_on_seed_and_number_alone_also_after_pickling(make) -> None:
    augmentation, documents = make(), many(0)
    row = row_of(augmentation, documents, seed=(47, 5))
    copied = row_of(pickle.loads(pickle.dumps(augmentation)), documents, seed=(47, 5))
    for values, again in zip(row, copied, strict=True):
        np.testing.assert_array_equal(values, again)
    assert not np.array_equal(row.input_ids, row_of(augmentation, documents, seed=(47, 6)).input_ids)


@FOLLOW
def test_probability_is_the_share_of_augmented_rows_and_0_is_the_identity(make, follow: str) -> None:
    documents = many(2, total=512)
    plain = np.concatenate(documents)
    for seed in range(20):
        row = row_of(make(probability=0.0, follow=follow), documents, seed=seed, max_seqlen=512)
        np.testing.assert_array_equal(row.input_ids, plain)
        assert row.loss_mask.all()
        assert not row.document_ids.any()
    augmentation = make(probability=0.8, follow=follow)
    untouched = [
        np.array_equal(row_of(augmentation, documents, seed=i, max_seqlen=512).input_ids, plain) for i in range(500)
    ]
    assert abs(np.mean(untouched) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 500)


def test_chunk_counts_are_drawn_as_asked(make) -> None:
    shares = [0.1, 0.2, 0.3, 0.4]
    augmentation = make(chunk_count_probabilities=shares)
    counts = Counter()
    for seed in range(20):
        chunks = read(augmentation, row_of(augmentation, distinct(*[50] * 50), seed=seed))
        counts.update(len(of) for of in by_document(chunks).values())
    assert sorted(counts) == [1, 2, 3, 4]
    for count, share in enumerate(shares, 1):
        assert abs(counts[count] - 1000 * share) < 4 * np.sqrt(1000 * share * (1 - share))


def test_random_cuts_are_every_pair_of_places_equally_often(make) -> None:
    augmentation = make(chunk_count_probabilities=[0, 0, 1.0])
    cuts = Counter()
    for seed in range(100):
        chunks = read(augmentation, row_of(augmentation, distinct(*[5] * 30), seed=seed))
        cuts.update(tuple(len(chunk.body) for chunk in of) for of in by_document(chunks).values())
    assert sorted(cuts) == [(1, 1, 3), (1, 2, 2), (1, 3, 1), (2, 1, 2), (2, 2, 1), (3, 1, 1)]
    assert all(abs(count - 500) < 4 * np.sqrt(500 * 5 / 6) for count in cuts.values())


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({"split_points": "even", "chunk_count_probabilities": [0, 0, 1.0]}, [6, 6, 8]),  # the rest to the last
        ({"chunk_length": 8}, [8, 8, 4]),
        ({"chunk_length": 10}, [10, 10]),
        ({"chunk_length": 20}, [20]),
        ({"chunk_length": 8, "chunk_count_probabilities": [1.0]}, [20]),
        ({"min_split_length": 21}, [20]),
        ({"min_split_length": 20, "chunk_length": 19}, [19, 1]),
    ],
    ids=str,
)
def test_lengths_of_chunks(make, settings: dict[str, Any], lengths: list[int]) -> None:
    chunks = read(make(**settings), row_of(make(**settings), distinct(20)))
    assert [len(chunk.body) for chunk in chunks] == lengths


def test_the_last_chunk_of_the_last_document_stays_last_if_it_is_pinned(make) -> None:
    documents = distinct(30, 30, 30, 30)

    def last(augmentation: UntieTheKnots) -> Iterator[int]:
        for seed in range(60):
            yield int(read(augmentation, row_of(augmentation, documents, seed=seed))[-1].body[-1])

    for order in (True, False):
        assert set(last(make(partial_order=order))) == {documents[-1][-1]}
    ends = {int(document[-1]) for document in documents}
    assert set(last(make(pin_last_chunk=False))) == ends  # in order, a document ends with its own last token
    assert set(last(make(pin_last_chunk=False, partial_order=False))) > ends


def test_every_interleaving_is_equally_likely(make) -> None:
    """Two documents in two chunks and a third that is pinned: six ways to keep both orders, 24 without."""
    for order, ways in ((True, 6), (False, 24)):
        augmentation = make(chunk_count_probabilities=[0, 1.0], min_split_length=2, partial_order=order)
        seen = Counter()
        for seed in range(ways * 100):
            chunks = read(augmentation, row_of(augmentation, distinct(8, 8, 1), seed=seed))
            seen[tuple((chunk.document, chunk.body[0] % 10**6 > 0) for chunk in chunks)] += 1
        assert len(seen) == ways
        assert all(abs(count - 100) < 4.5 * np.sqrt(100) for count in seen.values())


def test_paper_puts_ids_in_front_of_documents_that_were_not_cut_and_code_does_not(make) -> None:
    documents = distinct(100, 90)
    code, paper = (make(chunk_count_probabilities=[1.0], follow=follow) for follow in ("code", "paper"))
    assert [chunk.tag for chunk in read(code, row_of(code, documents))] == [None, None]
    chunks = read(paper, row_of(paper, documents))
    assert all(chunk.tag for chunk in chunks)
    assert [chunk.told for chunk in chunks] == [None, None]


def test_paper_tells_the_order_after_the_documents_last_chunk_and_code_after_the_rightmost(make) -> None:
    differing = 0
    for seed in range(20):
        for follow in ("code", "paper"):
            augmentation = make(follow=follow, partial_order=False, chunk_count_probabilities=[0, 0, 1.0])
            chunks = read(augmentation, row_of(augmentation, distinct(90, 80, 70), seed=seed))
            for of in by_document(chunks).values():
                places = [k for k, chunk in enumerate(chunks) if chunk in of and chunk.told]
                rightmost = max(k for k, chunk in enumerate(chunks) if chunk.document == of[0].document)
                own_last = next(k for k, chunk in enumerate(chunks) if chunk is of[-1])
                assert places == [rightmost if follow == "code" else own_last]
                differing += rightmost != own_last
    assert differing > 20


def test_paper_leaves_short_documents_whole_and_code_cuts_whatever_has_a_token_a_chunk(make) -> None:
    for follow, shortest in (("code", 3), ("paper", 64)):
        augmentation = make(follow=follow, chunk_count_probabilities=[0, 0, 1.0])
        for length, pieces in ((shortest - 1, 1), (shortest, 3)):
            assert len(read(augmentation, row_of(augmentation, distinct(length)))) == pieces


def test_the_two_agree_where_documents_are_long_and_all_are_cut(make) -> None:
    documents = distinct(100, 90, 80)
    code, paper = (row_of(make(follow=follow), documents, seed=3) for follow in ("code", "paper"))
    np.testing.assert_array_equal(code.input_ids, paper.input_ids)


def test_ids_and_their_order_can_be_left_out(make) -> None:
    documents = distinct(100, 90)
    ids_only = make(backtracing=False)
    assert all(chunk.tag and not chunk.told for chunk in read(ids_only, row_of(ids_only, documents)))
    knots_only = make(backtracing=False, chunk_ids=False)
    chunks = read(knots_only, row_of(knots_only, documents))
    assert all(chunk.tag is None and chunk.told is None for chunk in chunks)
    assert any(chunk.head for chunk in chunks)
    assert knots_only.inserted_tokens == ("<t1>", "<h2>", "<t2>", "<h3>")


def test_ids_are_six_letters_and_digits_as_the_tokenizer_writes_them(tokenizer, make) -> None:
    augmentation = make()
    chunks = read(augmentation, row_of(augmentation, many(5), seed=5))
    texts = [tokenizer.decode(list(chunk.tag)) for chunk in chunks if chunk.tag]
    assert len(texts) > 20
    assert all(re.fullmatch("[A-Za-z0-9]{6}", text) for text in texts)
    assert len(set("".join(texts))) > 40
    assert [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts] == [
        chunk.tag for chunk in chunks if chunk.tag
    ]


@FOLLOW
@pytest.mark.parametrize("settings", [{"chunk_count_probabilities": [0, 0, 0, 1.0]}, {"chunk_length": 2}], ids=str)
def test_documents_of_no_one_and_two_tokens(make, settings: dict[str, Any], follow: str) -> None:
    augmentation = make(follow=follow, min_split_length=1, **settings)
    assert len(row_of(augmentation, []).input_ids) == 0
    assert row_of(augmentation, distinct(0)).input_ids.dtype == np.int64
    assert augmentation.num_pushed_out([], max_seqlen=8, generator=np.random.default_rng(0)) == 0
    for lengths in ([1], [2], [1, 2], [0, 1, 0, 2]):
        chunks = read(augmentation, row_of(augmentation, distinct(*lengths)))
        assert sorted(len(chunk.body) for chunk in chunks) == sorted(length for length in lengths if length)
    if follow == "code":  # nothing was cut, so nothing is put in
        assert row_of(augmentation, distinct(2)).input_ids.tolist() == [10**6, 10**6 + 1]


def test_a_single_document_keeps_its_order(make) -> None:
    document = distinct(500)
    for seed in range(10):
        row = row_of(make(), document, seed=seed).input_ids
        np.testing.assert_array_equal(row[row >= 10**6], document[0])
