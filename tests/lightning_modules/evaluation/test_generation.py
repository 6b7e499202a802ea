from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from lightning_modules.attention.registry import register_attention_functions
from lightning_modules.evaluation.generation import (
    Decoding,
    Generation,
    Interrupted,
    generate,
    read_chunk,
    with_cached_attention,
)
from lightning_modules.evaluation.prefix_cache import PrefixCache
from lightning_modules.models.index.configuration import IndexConfig
from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.rope.at_length import rope_at_length
from lightning_modules.rope.methods import DynamicNTK, LongRoPE, YaRN
from lightning_modules.rope.patch import apply_rope_method
from tests.lightning_modules.largest_tensor import LargestTensor
from tests.lightning_modules.letters import as_text, letter_tokenizer
from tests.lightning_modules.tiny_models import tiny_model

VOCAB_SIZE = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16))


def gemma() -> Any:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    return Gemma3ForCausalLM(Gemma3TextConfig(**{**SIZES, "pad_token_id": 0}, **kinds))


def index() -> Any:
    return IndexForCausalLM(IndexConfig(**SIZES, norm_head=True))


def yarn() -> Any:
    model = tiny_model("llama")
    apply_rope_method(model, YaRN(), 256)
    return model


MODELS = {
    "llama": lambda: tiny_model("llama"),
    "qwen2": lambda: tiny_model("qwen2"),
    "yarn": yarn,
    "mistral": mistral,
    "gemma3": gemma,
    "index": index,
}


def follows_length(method: Any) -> Any:
    model = tiny_model("llama").eval()
    apply_rope_method(model, method, 256)
    return model


DYNAMIC = {
    "dynamic": lambda: follows_length(DynamicNTK()),
    "longrope": lambda: follows_length(LongRoPE(long_factor=(1.0, 1.5, 2, 2.5, 3, 3, 3.5, 4))),
}


def prompt(num_tokens: int, *, seed: int = 0) -> list[int]:
    return torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return letter_tokenizer(VOCAB_SIZE)


@torch.no_grad()
def whole_greedy(model: Any, token_ids: list[int], num_tokens: int) -> list[int]:
    """Greedy decoding with one whole forward a token and nothing kept: the definition."""
    row = list(token_ids)
    for _ in range(num_tokens):
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits
        row.append(int(logits[0, -1].argmax()))
    return row[len(token_ids) :]


@pytest.mark.parametrize("name", MODELS)
def test_answer_is_that_of_transformers_plain_generate(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ids = prompt(45)
    plain = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        generation_config=GenerationConfig(max_new_tokens=12, do_sample=False),
    )
    expected = plain[0, len(ids) :].tolist()
    assert expected == whole_greedy(model, ids, 12)
    found = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=12), prefill_chunk=7)
    assert found.token_ids == expected
    assert found.text == as_text(expected)
    assert (found.num_prompt_tokens, found.num_reused_tokens, found.stopped_by) == (45, 0, "max_new_tokens")
    assert 0 < found.first_token_seconds < found.seconds
    assert found.tokens_per_second == pytest.approx(11 / (found.seconds - found.first_token_seconds))


@pytest.mark.parametrize("name", DYNAMIC)
def test_rope_that_follows_the_length_is_held_at_the_length_to_come(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = DYNAMIC[name]()
    ids = prompt(120)
    before = [buffer.clone() for buffer in model.buffers()]
    with rope_at_length(model, 128):
        expected = whole_greedy(model, ids, 8)
    found = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=8), prefill_chunk=50)
    assert found.token_ids == expected
    for now, then in zip(model.buffers(), before, strict=True):
        assert torch.equal(now, then)
    with torch.no_grad():  # a whole forward of as many tokens computes the same table by itself
        row = torch.tensor([prompt(128)])
        live = model(row, use_cache=False).logits
    with rope_at_length(model, 128), torch.no_grad():
        assert torch.equal(model(row, use_cache=False).logits, live)


