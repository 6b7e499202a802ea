"""LLaMA-2-7B-32K: the published numbers once more, from the blog, the cards, config.json and OpenChatKit a7094aa."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from omegaconf import DictConfig

from datamodules.batch import IGNORE_INDEX
from datamodules.conversations.conversation import Conversation
from datamodules.corpora.classics import build_tasks
from recipes.build import build, build_data, build_tokenizer
from recipes.compose import compose
from recipes.provenance.reading import preset_file, stated_numbers
from tests.lightning_modules.tiny_models import tiny_model

PRETRAIN = "together_llama2_7b_32k/pretrain"
FEW_SHOT = "together_llama2_7b_32k/few_shot"
INSTRUCT = "together_llama2_7b_32k/instruct"
SCRIPTS = {"together_llama2_7b_32k/booksum": "booksum", "together_llama2_7b_32k/multi_document_qa": "mqa"}
LAST_WITH_BOOKS = "64bec3655e77d9b6ea04d63e821ae40bb2d347f3"


def composed(preset: str, *words: str) -> DictConfig:
    return compose([f"recipe={preset}", *words]).config


def kinds(preset: str) -> dict[str, str]:
    return {number.key: number.kind for number in stated_numbers(preset_file(preset))}


def test_first_stage_extends_llama_2_by_interpolation_alone() -> None:
    config = composed(PRETRAIN)
    assert config.model.source.name_or_path == "meta-llama/Llama-2-7b-hf"
    assert (config.model.original_context_length, config.context_length, config.packing.max_seqlen) == (
        4096,
        32768,
        32768,
    )
    assert config.rope._target_.endswith("LinearInterpolation")
    assert config.rope.factor == 8.0
    assert config.model.original_rope_theta == 10_000
    assert (config.packing.document_mask, config.packing.reset_positions) == (False, False)


def test_first_stage_reads_1p5_billion_tokens_of_four_quarters() -> None:
    config = composed(PRETRAIN)
    assert dict(config.corpus.mixture) == {"book": 0.25, "arxiv": 0.25, "redpajama": 0.25, "ul2_oscar": 0.25}
    assert config.data.max_steps * config.data.tokens_per_step == pytest.approx(1.5e9, rel=0.002)
    for name in config.corpus.mixture:
        filters = config.corpus.sources[name].filters
        assert (filters.min_length, filters.min_length_unit) == (2048, "tokens")


def test_first_stage_borrows_the_optimizer_of_position_interpolation() -> None:
    """Section 3.1, 7B: 128 rows a step above 8K, AdamW (0.9, 0.95), 2e-5, no decay, 20 steps of warm-up from 10 %."""
    config = composed(PRETRAIN)
    assert config.data.tokens_per_step == 128 * 32768
    assert (config.optimizer.lr, list(config.optimizer.betas), config.optimizer.weight_decay) == (2e-5, [0.9, 0.95], 0)
    schedule = build(config.lr_schedule)
    rates = [2e-5 * schedule.multiplier(step, max_steps=config.data.max_steps) for step in (0, 10, 20)]
    assert rates == pytest.approx([2e-6, 1.1e-5, 2e-5])
    own = kinds(PRETRAIN)
    borrowed = ("data.tokens_per_step", "optimizer.lr", "optimizer.betas", "lr_schedule.warmup_start_ratio")
    assert {own[key] for key in borrowed} == {"our choice"}


@pytest.mark.parametrize("preset", [PRETRAIN, FEW_SHOT, *SCRIPTS])
def test_data_is_pinned_to_the_revision_that_has_the_books(preset: str) -> None:
    config = composed(preset)
    for name in config.corpus.mixture:
        source = config.corpus.sources[name]
        rows = source.get("rows", source)
        assert rows.name == "togethercomputer/Long-Data-Collections"
        assert rows.revision == LAST_WITH_BOOKS


@pytest.mark.parametrize("preset", [PRETRAIN, FEW_SHOT])
def test_pg19_takes_the_place_of_the_deleted_books_alone(preset: str) -> None:
    published, substitute = composed(preset), composed(preset, "variant=together/pg19_books")
    assert substitute.corpus.mixture == published.corpus.mixture
    changed = [name for name, node in published.corpus.sources.items() if substitute.corpus.sources[name] != node]
    assert changed == ["book"]
    assert substitute.corpus.sources.book.name == "emozilla/pg19"
    assert substitute.corpus.sources.book.data_files is None
    assert substitute.corpus.sources.book.filters == published.corpus.sources.book.filters


def test_second_stage_is_five_fifths_on_top_of_the_first() -> None:
    config = composed(FEW_SHOT)
    assert config.about.continues == PRETRAIN
    assert dict(config.corpus.mixture) == {"ni": 0.2, "p3": 0.2, "pile": 0.2, "book": 0.2, "arxiv": 0.2}
    assert (config.model.original_context_length, config.context_length) == (32768, 32768)
    assert config.rope._target_.endswith("Unchanged")
    files = [config.corpus.sources[name].data_files for name in ("ni", "p3")]
    assert files == [f"pretrain/{name}_decontaminated_materialized.jsonl.zst" for name in ("NI", "P3")]


def test_raw_records_change_natural_instructions_alone() -> None:
    file = Path(build_tasks.__file__).parent / "tasks.jsonl.zst"
    published = composed(FEW_SHOT)
    raw = composed(FEW_SHOT, "variant=together/few_shot_from_records", "model=demo", f"corpus.sources.ni.path={file}")
    assert raw.corpus.mixture == published.corpus.mixture
    assert [name for name in raw.corpus.mixture if raw.corpus.sources[name] != published.corpus.sources[name]] == ["ni"]
    assert raw.corpus.sources.ni.max_tokens == raw.packing.max_seqlen == 32768
    definitions = {definition for definition, _ in build_tasks.TASKS.values()}
    texts = list(build(raw.corpus.sources.ni).texts())
    assert sorted(text.split("\n\n")[0] for text in texts) == sorted(definitions), "a task fills less than a row here"
    assert all(text.count("\n\n") == build_tasks.NUM_EXAMPLES for text in texts)


def test_a_document_with_ten_words_of_an_evaluation_is_dropped(tmp_path: Path) -> None:
    """The protocol's second rule; 10 words in a row, and only where the user says against what."""
    question = "who was the man that first walked across the frozen river"
    (tmp_path / "helm.jsonl").write_text(json.dumps({"text": question}) + "\n", encoding="utf-8")
    config = composed(FEW_SHOT, "scale=toy", f"corpus.decontamination.against.path={tmp_path}/helm.jsonl")
    for name in ("pile", "book", "arxiv"):
        decontaminate = build(config.corpus.sources[name]).filters.decontaminate
        assert decontaminate.reason_to_drop("He asked, Who was the man that first walked across the frozen lake?")
        assert not decontaminate.reason_to_drop("the man that first walked across the frozen river")  # nine
    off = composed(FEW_SHOT, "scale=toy", "corpus.decontamination=null")
    assert build(off.corpus.sources.book).filters.decontaminate is None


