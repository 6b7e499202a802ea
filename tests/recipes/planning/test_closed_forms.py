"""Sizes, FLOPs and limits of Llama-3-8B against figures that were worked out by hand from its config.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from recipes.planning import flops
from recipes.planning.activations import Widths
from recipes.planning.dimensions import Dimensions, dimensions_of
from recipes.planning.fitting import fastest, longest_rows, need
from recipes.planning.hardware import read_hardware
from recipes.planning.job import Adapter, Job, MemoryOption
from recipes.planning.known_models import (
    INDEX_1P9B,
    LLAMA3_8B,
    QWEN2_7B,
    QWEN2_72B,
    QWEN2P5_0P5B,
    SKYWORK_13B,
    SMOLLM2_135M,
    known_dimensions,
)
from recipes.planning.memory import GRADIENTS, LORA, OPTIMIZER, WEIGHTS, fullest, held_bytes, host_bytes
from recipes.planning.plan import choices
from recipes.planning.reading import memory_options
from recipes.planning.speed import step_seconds

GIB, KIB = 2**30, 2**10
ALL_LINEAR = Adapter(rank=16, targets=tuple(LLAMA3_8B.linears))
LORA_JOB = Job(model=LLAMA3_8B, row_tokens=131072, bf16_weights=True, adapter=ALL_LINEAR)
RECOMPUTED = replace(LORA_JOB, memory=MemoryOption(recompute="full"))
H200 = read_hardware("h200_141gb")


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (LLAMA3_8B, 8_030_261_248),
        (QWEN2_7B, 7_615_616_512),
        (QWEN2_72B, 72_706_203_648),
        (QWEN2P5_0P5B, 494_032_768),
        (SMOLLM2_135M, 134_515_008),
    ],
)
def test_parameters_are_those_of_the_hub_s_weights(model: Dimensions, parameters: int) -> None:
    """As the files on the hub count them: total_size of their index, by the bytes of a number."""
    assert model.num_parameters == parameters


def test_sizes_of_the_papers() -> None:
    assert INDEX_1P9B.num_parameters - 2 * INDEX_1P9B.embedding == pytest.approx(1.9e9, rel=0.01)  # "non-embedding"
    assert SKYWORK_13B.num_parameters == pytest.approx(13.8e9, rel=0.01)
    assert LLAMA3_8B.num_matmul == pytest.approx(7.505e9, rel=1e-3)


def test_weights_and_adapter_of_an_8b_llama() -> None:
    causes = fullest(LORA_JOB).bytes_by_cause
    assert causes[WEIGHTS] / GIB == pytest.approx(14.96, abs=0.005)
    assert causes[LORA] / GIB == pytest.approx(0.63, abs=0.006)  # weights, gradients and moments, all in fp32
    assert causes[OPTIMIZER] == causes[GRADIENTS] == 0


def test_full_training_holds_sixteen_bytes_a_parameter_and_autocast_two_of_the_layers() -> None:
    job = Job(model=LLAMA3_8B, row_tokens=8192, micro_batches=2, memory=MemoryOption(recompute="full"))
    causes = fullest(job).bytes_by_cause
    assert sum(causes[name] for name in (WEIGHTS, GRADIENTS, OPTIMIZER)) == 16 * LLAMA3_8B.num_parameters


def test_checkpoints_take_256_kib_a_token_and_attention_260_more() -> None:
    job, kept = RECOMPUTED, replace(RECOMPUTED, memory=MemoryOption(recompute="keep_attention"))
    rest = job.tokens * job.widths.last
    assert (held_bytes(job) - rest) / job.tokens / KIB == 256
    assert (held_bytes(kept) - held_bytes(job)) / job.tokens / KIB == 260
    offloaded = replace(job, memory=MemoryOption(recompute="full", offload_to_host=True, keep_on_device=2))
    assert host_bytes(offloaded) / job.tokens / KIB == 30 * 8
    assert (held_bytes(offloaded) - rest) / job.tokens / KIB == 2 * 8


def test_a_layer_that_trains_in_fp32_holds_what_its_operations_save() -> None:
    """The closed form that `tests/benchmarks/test_activation_memory.py` measures."""
    model = Dimensions(
        num_layers=2, hidden_size=64, intermediate_size=224, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=256
    )
    widths = Widths(model=model, residual=4, compute=4)
    assert widths.layer == 4 * (8 * 64 + 2 * 32 + 4 * 224 + 2 + 4)
    assert widths.tiled_layer == widths.layer - 4 * 4 * 224


@pytest.mark.parametrize(
    ("length", "full", "lora"), [(8192, 51.5, 36.7), (32768, 70.8, 56.0), (131072, 148, 133), (524288, 457, 443)]
)
def test_model_flops_of_a_token(length: int, full: float, lora: float) -> None:
    seen = flops.pairs([length])
    whole = flops.model_flops(LLAMA3_8B, tokens=length, seen=seen) / length / 1e9
    adapters = ALL_LINEAR.num_weights(LLAMA3_8B)
    assert whole == pytest.approx(full, rel=0.005)
    assert flops.model_flops(
        LLAMA3_8B, tokens=length, seen=seen, adapter_weights=adapters
    ) / length / 1e9 == pytest.approx(lora, rel=0.005)


def test_the_longest_rows_fit_and_longer_ones_do_not() -> None:
    longest = longest_rows(RECOMPUTED, H200)
    assert need(replace(RECOMPUTED, row_tokens=longest), H200).fits
    assert not need(replace(RECOMPUTED, row_tokens=longest + 1024), H200).fits
    assert 200_000 < longest < 271_000  # norms of this code keep fp32 copies, which the 205 KiB a token do not count


def test_fsdp_shards_weights_and_states_and_gradients_unless_they_are_reduced_once_a_step() -> None:
    one = Job(model=LLAMA3_8B, row_tokens=8192, ranks=8, strategy="fsdp", memory=MemoryOption(recompute="full"))
    causes = fullest(one).bytes_by_cause
    assert causes[WEIGHTS] == causes[OPTIMIZER] / 2 == 4 * LLAMA3_8B.num_parameters / 8
    assert causes[GRADIENTS] <= 4 * LLAMA3_8B.num_parameters / 8 + 4 * LLAMA3_8B.embedding
    once = fullest(replace(one, micro_batches=4, reduces_always=False)).bytes_by_cause
    assert once[GRADIENTS] == 4 * LLAMA3_8B.num_parameters
    always = fullest(replace(one, micro_batches=4)).bytes_by_cause
    assert always[GRADIENTS] <= 4 * LLAMA3_8B.num_parameters / 8 + 4 * LLAMA3_8B.embedding


def test_a_step_takes_the_time_of_its_roofs_over_what_is_reached() -> None:
    """Products and attention at full rate, without traffic and states: `benchmarks.accounting` by hand."""
    perfect = replace(
        H200,
        matmul_tflops=790.0,
        attention_forward_tflops=600.0,
        attention_backward_tflops=520.0,
        matmul_reached=(0.5, 1.0),
        attention_reached=(0.5, 1.0),
        memory_gb_per_s=1e12,
    )
    seconds = step_seconds(RECOMPUTED, perfect, seen=flops.pairs([131072]))
    assert seconds is not None
    assert 131072 / seconds.least == pytest.approx(2979, rel=0.01)
    assert seconds.most == pytest.approx(2 * seconds.least, rel=0.001)


def test_recommended_options_fit_with_a_margin_and_are_the_fastest_that_do() -> None:
    found = choices(LORA_JOB, H200, memory_options(), rows_per_rank=2)
    best = fastest(found)
    assert best is not None
    assert best.need.device <= 0.92 * 139
    assert best.seconds is not None
    better = [c for c in found if c.seconds and c.seconds.most < 0.97 * best.seconds.most]
    assert all(c.need.device > 0.92 * 139 or c.need.host_short for c in better)
    assert fastest([c for c in found if not c.need.fits]) is None
    tight = replace(H200, memory_gib=best.need.device / 0.95)  # it fits, with half of the margin
    other = fastest(choices(LORA_JOB, tight, memory_options(), rows_per_rank=2))
    assert other is not None
    assert other.need.device < best.need.device


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"vocab_size": "many"}, {"hidden_size": None}])
def test_sizes_that_are_no_numbers_are_one_sentence(changes: dict[str, Any]) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    settings = {"model_type": "llama", **dict.fromkeys(sizes, 64)}
    assert dimensions_of(settings).head_dim == 1
    with pytest.raises(ValueError, match=r"^the model's config\.json has a size that is no whole number"):
        dimensions_of({**settings, **changes})


def test_models_are_known_by_their_hub_names() -> None:
    assert known_dimensions("meta-llama/Llama-3.1-8B") == known_dimensions("princeton-nlp/Llama-3-8B-ProLong-64k-Base")
    assert known_dimensions("nobody/Unknown-7B") is None
    settings = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="lacks 'intermediate_size'"):
        dimensions_of({**settings, "vocab_size": 100})
    with pytest.raises(ValueError, match="model_type gemma"):
        dimensions_of({**settings, "model_type": "gemma"})