@pytest.mark.parametrize("name", [*MODELS, *DYNAMIC])
@torch.no_grad()
def test_prompt_read_in_chunks_gives_the_logits_of_one_forward(name: str) -> None:
    torch.manual_seed(0)
    model = (MODELS | DYNAMIC)[name]().eval()
    row = torch.tensor([prompt(100)])
    with rope_at_length(model, 100) as rope:
        expected = model(input_ids=row, use_cache=False).logits  # [1, 100, V]
        for chunk in (1, 7, 64, 100):
            cache = PrefixCache()
            cache.begin(row[0].tolist(), rope=rope, room=100)
            hidden = torch.cat([read_chunk(model, part, cache) for part in row.split(chunk, dim=1)], dim=1)
            logits = model.get_output_embeddings()(hidden)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_second_prompt_reads_only_what_is_new_and_answers_as_a_fresh_one(tokenizer: PreTrainedTokenizerFast) -> None:
    model, cache, text = tiny_model("llama"), PrefixCache(), prompt(40)
    decoding = Decoding(max_new_tokens=6)
    edited = [*text[:20], (text[20] + 1) % VOCAB_SIZE, *text[21:]]
    prompts = [text + prompt(5, seed=1), text + prompt(9, seed=2), text[:30], edited + prompt(5, seed=1), prompt(3)]
    reused = []
    for ids in prompts:
        with_cache = generate(model, tokenizer, ids, decoding=decoding, cache=cache, prefill_chunk=8)
        fresh = generate(model, tokenizer, ids, decoding=decoding)
        assert with_cache.token_ids == fresh.token_ids
        reused.append(with_cache.num_reused_tokens)
        assert cache.token_ids == [*ids, *with_cache.token_ids][:-1]
    common = sum(a == b for a, b in zip(prompt(5, seed=1)[:1], prompt(9, seed=2)[:1], strict=True))
    assert reused == [0, 40 + common, 29, 20, 0 if prompt(3)[0] != text[0] else 2]


def test_keys_of_the_same_tokens_lie_where_they_lay(tokenizer: PreTrainedTokenizerFast) -> None:
    model, cache, ids = tiny_model("llama"), PrefixCache(), prompt(40)
    places: list[tuple[int, ...]] = []

    def look() -> None:
        places.append(tuple(layer.keys.data_ptr() for layer in layers()))

    def layers() -> Any:
        return cache.cache.layers

    hook = model.model.norm.register_forward_pre_hook(lambda *_: look())  # behind all layers, in every forward
    for _ in range(2):
        generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=4), cache=cache, prefill_chunk=8)
    hook.remove()
    assert len(places) == 5 + 4 + 4
    assert len({*places}) == 1
    assert layers()[0].keys.shape[-2] == 43


def test_other_rope_keeps_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    model, cache, ids = tiny_model("llama"), PrefixCache(), prompt(40)
    generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=2), cache=cache)
    apply_rope_method(model, YaRN(), 256)
    again = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=2), cache=cache)
    assert again.num_reused_tokens == 0
    assert again.token_ids == generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=2)).token_ids


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("calls", [1, 3, 9])
def test_interrupted_forward_leaves_a_cache_that_answers_right(
    tokenizer: PreTrainedTokenizerFast, layer: int, calls: int
) -> None:
    model, cache, ids = tiny_model("llama"), PrefixCache(), prompt(40)
    attention, seen = model.model.layers[layer].self_attn.o_proj, []

    def press_ctrl_c(*_: Any) -> None:
        seen.append(1)
        if len(seen) == calls:
            raise KeyboardInterrupt

    hook = attention.register_forward_pre_hook(press_ctrl_c)
    with pytest.raises(Interrupted) as stopped:
        generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=6), cache=cache, prefill_chunk=8)
    hook.remove()
    found: Generation = stopped.value.generation
    fresh = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=6))
    assert found.stopped_by == "interruption"
    assert found.token_ids == fresh.token_ids[: max(0, calls - 6)]
    again = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=6), cache=cache, prefill_chunk=8)
    assert again.token_ids == fresh.token_ids
    assert again.num_reused_tokens == min(8 * (calls - 1), 39)


