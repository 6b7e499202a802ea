"""What wins over what, and that one option's keys never mix with another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes import compose as composing
from recipes.compose import Composed, ConfigError, compose

INDEX, TOGETHER = "recipe=index_1p9b_32k/pretrain", "recipe=together_llama2_7b_32k/pretrain"
ADJUSTED_BASE = "lightning_modules.rope.methods.AdjustedBase"
LINEAR = "lightning_modules.rope.methods.LinearInterpolation"


def rope(composed: Composed) -> object:
    return OmegaConf.to_container(composed.config.rope)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to write into."""
    folder = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), folder)
    monkeypatch.setattr(composing, "conf_folder", lambda: folder)
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 358),  # the preset; data/continued_pretraining.yaml has no value
        (["scale=toy"], 20),
        (["debug=two_steps"], 2),
        (["scale=toy", "debug=two_steps"], 2),
        (["scale=toy", "debug=two_steps", "data.max_steps=3"], 3),
        (["data.max_steps=3", "scale=toy"], 3),
    ],
)
def test_later_layers_win(words: list[str], expected: int) -> None:
    assert compose([TOGETHER, *words]).config.data.max_steps == expected


def test_groups_win_over_the_config_and_lose_to_the_preset(conf: Path) -> None:
    with (conf / "config.yaml").open("a") as file:
        file.write("optimizer: {decay_norms: true}\nrope: {rope_theta: 2.0}\n")
    (conf / "data" / "continued_pretraining.yaml").write_text("max_steps: 5\ntokens_per_step: 6\n")
    config = compose([INDEX]).config
    assert config.rope.rope_theta == 320000.0
    assert config.data.max_steps == 2384
    assert config.data.tokens_per_step == 4194304
    assert config.optimizer.decay_norms is False


def test_another_option_replaces_the_node_of_the_preset() -> None:
    scaled = {"on_scaled_base": "refuse"}
    assert rope(compose([INDEX])) == {"_target_": ADJUSTED_BASE, "rope_theta": 320000.0, **scaled}
    assert rope(compose([INDEX, "rope=linear"])) == {"_target_": LINEAR, "factor": None, **scaled}
    expected = {"_target_": LINEAR, "factor": 4, **scaled}
    assert rope(compose([INDEX, "rope=linear", "rope.factor=4"])) == expected
    assert rope(compose(["rope.factor=4", "rope=linear", INDEX])) == expected


def test_another_option_replaces_the_node_of_the_scale() -> None:
    words = [INDEX, "scale=toy", "corpus=local", "corpus.sources.documents.path=a"]
    corpus = compose(words).config.corpus
    assert list(corpus.sources) == ["documents"]
    assert corpus.sources.documents.path == "a"
    assert corpus.mixture == {"documents": 1.0}


def test_the_same_option_keeps_the_values_of_preset_and_scale() -> None:
    named = compose([INDEX, "rope=adjusted_base", "scale=toy", "model=demo", "corpus=toy"])
    assert named.config == compose([INDEX, "scale=toy"]).config


def test_replacing_one_node_changes_no_other() -> None:
    before = OmegaConf.to_container(compose([TOGETHER]).config)
    after = OmegaConf.to_container(compose([TOGETHER, "rope=unchanged"]).config)
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before.pop("rope") != after.pop("rope")
    assert before == after


def test_one_key_ablates() -> None:
    config = compose([INDEX, "packing.document_mask=false"]).config
    assert config.packing.document_mask is False
    assert config.packing.reset_positions is True


