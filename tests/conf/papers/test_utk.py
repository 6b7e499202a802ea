"""Untie the Knots (arXiv:2409.04774): its three models, the baselines of Table 1 and the ablations of Table 5.

Numbers are copied from the paper once more, not from the presets.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from datamodules.base import PackedDataModule
from recipes.ablating.grid import read_ablation
from recipes.build import build_augmentation, build_data, build_tokenizer
from recipes.compose import compose
from tests.datamodules.augmentations.knots import Chunk, distinct, read, row_of

QWEN2_7B, QWEN2_72B, LLAMA = (
    "utk_qwen2_7b_128k/pretrain",
    "utk_qwen2_72b_128k/pretrain",
    "utk_llama3p1_8b_128k/pretrain",
)
MODELS = {QWEN2_7B: "Qwen/Qwen2-7B", QWEN2_72B: "Qwen/Qwen2-72B", LLAMA: "meta-llama/Llama-3.1-8B"}
RULER_128K = {QWEN2_7B: 75.0, QWEN2_72B: 84.5, LLAMA: 73.8}

PUBLISHED = {
    "stage": "continued_pretraining",
    "context_length": 128 * 1024,
    "packing._target_": "datamodules.packing.concat_chunk.ConcatChunk",
    "packing.document_mask": False,  # section 4.3: full attention
    "packing.reset_positions": False,
    "augmentation._target_": "datamodules.augmentations.untie_the_knots.UntieTheKnots",
    "augmentation.probability": 0.80,
    "augmentation.partial_order": True,
    "augmentation.backtracing": True,
    "augmentation.chunk_ids": True,
    "augmentation.chunk_length": None,
    "corpus.mixture": {"chinese": 0.42, "english": 0.42, "code": 0.16},
    "corpus.sampling": None,  # mixture and lengths as they are
    "data.tokens_per_step": 32 * 131072,
    "data.max_steps": 4768,
    "data.token_policy.append_eos": True,
    "optimizer._target_": "lightning_modules.optim.adamw.adamw",
    "optimizer.lr": 1e-5,
    "optimizer.betas": [0.9, 0.95],
    "lr_schedule._target_": "lightning_modules.optim.schedules.CosineWithWarmup",
    "lr_schedule.warmup_steps": 200,
}

NO_UTK = {"augmentation", "augmentation.probability"}
CHANGED = {
    "ct": NO_UTK | {"rope.rope_theta"},
    "abf": NO_UTK,
    "upsampling": NO_UTK | {"corpus.sampling"},
    "attention_mask": NO_UTK | {"packing.document_mask"},
    "synthetic": NO_UTK | {f"corpus.mixture.{source}" for source in ("chinese", "english", "code", "synthetic")},
    "cip_2": NO_UTK,
    "probability_30_percent": {"augmentation.probability"},
    "no_backtracing": {"augmentation.backtracing", "augmentation.chunk_ids"},
    "order_not_kept": {"augmentation.partial_order"},
    "chunks_of_1k": {"augmentation.chunk_length"},
}
"""What each variant may change; `augmentation` is which one, with its own keys."""

WORDS = ("the", "sea", "was", "grey", "and", "a", "ship", "came", "slowly", "over", "it", "while", "men", "sang", "of")


def as_plain(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@pytest.mark.parametrize("preset", MODELS)
def test_numbers_of_the_paper(preset: str) -> None:
    config = compose([f"recipe={preset}"]).config
    assert {key: as_plain(config, key) for key in PUBLISHED} == PUBLISHED
    assert config.model.source.name_or_path == MODELS[preset]
    assert config.data.max_steps * config.data.tokens_per_step == pytest.approx(20e9, rel=1e-3)
    assert config.optimizer.lr * config.lr_schedule.min_lr_ratio == pytest.approx(1e-6)
    assert config.about.reported == f"RULER-128K {RULER_128K[preset]} (Table 1)"


@pytest.mark.parametrize("preset", [QWEN2_7B, QWEN2_72B])
def test_qwen2_gets_five_times_its_base_and_is_counted_from_32k(preset: str) -> None:
    composed = compose([f"recipe={preset}"])
    assert composed.choices["rope"] == "adjusted_base"
    assert composed.config.rope.rope_theta == 5e6 == 5 * composed.config.model.original_rope_theta
    assert composed.config.about.native_context_length == 32 * 1024
    assert composed.config.extension_factor == 128 / 32


def test_llama_keeps_its_scaling() -> None:
    composed = compose([f"recipe={LLAMA}"])
    assert composed.choices["rope"] == "unchanged"
    assert composed.config.extension_factor == 1.0


@pytest.mark.parametrize("variant", CHANGED)
def test_variant_changes_what_it_should_and_nothing_else(variant: str) -> None:
    preset, changed = (compose([f"recipe={QWEN2_7B}", *words]) for words in ([], [f"variant=utk/{variant}"]))
    assert differences(preset.config, changed.config) == CHANGED[variant]
    other = {key for key in changed.choices if changed.choices[key] != preset.choices[key]}
    assert other == ({"variant", "augmentation"} if "augmentation" in CHANGED[variant] else {"variant"})


def differences(one: DictConfig, other: DictConfig) -> set[str]:
    """Keys that say something else; of an augmentation of another class, what both have and `augmentation`."""
    first, second = leaves(OmegaConf.to_container(one)), leaves(OmegaConf.to_container(other))
    found = {key for key in {*first} | {*second} if first.get(key, "") != second.get(key, "")}
    if "augmentation._target_" in found:
        of_the_class = {key for key in found if key.startswith("augmentation.") and key != "augmentation.probability"}
        found = found - of_the_class | {"augmentation"}
    return {"corpus.sampling" if key.startswith("corpus.sampling") else key for key in found}


def leaves(node: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value, references as they are written."""
    if not isinstance(node, dict):
        return {key: node}
    return {name: value for child in node for name, value in leaves(node[child], f"{key}.{child}".strip(".")).items()}


