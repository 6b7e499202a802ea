"""All stages composed and validated beforehand: whom a word goes to, what is handed over, what a stage is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig

from datamodules.tokens.tokenise import tokenizer_fingerprint
from recipes.build import build_tokenizer
from recipes.compose import ConfigError, compose
from recipes.pipelining.composing import Planned, compose_stages, final_words, partly_taken, quoted, stage_words
from recipes.pipelining.pipeline import read_pipeline
from tests.recipes.pipelining.conftest import Write, mine
from tests.recipes.words import replaced

SFT = """
paper: an extension and a fine-tune
stages:
  - {name: first, recipe: demo/extend}
  - {name: sft, recipe: demo/sft, words: [rope=unchanged, extension_factor=1.0]}
"""


def planned(words: list[str], shells: Path) -> dict[str, Planned]:
    shutil.rmtree(shells, ignore_errors=True)
    return compose_stages(read_pipeline(words), shells)


def configs(words: list[str], shells: Path) -> list[DictConfig]:
    return [plan.config for plan in planned(words, shells).values()]


def refused(words: list[str], shells: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        planned(words, shells)
    return str(caught.value).splitlines()


def test_a_word_goes_to_every_stage_that_has_its_key(write: Write) -> None:
    write(SFT)
    pipeline = mine("seed=3", "data.loss_weighting=sample", "sft.seed=4")
    found = stage_words(pipeline)
    assert "seed=3" in found["first"]
    assert "seed=4" in found["sft"]
    assert "seed=3" not in found["sft"]
    assert "data.loss_weighting=sample" not in found["first"]
    assert "data.loss_weighting=sample" in found["sft"]
    assert "data.loss_weighting=sample goes to sft alone" in partly_taken(pipeline)


def test_words_about_the_model_and_its_rope_go_to_the_stage_that_has_a_model_of_its_own(write: Write) -> None:
    write(SFT)
    found = stage_words(mine("model=hugging_face", "model.source.name_or_path=a/b", "rope=linear", "rope.factor=2.0"))
    for word in ("model=hugging_face", "model.source.name_or_path=a/b", "rope=linear", "rope.factor=2.0"):
        assert word in found["first"]
        assert word not in found["sft"]
    assert "rope=unchanged" in found["sft"]
    # Unless the stage is told so itself.
    assert "rope=linear" in stage_words(mine("sft.rope=linear"))["sft"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "sfft.seed=1",
            "pipeline=mine: 'sfft.seed' is no key of any stage; did you mean sft.seed? stages are first, sf",
        ),
        (
            "optimizer.lrr=1",
            "pipeline=mine: 'optimizer.lrr' is no key of any stage; nearest: optimizer.lr, optimizer, optimizer.",
        ),
        ("rope=linnear", "stage first: rope=linnear does not exist; nearest: linear"),
        ("packing=concat", "every stage: packing=concat does not exist; nearest: concat_chunk"),
        ("sft.optimizer.lrr=1", "stage sft: unknown key 'optimizer.lrr' on the command line; nearest: optimizer.lr"),
    ],
)
def test_words_that_no_stage_takes(write: Write, tmp_path: Path, word: str, sentence: str) -> None:
    write(SFT)
    (found,) = refused(["pipeline=mine", word], tmp_path / "shells")
    assert found.startswith(sentence)


def test_faults_of_all_stages_are_said_at_once(words: list[str], tmp_path: Path) -> None:
    wrong = ["first.data.max_steps=0", "second.optimizer.lr=-1", "trainer.devices=few"]
    assert sorted(refused([*words, *wrong], tmp_path / "shells")) == [
        "every stage: trainer.devices=few must be a whole number of at least 1",
        "stage first: data.max_steps=0 must be a whole number of at least 1",
        "stage second: optimizer.lr=-1 must be a number above 0",
    ]
    nowhere = [f"{stage}.corpus.sources.classics.path={tmp_path}/no/{stage}.jsonl" for stage in ("first", "second")]
    lines = refused([*words, *nowhere], tmp_path / "shells")
    assert [line.split(": ")[0] for line in lines] == ["stage first", "stage second"]
    assert all("/no/" in line for line in lines)
    assert not (tmp_path / "outputs").exists()
    (line,) = refused([*words, "trainer.num_nodes=2", "strategy=ddp", "first.trainer.num_nodes=1"], tmp_path / "shells")
    assert line.startswith("stage second: trainer.num_nodes must be 1, as a pipeline starts its stages on this machine")


def test_a_stage_counts_on_what_the_one_before_will_export(words: list[str], tmp_path: Path) -> None:
    first, second = configs(words, tmp_path / "shells")
    assert (first.model.original_context_length, first.context_length) == (512, 1024)
    assert (second.model.original_context_length, second.context_length) == (1024, 1024)
    assert second.model.source.name_or_path == str(tmp_path / "shells" / "first")
    assert tokenizer_fingerprint(build_tokenizer(second)) == tokenizer_fingerprint(build_tokenizer(first))
    assert build_tokenizer(second).model_max_length == 1024
    # A length that the model before does not read is said now, and not after it has been trained.
    (line,) = refused([*words, "second.context_length=2048"], tmp_path / "shells")
    assert line.startswith("stage second: context_length=2048 is beyond the 1024 that the base model reads")
    # An adapter alone is nothing to go on from.
    (line,) = refused([*words, "first.peft=lora", "first.export.adapter_as=adapter"], tmp_path / "shells")
    assert line.startswith("stage first: export.adapter_as=adapter leaves the next stage no whole model")


def test_a_length_above_the_one_trained_for_is_handed_over_as_the_config_counts_it(
    words: list[str], tmp_path: Path
) -> None:
    """NTK-aware scaling by 4 of a model that is taken to twice its length: its config counts 2048, it reads 1024."""
    general = [word for word in words if not word.startswith("context_length=")]
    scaled = ["rope=ntk_aware", "rope.factor=4.0", "first.context_length=1024"]
    first, second = configs([*general, *scaled], tmp_path / "shells")
    assert first.context_length == 1024
    assert (second.model.original_context_length, second.context_length) == (2048, 1024)


def test_between_stages_nothing_is_rounded_or_rewritten(words: list[str], tmp_path: Path) -> None:
    first, second = configs([*words, "export.dtype=bfloat16"], tmp_path / "shells")
    assert (first.export.dtype, first.export.layout) == ("float32", "native")
    assert (second.export.dtype, second.export.layout) == ("bfloat16", "portable")


def test_a_stage_is_its_settings_and_those_of_what_it_comes_from(
    words: list[str], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.pipelining.composing.validate", lambda _: None)  # takes most of a second each time

    def identities(*more: str) -> tuple[str, str]:
        first, second = planned([*words, *more], tmp_path / "shells").values()
        return first.identity, second.identity

    first, second = identities()
    assert identities() == (first, second)
    assert identities("evaluation.seed=5", "trainer.keep_checkpoints=7", "data.num_workers=1") == (first, second)
    changed = identities("second.optimizer.lr=1e-5")
    assert changed[0] == first
    assert changed[1] != second
    others = identities("first.optimizer.lr=1e-5")
    assert others[0] != first
    assert others[1] not in (second, changed[1])
    rounded = identities("first.export.dtype=bfloat16")
    assert rounded[0] == first
    assert rounded[1] != second
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    words[:] = replaced(words, f"model.source.name_or_path={base}")
    moved = identities()
    assert moved[0] != first
    assert moved[1] != second


def test_paths_of_any_kind_are_values_of_words(words: list[str], model_folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "it's, [a] = b" / "export"
    shutil.copytree(model_folder, odd)
    first, second = planned(words, tmp_path / "shells").values()
    final = final_words(second, base=first, export=odd, run_folder=tmp_path / "a b")
    config = compose(final).config
    assert config.model.source.name_or_path == config.model.tokenizer.name_or_path == str(odd)
    assert config.run_folder == str(tmp_path / "a b")
    assert quoted(Path("outputs/a-1.b")) == "outputs/a-1.b"


def test_the_chat_template_of_a_fine_tuned_stage_travels(write: Write, tmp_path: Path) -> None:
    write(
        "paper: two fine-tunes\n"
        "stages:\n"
        "  - {name: first, recipe: demo/sft}\n"
        "  - {name: more, recipe: demo/sft, words: [rope=unchanged, extension_factor=1.0, chat_template=tokenizer]}\n"
    )
    first, more = configs(["pipeline=mine"], tmp_path / "shells")
    assert build_tokenizer(first).chat_template is None
    written = build_tokenizer(more).apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True, tokenize=False
    )
    assert written == "User:\nWho?\nAssistant:\n"
