"""The loss through the normalised head and two steps of training, against logits held whole and autograd alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import PretrainedConfig, PreTrainedModel

from datamodules.batch import IGNORE_INDEX, Batch, num_targets
from datamodules.packed_dataset import Sequence
from datamodules.step_batches import collate
from lightning_modules.continued_pretraining import ContinuedPretrainingModule
from lightning_modules.models.causal_lm_with_loss import CausalLMWithLoss
from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.optim.schedules import CosineWithWarmup
from lightning_modules.strategies.sharding import shard
from tests.lightning_modules.models.index.tiny_index import reference_backbone, reference_logits, tiny_index
from tests.lightning_modules.tiny_training import (
    FIRST_ROWS,
    MAX_SEQLEN,
    make_row,
    make_trainer,
    step_loader,
    uneven_rows,
    whole,
)

ATTENTION = "lcr_per_document"


class Reference(nn.Module):
    """transformers' own Llama backbone and a weight; one document at a time, whole logits, plain autograd."""

    def __init__(self, model: IndexForCausalLM) -> None:
        super().__init__()
        state = model.state_dict()
        self.model = reference_backbone(state)
        self.lm_head = nn.Module()
        self.lm_head.weight = nn.Parameter(state["lm_head.weight"].clone())

    def forward(self, rows: list[Sequence]) -> torch.Tensor:
        """Losses summed over the targets of all documents."""
        total = torch.zeros(())
        for row in rows:
            for document in sorted(set(row.document_ids.tolist())):
                mask = torch.from_numpy(row.document_ids == document)
                ids, labels = (torch.from_numpy(values)[mask] for values in (row.input_ids, row.labels))
                hidden = self.model(ids[None]).last_hidden_state[0, :-1]
                weight = self.lm_head.weight
                assert isinstance(weight, torch.Tensor)
                logits = reference_logits(hidden, weight)
                total = total + F.cross_entropy(logits, labels[1:], ignore_index=IGNORE_INDEX, reduction="sum")
        return total


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=2e-6 * scale, msg=lambda m, n=name: n + m)


@pytest.fixture(scope="module")
def expected() -> tuple[float, dict[str, torch.Tensor]]:
    reference = Reference(tiny_index())
    loss = reference(uneven_rows())
    loss.backward()
    return float(loss.detach()), gradients(reference)


@pytest.mark.parametrize("chunk_size", [7, 1024])
def test_loss_and_gradients_are_those_of_whole_logits(
    chunk_size: int, expected: tuple[float, dict[str, torch.Tensor]]
) -> None:
    model = CausalLMWithLoss(tiny_index(attention=ATTENTION), loss_chunk_size=chunk_size)
    loss = model(collate(uneven_rows())).loss_sum
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected[0], rel=1e-6)
    assert_same(gradients(model.causal_lm), expected[1])


def test_the_gradient_of_a_row_is_orthogonal_to_it() -> None:
    model = tiny_index(attention=ATTENTION)
    CausalLMWithLoss(model)(collate(uneven_rows())).loss_sum.backward()
    weight, gradient = model.lm_head.weight.detach(), whole(model.lm_head.weight.grad)
    cosines = F.cosine_similarity(weight, gradient, dim=-1)
    assert gradient.norm(dim=-1).min() > 1e-3
    assert cosines.abs().max() < 1e-4


def test_a_frozen_head_gets_no_gradient() -> None:
    model = tiny_index(attention=ATTENTION)
    model.lm_head.requires_grad_(False)
    CausalLMWithLoss(model)(collate(uneven_rows())).loss_sum.backward()
    assert model.lm_head.weight.grad is None
    assert whole(model.model.embed_tokens.weight.grad).abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for the older name
def test_an_adapter_on_the_head_is_refused() -> None:
    adapted = get_peft_model(tiny_index(attention=ATTENTION), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="take lm_head out of its targets"):
        CausalLMWithLoss(adapted.get_base_model())(collate(uneven_rows()))  # type: ignore[arg-type]


class IndexSource:
    def config(self) -> PretrainedConfig:
        return tiny_index().config

    def load(self) -> PreTrainedModel:
        return tiny_index(attention=ATTENTION)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_two_steps_of_continued_pretraining_match_plain_training(tmp_path: Path) -> None:
    steps = [uneven_rows(), [make_row(lengths, seed=9 + i) for i, lengths in enumerate(FIRST_ROWS)]]
    micro_batches: list[list[Batch]] = [[collate(rows[:3]), collate(rows[3:])] for rows in steps]
    module = ContinuedPretrainingModule(
        source=IndexSource(),
        optimizer=sgd,
        lr_schedule=CosineWithWarmup(min_lr_ratio=1.0),
        max_steps=2,
        max_seqlen=MAX_SEQLEN,
        gradient_clip_norm=None,
    )
    make_trainer(tmp_path).fit(module, step_loader(micro_batches))

    reference = Reference(tiny_index())
    optimizer = sgd(reference)
    for rows in steps:
        (reference(rows) / sum(num_targets(collate([row])) for row in rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = dict(module.causal_lm.named_parameters())
    start = dict(tiny_index().named_parameters())
    for name, weight in reference.named_parameters():
        change = float((weight - start[name]).detach().abs().max())
        assert change > 0
        torch.testing.assert_close(trained[name], weight, rtol=0, atol=1e-4 * change, msg=lambda m, n=name: n + m)


@pytest.fixture
def one_rank() -> Iterator[None]:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_sharded_head_is_gathered_before_it_is_normalised(
    expected: tuple[float, dict[str, torch.Tensor]],
) -> None:
    model = CausalLMWithLoss(tiny_index(attention=ATTENTION))
    shard(model, mesh=init_device_mesh("cpu", (1,)), compute_dtype=torch.float32)
    model(collate(uneven_rows())).loss_sum.backward()
    assert hasattr(model.causal_lm.get_output_embeddings().weight, "full_tensor")  # type: ignore[union-attr]
    assert_same(gradients(model.causal_lm), expected[1])