def rows_of(preset: str, source: str, folder: Path, *words: str) -> tuple[DictConfig, list[Any]]:
    """The configuration, and the first rows, of one source of a preset at toy scale."""
    others = [f"corpus.mixture.{name}=0" for name in composed(preset).corpus.mixture if name != source]
    config = composed(
        preset,
        "scale=toy",
        *others,
        "corpus.validation=null",
        "corpus.sources.documents.path=${bundled:classics/heldout.jsonl.zst}",
        f"cache_dir={folder}",
        *words,
    )
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    assert data.data is not None
    return config, [data.data[i] for i in range(min(len(data.data), 24))]


def tasks_of_pairs() -> dict[str, set[str]]:
    """Input and target as they are written -> the tasks that have this example."""
    packed = (Path(build_tasks.__file__).parent / "tasks.jsonl.zst").read_bytes()
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(packed).decode().splitlines()
    found: dict[str, set[str]] = defaultdict(set)
    for record in map(json.loads, lines):
        found[f"{record['inputs']}\n{record['targets']}"].add(record["task_name"])
    return found


def test_few_shot_rows_are_many_examples_of_one_task(tmp_path: Path) -> None:
    """By the records themselves: what stands whole between two blank lines, between two beginnings of documents."""
    config, rows = rows_of(FEW_SHOT, "ni", tmp_path)
    tokenizer, known = build_tokenizer(config), tasks_of_pairs()
    bos, definitions = tokenizer.bos_token_id, {definition for definition, _ in build_tasks.TASKS.values()}
    num_examples, tasks_of_rows = [], []
    for row in rows:
        assert len(row.input_ids) == 512
        edges = [0, *np.flatnonzero(row.input_ids == bos), len(row.input_ids)]
        in_row = []
        for start, end in pairwise(edges):
            text = tokenizer.decode(row.input_ids[start:end], skip_special_tokens=True)
            whole = [part for part in text.strip("\n").split("\n\n") if part in known]
            tasks = set.intersection(*(known[part] for part in whole)) if whole else {""}
            assert tasks, f"examples of several tasks in one document: {text}"
            in_row.append((len(whole), tasks))
            if start and end > start + 40:
                assert text.strip("\n").split("\n\n")[0] in definitions
        num_examples.append(sum(number for number, _ in in_row))
        tasks_of_rows.append(max(number for number, _ in in_row) / max(num_examples[-1], 1))
    assert min(num_examples) >= 15
    assert np.mean(tasks_of_rows) > 0.9, "most of a row is one document"
    assert np.mean(np.equal(tasks_of_rows, 1.0)) > 0.3


