"""A recipe small enough for seconds: a Llama of 30,000 parameters and a few pages of text, as files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import processes

RANK_VARIABLE = "LONG_CONTEXT_RECIPES_RUN"  # of recipes.run_folder, whose import takes seconds
WORDS = ("the", "sea", "was", "grey", "and", "a", "ship", "came", "slowly", "over", "it", "while", "men", "sang", "of")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: Llama with 512 tokens of context, and its tokenizer of 512 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from datamodules.tokens.tokenizer import TrainedTokenizer

    class Sentences:
        def fingerprint(self) -> str:
            return "sentences"

        def texts(self) -> list[str]:
            return [" ".join(WORDS), "The fact of stone is river. What is the fact of stone?"]

    folder = tmp_path_factory.mktemp("model")
    TrainedTokenizer(corpus=Sentences(), vocab_size=512, context_length=512).load().save_pretrained(folder)  # type: ignore[arg-type]
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.2,  # large enough that attention matters to the logits
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and heldout.jsonl, documents of 1500 words."""
    folder = tmp_path_factory.mktemp("texts")
    for seed, name in enumerate(("train", "heldout")):
        rng = np.random.default_rng(seed)
        documents = (" ".join(rng.choice(WORDS, 1500)) for _ in range(6))
        lines = (json.dumps({"text": document}) + "\n" for document in documents)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def no_run_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that fails while it trains leaves nothing to the next one."""
    monkeypatch.setenv(RANK_VARIABLE, "")
    monkeypatch.delenv(RANK_VARIABLE)


@pytest.fixture
def tiny(model_folder: Path, texts: Path, tmp_path: Path) -> list[str]:
    """Words that make demo/extend tiny: 512 -> 1024 tokens, two steps, everything written below tmp_path."""
    return tiny_words(model_folder, texts, tmp_path)


def tiny_words(model_folder: Path, texts: Path, folder: Path) -> list[str]:
    """The same words, for what several tests share; everything is written below a folder."""
    return [
        "recipe=demo/extend",
        f"model.source.name_or_path={model_folder}",
        f"model.tokenizer.name_or_path={model_folder}",
        "corpus=classics",
        f"corpus.sources.classics.path={texts}/train.jsonl",
        f"corpus.validation.path={texts}/heldout.jsonl",
        "context_length=1024",
        "data.tokens_per_step=2048",
        "data.max_steps=2",
        "data.validation_sequences=1",
        "evaluation.lengths=[64,128,1024]",
        "evaluation.perplexity.num_windows=2",
        "evaluation.perplexity.tail_tokens=16",
        "evaluation.needle.depths=[0.0,1.0]",
        "evaluation.needle.num_samples=1",
        "trainer.progress_bar=false",
        "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu",
        f"output_dir={folder}/outputs",
        f"cache_dir={folder}/cache",
    ]


@pytest.fixture
def reopened_by_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that opens an export again is a fork, without the seconds in which one imports transformers.

    `verifying/test_verify.py` starts one of its own.
    """
    import recipes.verifying.loaded as loaded

    monkeypatch.setattr(loaded, "subprocess", SimpleNamespace(run=processes.run))


@pytest.fixture
def reopened_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export is opened again in this process, where something else is tested than that another one can do it."""
    import recipes.verifying.certify
    from recipes.verifying.folder import Checkpoint
    from recipes.verifying.loaded import FreshAnswer
    from recipes.verifying.reload import logits, open_folder, rotary_buffers

    def reload_here(checkpoint: Checkpoint) -> FreshAnswer:
        try:
            model = open_folder(checkpoint.folder, checkpoint.base).model
        except Exception as error:
            return FreshAnswer({}, str(error))
        tables = {f"buffer {name}": table for name, table in rotary_buffers(model).items()}
        return FreshAnswer({"logits": logits(model), **tables})

    monkeypatch.setattr(recipes.verifying.certify, "reload_in_fresh_process", reload_here)
