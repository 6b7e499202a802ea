from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from datamodules.step_batches import collate
from lightning_modules.callbacks.sample_answers import AnswerSample, SampleAnswers, answer_samples
from lightning_modules.memory.activation_memory import ActivationMemory
from tests.lightning_modules.letters import as_text, letter_tokenizer
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    TinySource,
    make_module,
    make_row,
    make_trainer,
    step_loader,
)

SAMPLES = [AnswerSample((1, 2, 3, 4), as_text([5, 6])), AnswerSample((9, 8, 7), as_text([6]))]
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
STEPS = [[collate([make_row((16, 16), seed=seed)])] for seed in range(3)]
VALIDATION = [collate([make_row((20, 12), seed=9, masked=0.5)])]


class RandomState(pl.Callback):
    """Draws a number as training may, after every validation, and keeps it."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.drawn.append(float(torch.rand(())))


def callback(**options: Any) -> SampleAnswers:
    return SampleAnswers(letter_tokenizer(), samples=SAMPLES, max_new_tokens=4, **options)


def fit(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    module = make_module(max_steps=len(STEPS), **options)
    logger = TensorBoardLogger(str(folder), name="", version="tensorboard")
    trainer = make_trainer(
        folder, callbacks=callbacks, logger=logger, num_sanity_val_steps=1, val_check_interval=1, log_every_n_steps=1
    )
    trainer.fit(module, step_loader(STEPS), step_loader(VALIDATION))  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 10000.0}, DYNAMIC])
def test_training_is_bit_identical_with_and_without_it(tmp_path: Path, rope: dict[str, Any], recompute: str) -> None:
    source = TinySource(settings={"rope_parameters": rope, "max_position_embeddings": 8, "attention_dropout": 0.3})
    runs = []
    for number, sampling in enumerate(([], [callback()])):
        recorded, random = RecordedGradients(), RandomState()
        torch.manual_seed(0)
        module = fit(
            tmp_path / str(number),
            [*sampling, recorded, random],
            source=source,
            activation_memory=ActivationMemory(recompute=recompute),
        )
        assert module.causal_lm.config._attn_implementation == "lcr_per_document"
        runs.append((recorded.steps, dict(module.causal_lm.state_dict()), random.drawn))
    (gradients, weights, drawn), (others, other_weights, others_drawn) = runs
    assert len(gradients) == len(others) == 3
    for step in range(3):
        assert all(torch.equal(others[step][name], gradient) for name, gradient in gradients[step].items())
    assert all(torch.equal(other_weights[name], weight) for name, weight in weights.items())
    assert drawn == others_drawn
    assert len(drawn) >= 3


def test_answers_stand_in_tensorboard_and_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said: list[tuple[int, list[int]]] = []

    class Greedy(pl.Callback):
        """The same answers by whole forwards of the weights at the time."""

        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            for sample in SAMPLES if not trainer.sanity_checking else ():
                row = list(sample.input_ids)
                for _ in range(4):
                    ids = torch.tensor([row])
                    states = pl_module.causal_lm.model(ids, document_ids=torch.zeros_like(ids), use_cache=False)
                    logits = pl_module.causal_lm.lm_head(states.last_hidden_state)
                    row.append(int(logits[0, -1].argmax()))
                said.append((trainer.global_step, row[len(sample.input_ids) :]))

    with caplog.at_level(logging.INFO, logger="lightning_modules.callbacks.sample_answers"):
        fit(tmp_path, [callback(), Greedy()])
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    texts = {
        (event.step, number): event.tensor_proto.string_val[0].decode()
        for number in (1, 2)
        for event in events.Tensors(f"answers/{number}/text_summary")
    }
    assert sorted(texts) == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    for (step, answer), number in zip(said, (1, 2) * 3, strict=True):
        sample = SAMPLES[number - 1]
        assert texts[step, number] == (
            f"**prompt**\n\n    … {as_text(sample.input_ids)}\n\n**reference**\n\n    {sample.reference}\n\n"
            f"**answer**\n\n    {as_text(answer)}"
        )
        lines = [
            record.getMessage()
            for record in caplog.records
            if f"step {step}, answer {number} of 2" in record.msg % record.args
        ]
        assert len(lines) == 1
        assert f"answer: {as_text(answer)!r}" in lines[0]


def test_samples_are_the_last_answers_of_conversations() -> None:
    no = IGNORE_INDEX
    batch = Batch(
        input_ids=torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 0, 0]]),
        labels=torch.tensor([[no, 2, no, no, no, 6, 7, no], [9, 10, no, 12, no, no, no, no]]),
        document_ids=torch.tensor([[0, 0, 1, 0, 0, 0, 0, 1], [3, 3, 4, 4, 4, 5, PADDING_DOCUMENT, PADDING_DOCUMENT]]),
        position_ids=torch.zeros(2, 8, dtype=torch.long),
    )
    found = list(answer_samples(batch, letter_tokenizer()))
    # document 1 and 5 have no label, document 3 nothing in front of its first
    assert found == [
        AnswerSample((1, 2, 4, 5), as_text([6, 7])),
        AnswerSample((11,), as_text([12])),
    ]


def test_samples_are_taken_from_what_is_validated(tmp_path: Path) -> None:
    sampling = SampleAnswers(letter_tokenizer(), num_samples=1, max_new_tokens=2)
    fit(tmp_path, [sampling])
    assert sampling.samples == list(answer_samples(VALIDATION[0], letter_tokenizer()))[:1]
    assert len(sampling.samples) == 1


def test_control_token_behind_the_reference_ends_an_answer() -> None:
    tokenizer: Any = letter_tokenizer(eos=7)
    batch = Batch(
        input_ids=torch.tensor([[1, 2, 3, 7]]),
        labels=torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 3, 7]]),
        document_ids=torch.zeros(1, 4, dtype=torch.long),
        position_ids=torch.arange(4)[None],
    )
    assert list(answer_samples(batch, tokenizer)) == [AnswerSample((1, 2), as_text([3]), (7,))]


def test_answers_end_with_eos_and_with_their_own_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def answer(**options: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning_modules.callbacks.sample_answers"):
            fit(tmp_path, [SampleAnswers(max_new_tokens=6, **options)])
        (found,) = re.findall(r"step 1, answer 1(?s:.*?)answer: '(.*)'", "\n".join(caplog.messages))
        return found

    (sample, *_) = SAMPLES
    whole = answer(tokenizer=letter_tokenizer(), samples=[sample])
    end = next(k for k in range(1, 6) if whole[k] not in whole[:k])
    token = ord(whole[end]) - ord(as_text([0]))
    assert answer(tokenizer=letter_tokenizer(), samples=[sample._replace(stop_ids=(token,))]) == whole[:end]
    assert answer(tokenizer=letter_tokenizer(eos=token), samples=[sample]) == whole[:end]


def test_sharded_model_is_skipped_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    from types import SimpleNamespace

    from lightning_modules.strategies.sharding import ShardedStrategy

    strategy = ShardedStrategy(data_parallel_size=1, process_group_backend="gloo")
    trainer: Any = SimpleNamespace(sanity_checking=False, is_global_zero=True, strategy=strategy)
    sampling = callback()
    with caplog.at_level(logging.INFO, logger="lightning_modules.callbacks.sample_answers"):
        for _ in range(2):
            sampling.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "no answers are sampled: each rank holds a part of the weights only"
    ]


def test_other_ranks_do_nothing() -> None:
    from types import SimpleNamespace

    sampling = SampleAnswers(letter_tokenizer())
    trainer: Any = SimpleNamespace(sanity_checking=False, is_global_zero=False)
    sampling.on_validation_batch_end(trainer, None, None, VALIDATION[0], 0)  # type: ignore[arg-type]
    sampling.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert sampling.samples == []