@pytest.mark.parametrize("preset", SCRIPTS)
def test_finetunes_have_the_settings_of_the_script(preset: str) -> None:
    config = composed(preset)
    assert config.about.continues == FEW_SHOT
    assert config.model.source.name_or_path == "togethercomputer/LLaMA-2-7B-32K"
    assert (config.context_length, config.data.tokens_per_step, config.data.micro_batch_size) == (32768, 131_072, 1)
    assert config.data.tokens_per_step // config.packing.max_seqlen == 4
    assert config.data.max_steps == 10
    assert config.optimizer.lr == 2e-5
    assert (list(config.optimizer.betas), config.optimizer.eps, config.optimizer.weight_decay) == (
        [0.9, 0.999],
        1e-6,
        0.01,
    )
    assert (config.lr_schedule.warmup_steps, config.lr_schedule.min_lr_ratio) == (0, 0.0)
    assert config.trainer.gradient_clip_norm == 1.0
    assert (config.seed, config.precision) == (42, "bf16")
    assert kinds(preset)["precision"] == "our choice"
    assert (config.packing._target_, config.packing.document_mask) == (
        "datamodules.packing.concat_chunk.ConcatChunk",
        False,
    )
    file = {"booksum": "booksum", "mqa": "natural_questions_10_200_docs"}[SCRIPTS[preset]]
    ((source, share),) = config.corpus.mixture.items()
    assert (config.corpus.sources[source].rows.data_files, share) == (f"fine-tune/{file}.jsonl.zst", 1.0)


@pytest.mark.parametrize("preset", SCRIPTS)
def test_rate_of_finetunes_falls_in_ten_equal_steps(preset: str) -> None:
    config = composed(preset)
    schedule = build(config.lr_schedule)
    rates = [config.optimizer.lr * schedule.multiplier(step, max_steps=10) for step in range(11)]
    assert rates == pytest.approx([2e-5, 1.8e-5, 1.6e-5, 1.4e-5, 1.2e-5, 1e-5, 8e-6, 6e-6, 4e-6, 2e-6, 0])


@pytest.mark.parametrize("preset", [*SCRIPTS, INSTRUCT])
def test_finetunes_really_decay_the_norms(preset: str) -> None:
    """A step without a gradient leaves nothing but the decay: every weight shrinks by lr x 0.01, norms too."""
    config = composed(preset)
    model = tiny_model("llama").double()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = build(config.optimizer)(model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert sum("norm" in name for name in before) == 5
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (1 - config.optimizer.lr * 0.01), rtol=1e-14, atol=0)


def test_loss_is_on_the_prompt_too(tmp_path: Path) -> None:
    _, rows = rows_of("together_llama2_7b_32k/booksum", "booksum", tmp_path)
    assert len(rows) > 4
    for row in rows:
        np.testing.assert_array_equal(row.labels, row.input_ids)
    _, rows = rows_of("together_llama2_7b_32k/booksum", "booksum", tmp_path, "data.token_policy.loss_on=answers")
    assert np.mean(np.concatenate([row.labels for row in rows]) == IGNORE_INDEX) > 0.5, "as most of it is prompt"


def test_a_record_is_written_as_openchatkit_does(tmp_path: Path) -> None:
    """StreamDataset: the tokenizer's BOS, then a line break and the text, and never EOS."""
    config = composed("together_llama2_7b_32k/booksum", "scale=toy")
    tokenizer = build_tokenizer(config)
    template = build(config.chat_template).bind(tokenizer)
    (rendered,) = template.render([Conversation(text="Once upon a time. The end.")])
    ids = [
        piece.token if piece.token is not None else tokenizer.encode(piece.text, add_special_tokens=False)
        for piece in rendered.pieces
    ]
    assert ids[0] == tokenizer.bos_token_id
    assert rendered.text == "\nOnce upon a time. The end."
    assert all(piece.label for piece in rendered.pieces)
    assert tokenizer.eos_token_id not in ids


def test_instruct_is_half_conversations_and_two_quarters() -> None:
    config = composed(INSTRUCT)
    assert dict(config.corpus.mixture) == {"instruct": 0.5, "booksum": 0.25, "multi_document_qa": 0.25}
    assert config.data.mix_by == "samples"
    assert config.about.continues == FEW_SHOT
    assert config.chat_template.name == "together_inst"
    rows = config.corpus.sources.instruct.rows
    assert (rows.name, rows.data_files) == ("togethercomputer/llama-instruct", "llama-instruct-19K.jsonl")
    # The example job of the README, of another model: 4 epochs of 19K / 0.5 records, 32 a step, 1e-5.
    assert config.data.samples_per_step == 32
    assert config.data.max_steps == 4 * 38_000 // 32
    assert config.optimizer.lr == 1e-5
    own = kinds(INSTRUCT)
    assert {own[key] for key in ("data.samples_per_step", "optimizer.lr", "data.token_policy.loss_on")} == {
        "our choice"
    }
