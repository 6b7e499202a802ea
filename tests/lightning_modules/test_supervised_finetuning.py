from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from lightning_modules.continued_pretraining import ContinuedPretrainingModule
from lightning_modules.optim.schedules import CosineWithWarmup
from lightning_modules.supervised_finetuning import SupervisedFinetuningModule
from tests.lightning_modules.largest_tensor import LargestTensor
from tests.lightning_modules.tiny_models import tiny_model
from tests.lightning_modules.tiny_training import VOCAB_SIZE, TinySource, make_trainer, sgd, step_loader

MAX_SEQLEN = 1024


def conversations(lengths: tuple[int, ...], *, seed: int, weights: bool = False, num_tokens: int = MAX_SEQLEN) -> Batch:
    """One row of conversations whose last quarter is the answer, and padding."""
    rng = np.random.default_rng(seed)
    documents = np.concatenate([np.repeat(np.arange(len(lengths)), lengths)])
    padding = num_tokens - len(documents)
    positions = np.concatenate([np.arange(n) for n in lengths])
    ids = rng.integers(0, VOCAB_SIZE, len(documents))
    answers = np.concatenate([np.arange(n) >= n - n // 4 for n in lengths])

    def padded(values: Any, fill: float) -> torch.Tensor:
        return torch.from_numpy(np.pad(values, (0, padding), constant_values=fill))[None]

    batch = Batch(
        input_ids=padded(ids, 0),
        labels=padded(np.where(answers, ids, IGNORE_INDEX), IGNORE_INDEX),
        position_ids=padded(positions, 0),
        document_ids=padded(documents, PADDING_DOCUMENT),
    )
    if weights:
        each = rng.random(len(lengths)).astype(np.float32)
        batch["loss_weights"] = padded(each[documents], 0)
    return batch


def make(folder: Path, stage: type = SupervisedFinetuningModule, **options: Any) -> tuple[Any, Any]:
    module = stage(
        source=TinySource(),
        optimizer=sgd,
        lr_schedule=CosineWithWarmup(),
        max_steps=1,
        max_seqlen=MAX_SEQLEN,
        log_every_n_steps=1,
        loss_chunk_size=64,
        **options,
    )
    return module, make_trainer(folder, logger=CSVLogger(folder, flush_logs_every_n_steps=1), log_every_n_steps=1)


def logged(trainer: Any) -> dict[str, float]:
    (file,) = Path(trainer.logger.root_dir).rglob("metrics.csv")
    with file.open() as rows:
        return {key: float(value) for row in csv.DictReader(rows) for key, value in row.items() if value}


def each_conversation(batch: Batch) -> list[tuple[int, torch.Tensor, torch.Tensor, float]]:
    """(length, losses, correct, weight) of the label tokens of each conversation, read alone by a plain model."""
    model = tiny_model("llama").eval()
    found = []
    for document in batch["document_ids"].unique().tolist():
        if document == PADDING_DOCUMENT:
            continue
        places = (batch["document_ids"][0] == document).nonzero().flatten()
        ids, labels = batch["input_ids"][0, places], batch["labels"][0, places]
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        scored = labels[1:] != IGNORE_INDEX
        losses = F.cross_entropy(logits[scored], labels[1:][scored], reduction="none")
        weight = float(batch["loss_weights"][0, places[0]]) if "loss_weights" in batch else 1.0
        found.append((len(places), losses, logits[scored].argmax(-1) == labels[1:][scored], weight))
    return found


def test_validation_scores_answers_by_the_length_of_their_conversation(tmp_path: Path) -> None:
    batches = [conversations((700, 200), seed=1), conversations((40, 30, 600), seed=2)]
    module, trainer = make(tmp_path)
    trainer.validate(module, step_loader(batches), verbose=False)  # type: ignore[arg-type]
    alone = [conversation for batch in batches for conversation in each_conversation(batch)]
    groups = {
        "": alone,
        "_of_length/00001-00256": [one for one in alone if one[0] <= 256],
        "_of_length/00513-01024": [one for one in alone if one[0] > 512],
    }
    expected = {}
    for name, members in groups.items():
        losses, correct = torch.cat([one[1] for one in members]), torch.cat([one[2] for one in members])
        expected[f"val/loss{name}"] = float(losses.mean())
        expected[f"val/accuracy{name}"] = float(correct.float().mean())
    found = {key: value for key, value in logged(trainer).items() if key.startswith("val/")}
    assert found == pytest.approx(expected, rel=1e-5)  # none of 257-512 tokens: absent, not NaN


@pytest.mark.parametrize("weights", [False, True])
def test_training_logs_the_loss_of_labels_and_the_weighted_objective(tmp_path: Path, weights: bool) -> None:
    step = [conversations((700, 200), seed=1, weights=weights), conversations((40, 30), seed=2, weights=weights)]
    module, trainer = make(tmp_path)
    trainer.fit(module, step_loader([step]))
    alone = [conversation for batch in step for conversation in each_conversation(batch)]
    found = logged(trainer)
    assert found["train/loss"] == pytest.approx(float(torch.cat([one[1] for one in alone]).mean()), rel=1e-5)
    assert found["train/label_tokens"] == sum(len(one[1]) for one in alone)
    if weights:
        weighted = sum(float(losses.sum()) * weight for _, losses, _, weight in alone)
        total = sum(len(losses) * weight for _, losses, _, weight in alone)
        assert found["train/objective"] == pytest.approx(weighted / total, rel=1e-5)
        assert found["train/objective"] != pytest.approx(found["train/loss"], rel=1e-3)
    else:
        assert "train/objective" not in found


def test_stages_train_alike(tmp_path: Path) -> None:
    step = [conversations((700, 200), seed=1, weights=True)]
    weights = []
    for stage in (ContinuedPretrainingModule, SupervisedFinetuningModule):
        module, trainer = make(tmp_path, stage)
        trainer.fit(module, step_loader([step]))
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_validation_holds_no_logits_of_a_whole_row(tmp_path: Path) -> None:
    module, trainer = make(tmp_path)
    with LargestTensor() as seen:
        trainer.validate(module, step_loader([conversations((1000,), seed=1)]), verbose=False)  # type: ignore[arg-type]
    assert seen.numel <= 1024 * 192  # gate and up projections of the MLP
    assert module.val_loss.update_called is False  # forgotten for the next validation
