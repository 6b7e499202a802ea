from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from datamodules.batch import IGNORE_INDEX, PADDING_DOCUMENT, Batch
from datamodules.step_batches import collate
from lightning_modules.attention.registry import per_document_attention_forward
from lightning_modules.base import CausalLMModule
from lightning_modules.callbacks.rope_patching import RotaryPatching
from lightning_modules.callbacks.start_gate import StartGate, TrainingRefused, probe_batch
from lightning_modules.memory.activation_memory import ActivationMemory
from lightning_modules.rope.methods import AdjustedBase
from tests.lightning_modules.tiny_training import (
    RecordedGradients,
    TinySource,
    make_module,
    make_row,
    make_trainer,
    step_loader,
)

PACKED = [collate([make_row((20, 12), seed=0), make_row((8, 8, 16), seed=1)])]
WHOLE_ROWS = [collate([make_row((32,), seed=0), make_row((32,), seed=1)])]


def plain_causal_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """What a user registers who forgets the documents."""
    dropout = {"dropout_p": options.get("dropout", 0.0)}
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, **dropout)
    return output.transpose(1, 2), None


def two_sided_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    output = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    return output.transpose(1, 2), None


@pytest.fixture(autouse=True)
def _leaky() -> Iterator[None]:
    AttentionInterface.register("leaky", plain_causal_attention)
    AttentionInterface.register("two_sided", two_sided_attention)
    yield
    for name in ("leaky", "two_sided"):
        AttentionInterface._global_mapping.pop(name)


class Fault(pl.Callback):
    """Does something to the model when training starts, after RoPE was patched and asserted."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.act(pl_module.causal_lm)


def fit(*callbacks: pl.Callback, batches: list[Batch] = PACKED, steps: int = 1, **options: Any) -> CausalLMModule:
    module = make_module(max_steps=steps, **options)
    make_trainer(callbacks=[*callbacks]).fit(module, step_loader([batches] * steps))
    return module


def start_weights(**options: Any) -> dict[str, torch.Tensor]:
    return dict(TinySource(**options).load().named_parameters())


def test_a_mask_that_leaks_is_refused_before_a_weight_changes():
    module = make_module(source=TinySource(attention="leaky"))
    with pytest.raises(
        TrainingRefused, match=r"^training is refused before its first step: documents of a row see"
    ) as e:
        make_trainer(callbacks=[StartGate(document_mask=True)]).fit(module, step_loader([PACKED]))
    assert str(e.value).count("\n") == 0
    assert "attention=leaky; set attention=per_document" in str(e.value)
    for name, weight in start_weights().items():
        assert torch.equal(module.causal_lm.get_parameter(name), weight)


def test_dropout_does_not_hide_a_leak():
    source = TinySource(attention="leaky", settings={"attention_dropout": 0.3})
    with pytest.raises(TrainingRefused, match="documents of a row see one another"):
        fit(StartGate(document_mask=True), source=source)


def test_without_masked_documents_only_causality_is_asked_for():
    gate = StartGate(document_mask=False)
    fit(gate, batches=WHOLE_ROWS, source=TinySource(attention="leaky"))
    with pytest.raises(TrainingRefused, match="tokens see their future"):
        fit(gate, batches=WHOLE_ROWS, source=TinySource(attention="two_sided"))


@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_leak_is_found_where_the_first_batch_has_no_row_of_two_documents(num_rows: int):
    batch = collate([make_row((32,), seed=seed) for seed in range(num_rows)])
    with pytest.raises(TrainingRefused, match="documents of a row see one another"):
        fit(StartGate(document_mask=True), batches=[batch], source=TinySource(attention="leaky"))
    fit(StartGate(document_mask=True), batches=[batch])


def test_joined_rows_are_two_documents_that_begin_where_rows_do():
    batch = collate([make_row((32,), seed=0), make_row((32,), seed=1)])
    joined = probe_batch(batch, join=True)
    assert joined["input_ids"].tolist() == [batch["input_ids"].flatten().tolist()]
    assert joined["position_ids"].tolist() == [[*range(32)] * 2]
    assert joined["document_ids"].tolist() == [[0] * 32 + [1] * 32]
    assert batch["document_ids"].eq(0).all()


def test_the_micro_batch_with_documents_is_the_one_that_is_looked_at():
    with pytest.raises(TrainingRefused, match="documents of a row see one another"):
        fit(StartGate(document_mask=True), batches=[*WHOLE_ROWS, *PACKED], source=TinySource(attention="leaky"))


def second_theta(model: Any) -> None:
    model.config.rope_theta = 5e5


def float_length(model: Any) -> None:
    vars(model.config)["max_position_embeddings"] = 64.0


def bf16_tables(model: Any) -> None:
    model.model.rotary_emb.to(torch.bfloat16)


def another_config(model: Any) -> None:
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 5e5}


def stale_cache(model: Any) -> None:
    """The base changes and the tables are kept, as a cache keyed without theta keeps them."""
    old = model.model.rotary_emb.inv_freq
    another_config(model)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.model.rotary_emb.inv_freq = old


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (second_theta, r"second theta, rope_theta=500000, beside the 10000 of rope_parameters"),
        (float_length, r"max_position_embeddings is 64\.0 and not a positive integer"),
        (bf16_tables, r"model\.rotary_emb\.inv_freq is bfloat16 and not float32"),
        (another_config, r"inv_freq is not that of config\.rope_parameters=.*500000.*relative difference 3\.\de\+01"),
        (stale_cache, r"inv_freq is not that of config\.rope_parameters=.*500000"),
    ],
)
def test_rope_that_is_not_what_the_config_says_is_refused(act: Any, sentence: str):
    with pytest.raises(TrainingRefused, match=f"^training is refused before its first step: .*{sentence}") as error:
        fit(Fault(act), StartGate(document_mask=True))
    assert str(error.value).count("\n") == 0


class RandomState(pl.Callback):
    """The state of the generator right before the gate and right after it."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.states.append(torch.get_rng_state())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        # Reads up to 32 tokens here, so that its tables are rewritten by the longest position of every forward.
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_training_is_bit_identical_with_and_without_it(rope: dict[str, Any], recompute: str):
    settings = {"rope_parameters": rope, "max_position_embeddings": 8, "attention_dropout": 0.3}
    source = TinySource(settings=settings)
    gradients, weights = [], []
    for gate in ([], [StartGate(document_mask=True)]):
        recorded, states = RecordedGradients(), RandomState()
        module = fit(
            *(states, *gate, states, recorded),
            # The row with most documents, which is looked at, reaches further than the one that is trained first.
            batches=[collate([make_row((16, 16), seed=4)]), collate([make_row((2, 2, 28), seed=5)])],
            steps=3,
            source=source,
            activation_memory=ActivationMemory(recompute=recompute),
        )
        assert torch.equal(states.states[0], states.states[1])
        gradients.append(recorded.steps)
        weights.append(dict(module.causal_lm.named_parameters()))
    without, with_gate = gradients
    assert len(without) == len(with_gate) == 3
    for step in range(3):
        for name, gradient in without[step].items():
            assert torch.equal(with_gate[step][name], gradient)
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_it_looks_again_at_every_fit_and_on_resumption(tmp_path: Path):
    module, trainer = make_module(max_steps=1), make_trainer(tmp_path, callbacks=[StartGate(document_mask=True)])
    trainer.fit(module, step_loader([PACKED] * 2))
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    resumed = make_trainer(tmp_path, max_epochs=2, callbacks=[StartGate(document_mask=True)])
    with pytest.raises(TrainingRefused, match="documents of a row see one another"):
        resumed.fit(
            make_module(source=TinySource(attention="leaky"), max_steps=2),
            step_loader([PACKED] * 2),
            ckpt_path=tmp_path / "one.ckpt",
            weights_only=True,
        )

    module = make_module(max_steps=2)
    gate = StartGate(document_mask=True)
    make_trainer(callbacks=[gate]).fit(module, step_loader([PACKED]))
    module.causal_lm.set_attn_implementation("leaky")
    with pytest.raises(TrainingRefused, match="documents of a row see one another"):
        make_trainer(callbacks=[gate]).fit(module, step_loader([PACKED]))