def test_variants_say_the_numbers_of_the_paper() -> None:
    configs = {name: compose([f"recipe={QWEN2_7B}", f"variant=utk/{name}"]).config for name in CHANGED}
    assert configs["ct"].rope.rope_theta == 1e6
    assert configs["abf"].rope.rope_theta == 5e6
    rules = OmegaConf.to_container(configs["upsampling"].corpus.sampling, resolve=True)
    assert rules == {
        source: {"upsample": {"min_length": 32768, "times": 5}} for source in ("chinese", "english", "code")
    }
    assert configs["attention_mask"].packing.document_mask is True
    mixture = configs["synthetic"].corpus.mixture
    assert mixture.synthetic == 0.3
    assert [mixture[name] / 0.7 for name in ("chinese", "english", "code")] == pytest.approx([0.42, 0.42, 0.16])
    assert sum(mixture.values()) == pytest.approx(1)
    assert configs["cip_2"].augmentation.num_chunks == 2
    assert configs["probability_30_percent"].augmentation.probability == 0.3
    without = configs["no_backtracing"].augmentation
    assert (without.backtracing, without.chunk_ids) == (False, False)  # one flag of the code, add_sort_task
    assert configs["order_not_kept"].augmentation.partial_order is False
    assert configs["chunks_of_1k"].augmentation.chunk_length == 1024


def augmentation_of(*words: str) -> Any:
    """The augmentation of the 7B model's preset, with the demo's tokenizer."""
    config = compose([f"recipe={QWEN2_7B}", "scale=toy", *words]).config
    return build_augmentation(config, build_tokenizer(config))


def rows_of(augmentation: Any, documents: list[np.ndarray], *, number: int = 40) -> list[list[Chunk]]:
    """The chunks of rows that were untied."""
    made = [row_of(augmentation, documents, seed=seed) for seed in range(number)]
    whole = np.concatenate(documents)
    return [read(augmentation, row) for row in made if not np.array_equal(row.input_ids, whole)]


