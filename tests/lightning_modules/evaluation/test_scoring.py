import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.evaluation import scoring
from lightning_modules.evaluation.scoring import needle_recall, perplexity_by_length, score

VOCAB = 97


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,  # the default's losses are all log V, whatever is scored
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(VOCAB, (3, 40), generator=torch.Generator().manual_seed(1))


def reference(model, input_ids: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and correctness from transformers' own full logits, token by token."""
    with torch.no_grad():
        log_probs = model(input_ids).logits.double().log_softmax(-1)
    losses, correct = torch.zeros(len(input_ids), last), torch.zeros(len(input_ids), last, dtype=torch.bool)
    for row in range(len(input_ids)):
        for place in range(last):
            position = input_ids.shape[1] - last + place
            token = input_ids[row, position]
            losses[row, place] = -log_probs[row, position - 1, token]
            correct[row, place] = log_probs[row, position - 1].argmax() == token
    return losses, correct


@pytest.mark.parametrize("last", [1, 7, 39])
@pytest.mark.parametrize("chunk", [5, 1024])
def test_score_matches_full_logits(model, input_ids, last, chunk, monkeypatch):
    monkeypatch.setattr(scoring, "HEAD_CHUNK", chunk)
    input_ids[:, -1] = model(input_ids).logits[:, -2].argmax(-1)  # some tokens are right
    losses, correct = reference(model, input_ids, last)
    with torch.no_grad():
        got = score(model, input_ids, last)
    torch.testing.assert_close(got.token_losses, losses, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.correct, correct)
    assert correct.any()


def test_score_never_holds_logits_of_the_whole_row(model, input_ids, monkeypatch):
    monkeypatch.setattr(scoring, "HEAD_CHUNK", 4)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:-1].numel()))
    with torch.no_grad():
        score(model, input_ids, 6)
    assert sum(sizes) == 3 * 6
    assert max(sizes) == 4


def test_backbone_receives_plain_positions_one_document_and_the_caller_s_kwargs(model, input_ids):
    seen = {}
    model.model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        score(model, input_ids, 3)
        assert torch.equal(seen["document_ids"], torch.zeros(3, 40, dtype=torch.int64))
        assert torch.equal(seen["position_ids"], torch.arange(40).repeat(3, 1))
        assert seen["use_cache"] is False
        seen.clear()
        score(model, input_ids, 3, attention_kwargs=lambda document_ids: {"max_seqlen": document_ids.shape[1]})
    assert seen["max_seqlen"] == 40
    assert "document_ids" not in seen


def test_bf16_autocast_covers_the_backbone_and_spares_the_head(model, input_ids):
    dtypes = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    model.lm_head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):  # a trainer's own changes nothing
            half = score(model, input_ids, 8, dtype=torch.bfloat16)
        full = score(model, input_ids, 8)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    assert half.token_losses.dtype == torch.float32
    assert half.token_losses.mean() == pytest.approx(full.token_losses.mean().item(), rel=0.02)


def test_a_half_precision_backbone_meets_a_full_precision_head(model, input_ids):
    with torch.no_grad():
        full = score(model, input_ids, 8).token_losses
        model.model.to(torch.bfloat16)
        half = score(model, input_ids, 8).token_losses
    assert half.mean() == pytest.approx(full.mean().item(), rel=0.02)


@pytest.mark.parametrize("last", [0, 40])
def test_a_tail_without_a_token_before_it_is_refused(model, input_ids, last):
    with pytest.raises(ValueError, match=f"last={last}"):
        score(model, input_ids, last)


def test_models_that_change_logits_after_the_head_are_refused(model, input_ids):
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping=30\.0"):
        score(model, input_ids, 3)


@pytest.mark.parametrize("batch_tokens", [1, 48, 4096])
def test_perplexity_is_exp_of_the_mean_tail_loss(model, batch_tokens):
    rows = np.random.default_rng(0).integers(0, VOCAB, (5, 32))
    windows = {16: rows[:, -16:], 32: rows}
    got = perplexity_by_length(model, windows, tail_tokens=6, batch_tokens=batch_tokens)
    for length, ids in windows.items():
        losses, _ = reference(model, torch.from_numpy(np.ascontiguousarray(ids)), 6)
        assert got[length] == pytest.approx(math.exp(losses.double().mean()), rel=1e-5)
    assert got[16] != pytest.approx(got[32], rel=1e-3)


def test_batches_hold_at_most_batch_tokens_and_every_row_once():
    rows = np.arange(70).reshape(7, 10)
    for batch_tokens, sizes in {1: [1] * 7, 39: [3, 3, 1], 70: [7]}.items():
        got = list(scoring.batches(rows, batch_tokens, torch.device("cpu")))
        assert [len(batch) for batch in got] == sizes
        np.testing.assert_array_equal(torch.cat(got).numpy(), rows)


class Cell(NamedTuple):
    input_ids: np.ndarray
    answers: np.ndarray


class Grid:
    """Rows whose last two tokens the model itself predicts, or not: recall is known beforehand."""

    lengths, depths = (12, 20), (0.0, 0.5, 1.0)
    right = np.array([[4, 2, 0], [1, 3, 4]])  # of 4 samples

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def rows(self, length, depth):
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(VOCAB, (4, length - 2), generator=generator)
        for _ in range(2):
            ids = torch.cat([ids, self.model(ids).logits[:, -1:].argmax(-1)], 1)
        hits = self.right[self.lengths.index(length), self.depths.index(depth)]
        wrong = torch.arange(4) >= hits
        ids[wrong, -1] = (ids[wrong, -1] + 1) % VOCAB  # the first answer token is still right
        return Cell(ids.numpy(), ids[:, -2:].numpy())


@pytest.mark.parametrize("batch_tokens", [24, 4096])
def test_needle_recall_counts_rows_whose_answer_tokens_are_all_right(model, batch_tokens):
    grid = Grid(model)
    result = needle_recall(model, grid, batch_tokens=batch_tokens)
    np.testing.assert_allclose(result.recall, Grid.right / 4)
    assert result.lengths == (12, 20)
    assert result.depths == (0.0, 0.5, 1.0)
    assert result.mean_recall() == pytest.approx({12: 6 / 12, 20: 8 / 12})
    losses, _ = reference(model, torch.from_numpy(grid.rows(20, 0.5).input_ids), 2)
    assert result.answer_nll[1, 1] == pytest.approx(losses.sum(1).mean().item(), rel=1e-5)


def test_modes_of_all_modules_and_gradients_come_back(model):
    model.train()
    model.model.layers[0].eval()  # frozen by its owner
    before = {name: module.training for name, module in model.named_modules()}
    modes = []
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: modes.append((model.training, output.is_inference()))
    )
    perplexity_by_length(model, {8: np.ones((1, 8), dtype=np.int64)}, tail_tokens=2)
    assert modes == [(False, True)]
    assert {name: module.training for name, module in model.named_modules()} == before
    handle.remove()
    model(torch.ones(1, 8, dtype=torch.int64)).logits.sum().backward()
    with pytest.raises(ValueError, match="last="):
        perplexity_by_length(model, {8: np.ones((1, 8), dtype=np.int64)}, tail_tokens=8)
    assert model.training