def test_it_passes_what_rope_patching_made_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        fit(RotaryPatching(AdjustedBase(5e5), 128), StartGate(document_mask=True), steps=2)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("start gate")]
    assert len(lines) == 1
    assert "RoPE is what the config says; no document sees another, no token its future" in lines[0]


def test_a_model_that_attends_to_nothing_is_not_refused_but_said_to_be_blind(caplog: pytest.LogCaptureFixture):
    def silent(model: Any) -> None:
        model.lm_head.weight.data.zero_()

    with caplog.at_level("INFO"):
        fit(Fault(silent), StartGate(document_mask=True))
    assert "changed tokens move nothing" in caplog.text


def test_the_probe_takes_real_tokens_around_edges_and_gives_prompts_a_target():
    row = make_row((700, 300), seed=0, masked=1.0)
    batch = probe_batch(collate([row]))
    assert batch["input_ids"].shape == (1, 256)
    assert batch["input_ids"][0].tolist() == row.input_ids[572:828].tolist()
    assert batch["labels"].equal(batch["input_ids"])
    assert batch["position_ids"][0].tolist() == [*range(572, 700), *range(128)]
    assert batch["document_ids"][0].tolist() == [0] * 128 + [1] * 128


def test_padding_has_no_target():
    batch = collate([make_row((20, 12), seed=0)])
    batch["document_ids"][0, 20:] = PADDING_DOCUMENT
    assert probe_batch(batch)["labels"][0].eq(IGNORE_INDEX).tolist() == [False] * 20 + [True] * 12


def test_a_leak_in_bf16_is_found_too():
    def leaky_late(*args: Any, **options: Any) -> Any:
        """Clean but for what one document tells the next at their edge."""
        output, _ = per_document_attention_forward(*args, **options)
        ids = options["document_layout"].document_ids
        edge = (ids[:, 1:] != ids[:, :-1]).nonzero()[0]
        output = output.clone()
        output[edge[0], edge[1] + 1] += 0.1 * output[edge[0], edge[1]]
        return output, None

    AttentionInterface.register("leaky", leaky_late)
    module = make_module(source=TinySource(attention="leaky"))
    with pytest.raises(TrainingRefused, match="documents of a row see one another"):
        make_trainer(callbacks=[StartGate(document_mask=True)], precision="bf16-mixed").fit(
            module, step_loader([PACKED])
        )