def by_document(chunks: list[Chunk]) -> dict[int, list[Chunk]]:
    found: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        found.setdefault(chunk.document, []).append(chunk)
    return found


@pytest.mark.parametrize(("words", "probability"), [((), 0.8), (("variant=utk/probability_30_percent",), 0.3)])
def test_share_of_sequences_that_are_untied(words: tuple[str, ...], probability: float) -> None:
    number = 400
    share = len(rows_of(augmentation_of(*words), distinct(20, 20), number=number)) / number
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / number)


def test_untied_documents_are_of_two_or_three_chunks_in_order_and_their_order_is_told() -> None:
    counts = set()
    for chunks in rows_of(augmentation_of(), distinct(60, 90, 40)):
        for parts in by_document(chunks).values():
            counts.add(len(parts))
            tokens = np.concatenate([part.body for part in parts])
            np.testing.assert_array_equal(tokens, np.sort(tokens))
            assert [part.told for part in parts[:-1]] == [None] * (len(parts) - 1)
            assert parts[-1].told == [part.tag for part in parts]
    assert counts == {2, 3}


def test_without_backtracing_chunks_have_no_ids_and_no_order_is_told() -> None:
    rows = rows_of(augmentation_of("variant=utk/no_backtracing"), distinct(60, 90, 40))
    assert {chunk.told is None for row in rows for chunk in row} == {True}
    assert {chunk.tag is None for row in rows for chunk in row} == {True}


def test_disrupted_order_is_that_of_the_chunks_alone() -> None:
    orders = set()
    for chunks in rows_of(augmentation_of("variant=utk/order_not_kept"), distinct(60, 90, 40)):
        for parts in by_document(chunks).values():
            starts = [int(part.body[0]) for part in parts]
            orders.add(starts == sorted(starts))
            in_order = sorted(parts, key=lambda part: int(part.body[0]))
            assert parts[-1].told == [part.tag for part in in_order]  # told is the document's order all the same
    assert orders == {True, False}


def test_chunks_of_1k_are_of_1024_tokens_but_for_the_last() -> None:
    for chunks in rows_of(augmentation_of("variant=utk/chunks_of_1k"), distinct(2500, 1024, 4096), number=10):
        lengths = {number: [len(part.body) for part in parts] for number, parts in by_document(chunks).items()}
        assert lengths == {1: [1024, 1024, 452], 2: [1024], 3: [1024] * 4}