def test_stop_ids_and_strings_end_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = tiny_model("llama"), prompt(30)
    whole = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=12)).token_ids
    third = whole.index(whole[3])
    by_id = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=12, stop_ids=(whole[3],)))
    assert (by_id.token_ids, by_id.stopped_by) == (whole[: third + 1], "stop_id")
    assert by_id.text == as_text(whole[:third])
    stop = as_text(whole[3:5])
    pieces: list[str] = []
    by_text = generate(
        model, tokenizer, ids, decoding=Decoding(max_new_tokens=12, stop_strings=(stop,)), on_text=pieces.append
    )
    assert by_text.stopped_by == "stop_string"
    assert by_text.text == "".join(pieces) == as_text(whole).partition(stop)[0]


def test_settings_in_the_model_folder_do_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = tiny_model("llama"), prompt(30)
    expected = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=8)).token_ids
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=3.0, no_repeat_ngram_size=1, eos_token_id=expected[0]
    )
    assert generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=8)).token_ids == expected
    assert model.generation_config.temperature == 2.0


def test_drawing_is_by_the_seed_and_follows_the_distribution(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = tiny_model("llama", initializer_range=0.05), prompt(10)
    cache = PrefixCache()

    def draw(seed: int, **settings: Any) -> list[int]:
        decoding = Decoding(max_new_tokens=1, seed=seed, **settings)
        return generate(model, tokenizer, ids, decoding=decoding, cache=cache).token_ids

    assert draw(3, temperature=1.0) == draw(3, temperature=1.0)
    with torch.no_grad():
        probability = (model(torch.tensor([ids])).logits[0, -1] / 0.5).softmax(-1)
    order = probability.sort(descending=True)
    nucleus = order.indices[: int((order.values.cumsum(0) < 0.3).sum()) + 1].tolist()
    drawn = [draw(seed, temperature=0.5, top_p=0.3)[0] for seed in range(300)]
    assert {*drawn} <= {*nucleus}
    shares = torch.tensor([drawn.count(token) / len(drawn) for token in nucleus])
    expected = probability[nucleus] / probability[nucleus].sum()
    assert (shares - expected).abs().max() < 0.1  # three standard deviations of 300 draws are 0.087


def test_penalty_counts_the_answer_and_not_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = tiny_model("llama"), prompt(40)
    row: list[int] = []
    with torch.no_grad():
        for _ in range(40):
            logits = model(torch.tensor([ids + row])).logits[0, -1]
            for token in {*row}:
                logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
            row.append(int(logits.argmax()))
    decoding = Decoding(max_new_tokens=40, repetition_penalty=1.5)
    assert generate(model, tokenizer, ids, decoding=decoding).token_ids == row
    assert row != generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=40)).token_ids


def test_model_in_training_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    register_attention_functions()
    plain, ids = tiny_model("llama"), prompt(30)
    expected = generate(plain, tokenizer, ids, decoding=Decoding(max_new_tokens=8)).token_ids
    model = tiny_model("llama", attention="lcr_per_document", attention_dropout=0.5)
    model.train()
    model.model.layers[0].mlp.eval()
    weights = [parameter.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    found = generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=8, temperature=0.0))
    assert found.token_ids == expected
    generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=8, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.config._attn_implementation == "lcr_per_document"
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), weights, strict=True))
    assert not any(parameter.is_inference() for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="stopped"), with_cached_attention(model):
        raise RuntimeError("stopped")
    assert model.config._attn_implementation == "lcr_per_document"


def test_no_logits_of_the_whole_prompt_exist(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = tiny_model("llama"), prompt(4000)
    with LargestTensor() as seen:
        generate(model, tokenizer, ids, decoding=Decoding(max_new_tokens=2), prefill_chunk=100)
    assert seen.numel < 4000 * 400  # masks and scores are [100, 4000], [4000, 4000] is ten times the limit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_what_cannot_be_answered_is_said(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="the prompt has no token"):
        generate(model, tokenizer, [])
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="layers of linear_attention, whose state cannot be kept"):
        generate(model, tokenizer, [1])


def test_demo_recalls_a_pair() -> None:
    folder = Path(__file__).parents[3] / "lightning_modules" / "models" / "demo"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "\nThe pair is man land.\nThe pair is light field.\nThe pair is heart day.\nThe pair is light"
    found = generate(model, tokenizer, tokenizer.encode(text), decoding=Decoding(max_new_tokens=2))
    assert found.text == " field."