def test_result_names_choices_and_recipe() -> None:
    config, choices, words = compose([INDEX, "rope=linear"])
    assert config.recipe_name == "index_1p9b_32k/pretrain"
    assert choices["rope"] == "linear"
    assert choices["model"] == "index_1p9b"
    assert words == (INDEX, "rope=linear")


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ([], ["no recipe given; add recipe=<name>, one of: "]),
        (["recipe="], ["recipe= does not exist; there are: "]),
        (["recipe=demo/extnd"], ["recipe=demo/extnd does not exist; nearest: demo/extend"]),
        (["recipe=index"], ["nearest: index_1p9b_32k/"]),
        (["recipe=demo/extend", "rope=lineer"], ["rope=lineer does not exist; nearest: linear"]),
        (["recipe=demo/extend", "rope=zzz"], ["rope=zzz does not exist; there are: adjusted_base, dynamic_ntk, lin"]),
        (["recipe=demo/extend", "rope=lineer", "scale=toi"], ["rope=lineer", "scale=toi does not exist; nearest: toy"]),
        (["recipe=demo/extend", "--fast"], ["'--fast' is not of the form key=value"]),
        (["recipe=demo/extend", "scale"], ["'scale' is not of the form key=value"]),
        (["recipe=demo/extend", "=3"], ["'=3' is not of the form key=value"]),
        (["recipe=demo/extend", "~optimizer.lr=1"], ["'~optimizer.lr=1' is not of the form key=value"]),
        (["recipe=demo/extend", "seed=1", "seed=2"], ["seed is given twice"]),
        (["recipe=demo/extend", "hydra.run.dir=a"], ["'hydra.run.dir=a' is a setting of Hydra's"]),
        (["recipe=demo/extend", "optimizer.lrr=1"], ["unknown key 'optimizer.lrr' on the command line; nearest: opt"]),
        (["recipe=demo/extend", "optimiser.lr=1"], ["unknown key 'optimiser.lr' on the command line; nearest: opt"]),
        (["recipe=demo/extend", "rope.factor=4"], ["unknown key 'rope.factor' on the command line"]),
        (["recipe=demo/extend", "rope=linear", "rope.rope_theta=4"], ["unknown key 'rope.rope_theta' on the command"]),
        (["recipe=demo/extend", "seed.x=4"], ["unknown key 'seed.x' on the command line"]),
        (["recipe=demo/extend", "optimizer.lr=1,2"], ["'optimizer.lr=1,2' gives several values to one key"]),
        (["recipe=demo/extend", "optimizer.betas=[0.9"], ["'optimizer.betas=[0.9' is not understood"]),
        (
            ["recipe=demo/extend", "optimizer.lrr=1", "data.max_step=1", "optimizer.lr=1,2"],
            ["'optimizer.lrr'", "'data.max_step' on the command line; nearest: data.max_steps", "several values"],
        ),
    ],
)
def test_words_that_do_not_fit(words: list[str], sentences: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compose(words)
    found = str(error.value).splitlines()
    assert len(found) == len(sentences)
    for line, sentence in zip(found, sentences, strict=True):
        assert sentence in line


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("defaults:\n  - override /rope: lineer\n", "Could not find 'rope/lineer'"),
        ("defaults:\n  - override /ropee: linear\n", "Could not override 'ropee'"),
        ("optimizer: {lr: 1\nseed: 2\n", "mine.yaml, line 3: "),
    ],
)
def test_a_preset_that_does_not_compose(conf: Path, text: str, sentence: str) -> None:
    (conf / "recipe" / "mine.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        compose(["recipe=mine", "seed=1"])
    (found,) = str(error.value).splitlines()
    assert found.startswith("recipe=mine does not compose: ")
    assert sentence in found


def test_variant_takes_the_option_that_it_names_without_what_the_preset_wrote_in_its_group() -> None:
    words = ["recipe=utk_qwen2_7b_128k/pretrain", "variant=utk/cip_2"]
    option = OmegaConf.load(composing.conf_folder() / "augmentation" / "chunk_interleaving.yaml")
    assert compose(words).config.augmentation == option  # the variant says what the option does
    changed = compose([*words, "augmentation.num_chunks=3", "scale=toy"]).config
    assert changed.augmentation.num_chunks == 3
    assert changed.data.max_steps == 20
    assert changed.rope.rope_theta == 5e6  # what is said of other groups stays


def test_variant_with_another_corpus_keeps_the_shares_of_the_preset() -> None:
    words = ["recipe=together_llama2_7b_32k/pretrain", "variant=together/pg19_books"]
    before, after = (compose(words[:n]).config.corpus for n in (1, 2))
    assert after.mixture == before.mixture
    assert after.sources.book.filters == before.sources.book.filters
    assert after.sources.book.name != before.sources.book.name


def test_mixture_on_the_command_line_takes_the_place_of_the_presets() -> None:
    words = ["recipe=demo/extend", "corpus.mixture={recall: 1.0}"]
    assert compose(words).config.corpus.mixture == {"recall": 1.0}
    assert compose(["recipe=demo/extend", "corpus=local", "corpus.mixture={documents: 1}"]).config.corpus.mixture == {
        "documents": 1
    }
    assert compose(["recipe=demo/extend", "corpus.mixture.recall=0.25"]).config.corpus.mixture == {
        "classics": 0.5,
        "recall": 0.25,
    }