def test_cip_2_is_all_first_halves_and_then_all_second_ones() -> None:
    augmentation, documents = augmentation_of("variant=utk/cip_2"), distinct(60, 90, 40)
    for seed in range(20):
        row = augmentation(documents, max_seqlen=190, generator=np.random.default_rng(seed))
        halves = np.split(row.input_ids, np.flatnonzero(np.diff(row.input_ids) != 1) + 1)
        assert [int(half[0]) // 10**6 for half in halves] == [1, 2, 3, 1, 2, 3]
        for k, document in enumerate(documents):
            np.testing.assert_array_equal(np.concatenate([halves[k], halves[k + 3]]), document)
        assert row.loss_mask.all()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two roles of 200 short documents; every 40th is ten times as long."""
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    for role in ("chinese", "english"):
        lengths = (400 if k % 40 == 0 else 40 for k in range(200))
        lines = (json.dumps({"text": f"{role} " + " ".join(rng.choice(WORDS, length))}) for length in lengths)
        (folder / f"{role}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def data_of(corpora: Path, *words: str) -> PackedDataModule:
    """The data of the 7B model's preset at the demo's size, over small files."""
    config = compose(
        [
            f"recipe={QWEN2_7B}",
            "scale=toy",
            *words,
            *(f"corpus.sources.{role}.path={corpora}/{role}.jsonl" for role in ("chinese", "english")),
            f"corpus.sources.documents.path={corpora}/english.jsonl",
            "corpus.sources.code.num_documents=64",
            "corpus.sources.code.max_words=60",
            "corpus.sources.synthetic.num_documents=12",
            "corpus.validation=null",
            "data.tokens_per_step=8192",
            "data.max_steps=32",
            f"cache_dir={corpora}/cache",
        ]
    ).config
    data = build_data(config)
    data.prepare_data()
    data.setup()
    return data


def tokens_read(data: PackedDataModule) -> Counter[tuple[str, bool]]:
    """Tokens of (source, whether the document is one of the long ones) in the run."""
    assert data.data is not None
    found: Counter[tuple[str, bool]] = Counter()
    for i in range(len(data.data)):
        for source, document, start, end in data.data.provenance(i):
            found[source, bool(data.data.stores[source].lengths[document] >= 300)] += end - start
    return found


def share(tokens: Counter[tuple[str, bool]], source: str) -> float:
    return sum(tokens[source, is_long] for is_long in (False, True)) / sum(tokens.values())


def test_mask_of_documents_alone_tells_attention_mask_from_abf(corpora: Path) -> None:
    abf, masked = (data_of(corpora, f"variant=utk/{name}").data for name in ("abf", "attention_mask"))
    assert abf is not None
    assert masked is not None
    for i in range(8):
        plain, row = abf[i], masked[i]
        np.testing.assert_array_equal(plain.input_ids, row.input_ids)
        np.testing.assert_array_equal(plain.labels, plain.input_ids)  # no UtK in either
        assert len(set(plain.document_ids.tolist())) == 1
        pieces = [end - start for _, _, start, end in masked.provenance(i)]
        assert [len(list(run)) for _, run in groupby(row.document_ids.tolist())] == pieces
        for positions in (plain.position_ids, row.position_ids):
            np.testing.assert_array_equal(positions, np.arange(2048))


def test_upsampling_reads_long_documents_five_times_as_often_and_leaves_the_shares(corpora: Path) -> None:
    plain = tokens_read(data_of(corpora, "variant=utk/abf"))
    more = tokens_read(data_of(corpora, "variant=utk/upsampling", "corpus.sampling.chinese.upsample.min_length=300"))
    for source in ("chinese", "english"):
        before, after = (tokens[source, True] / tokens[source, False] for tokens in (plain, more))
        assert after / before == pytest.approx(5, rel=0.1)
    for tokens in (plain, more):
        shares = [share(tokens, source) for source in ("chinese", "english", "code")]
        assert shares == pytest.approx([0.42, 0.42, 0.16], abs=0.01)


def test_synthetic_data_replace_three_tenths_of_every_source(corpora: Path) -> None:
    tokens = tokens_read(data_of(corpora, "variant=utk/synthetic"))
    shares = {"synthetic": 0.3, "chinese": 0.294, "english": 0.294, "code": 0.112}
    assert {source: share(tokens, source) for source in shares} == pytest.approx(shares, abs=0.01)


def test_ablations_have_each_variant_once_and_their_words_win_over_it() -> None:
    cells = {}
    for name in ("utk_baselines", "utk_ablations"):
        for cell in read_ablation([f"ablation={name}"]).cells:
            cells[cell.name] = cell.words, compose(cell.words).config
    variants = [word for words, _ in cells.values() for word in words if word.startswith("variant=")]
    assert sorted(variants) == sorted(f"variant=utk/{name}" for name in CHANGED)
    configs = {name: config for name, (_, config) in cells.items()}
    # At the demo's size: 512 to 2048 tokens, and five times its base where the paper has five times Qwen2's.
    assert {(config.model.original_context_length, config.context_length) for config in configs.values()} == {
        (512, 2048)
    }
    theta = {name: config.rope.rope_theta for name, config in configs.items()}
    assert theta.pop("CT") == 1e4
    assert set(theta.values()) == {5e4}
    assert configs["Upsampling"].corpus.sampling.english.upsample.min_length == 512
    assert configs["chunks-of-64"].augmentation.chunk_length == 64
    assert configs["AttnMask"].packing.document_mask is True
    assert configs["Synthetic"].corpus.mixture.synthetic == 0.3
