from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_modules.rope.at_length import rope_at_length, same_rotary_tables
from lightning_modules.rope.closed_form import closed_form_inv_freq
from lightning_modules.rope.contract import rotary_modules
from lightning_modules.rope.methods import DynamicNTK, LongRoPE
from lightning_modules.rope.patch import apply_rope_method
from tests.lightning_modules.tiny_models import tiny_model

LONG = (1.0, 1.5, 2, 2.5, 3, 3, 3.5, 4)


def model_with(method: Any) -> Any:
    model = tiny_model("llama").eval()
    apply_rope_method(model, method, 256)
    return model


@torch.no_grad()
def read(model: Any, num_tokens: int) -> None:
    model(torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False)


def attributes(module: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


@pytest.mark.parametrize("method", [DynamicNTK(), LongRoPE(long_factor=LONG)])
@pytest.mark.parametrize("met_before", [None, 32, 250])
@pytest.mark.parametrize("length", [40, 128, 192])
def test_table_is_the_closed_form_of_the_length_whatever_was_met_before(
    method: Any, met_before: int | None, length: int
) -> None:
    model = model_with(method)
    if met_before is not None:
        read(model, met_before)
    (module,) = rotary_modules(model).values()
    before, buffers = attributes(module), {name: b.clone() for name, b in module.named_buffers()}
    parameters = model.config.rope_parameters
    expected = closed_form_inv_freq(
        parameters, 16, seq_len=length, max_position_embeddings=model.config.max_position_embeddings
    )
    with rope_at_length(model, length) as inside:
        for num_tokens in (1, 250, 32):  # nothing that is read moves it
            read(model, num_tokens)
            torch.testing.assert_close(module.inv_freq, expected, rtol=1e-6, atol=0)
    with rope_at_length(model, length) as again:
        assert again == inside
    assert attributes(module) == before
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())


def test_lengths_are_rounded_up_so_that_a_few_more_tokens_keep_the_table() -> None:
    model = model_with(DynamicNTK())
    tables = []
    for length in (1000, 1010, 1024, 1025):
        with rope_at_length(model, length) as table:
            tables.append(table)
    assert tables[0] == tables[1] == tables[2] != tables[3]


def test_attributes_that_a_forward_adds_are_taken_away() -> None:
    model = model_with(LongRoPE(long_factor=LONG))
    (module,) = rotary_modules(model).values()
    before = {*vars(module)}
    with same_rotary_tables(model):
        read(model, 250)
        assert {*vars(module)} - before == {"long_inv_freq"}
    assert {*vars(module)} == before


def test_static_rope_is_left_alone() -> None:
    model = tiny_model("llama")
    (module,) = rotary_modules(model).values()
    with rope_at_length(model, 10_000) as table:
        assert module.rope_type == "default"
        assert [*table[1:]] == [*_values(module.inv_freq), *_values(module.original_inv_freq)]


def _values(buffer: object) -> list[float]:
    assert isinstance(buffer, torch.Tensor)
    return buffer.tolist()
