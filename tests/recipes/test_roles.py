"""corpus=local corpus.folder=…: each source that a preset mixes comes from the user's folder, mixed as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from recipes.cli import run
from recipes.compose import ConfigError, compose, presets
from recipes.train import train

PRETRAIN, SFT = "recipe=together_llama2_7b_32k/pretrain", "recipe=long_sft/lora_single_gpu"
ROLES = ("book", "arxiv", "redpajama", "ul2_oscar")
KEEP = ("mixture", "phases", "mix_at", "sampling", "at_exhaustion")


def local(*words: str, folder: Path) -> DictConfig:
    return compose([*words, "corpus=local", f"corpus.folder={folder}"]).config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder or a file for each of the roles."""
    folder = tmp_path / "data"
    for role in ROLES[:2]:
        (folder / role).mkdir(parents=True)
        (folder / role / "part.jsonl").touch()
    (folder / "redpajama.parquet").touch()
    (folder / "ul2_oscar.jsonl.zst").touch()
    return folder


def test_roles_keep_shares_filters_and_kind(data: Path) -> None:
    paper = compose([PRETRAIN]).config
    config = local(PRETRAIN, folder=data)
    assert {role: node.path for role, node in config.corpus.sources.items()} == {
        "book": f"{data}/book",
        "arxiv": f"{data}/arxiv",
        "redpajama": f"{data}/redpajama.parquet",
        "ul2_oscar": f"{data}/ul2_oscar.jsonl.zst",
    }
    for rule in KEEP:
        assert config.corpus[rule] == paper.corpus[rule], rule
    assert sum(config.corpus.mixture.values()) == 1
    for role in ROLES:
        filters = OmegaConf.to_container(paper.corpus.sources[role].filters, resolve=True)
        assert filters
        assert filters.items() <= dict(config.corpus.sources[role].filters).items()  # type: ignore[union-attr]
        assert str(config.corpus.sources[role]["_target_"]).endswith("FileCorpus")
    assert config.corpus.validation is None


def test_conversations_stay_conversations(tmp_path: Path) -> None:
    for name in ("long.jsonl", "short.parquet", "validation.jsonl", "evaluation.txt"):
        (tmp_path / name).touch()
    config = local(SFT, "corpus.sources.short.records=sharegpt", folder=tmp_path)
    for role in ("long", "short"):
        node = config.corpus.sources[role]
        assert str(node["_target_"]).endswith("ConversationCorpus")
        assert Path(node.rows.path).stem == role
    assert (config.corpus.sources.long.records, config.corpus.sources.short.records) == ("messages", "sharegpt")
    assert str(config.corpus.validation["_target_"]).endswith("ConversationCorpus")
    assert str(config.corpus.evaluation["_target_"]).endswith("FileCorpus")
    assert (config.corpus.mix_at, config.corpus.mixture.long) == ("document", 0.375)


def test_the_command_line_changes_mixture_and_sources(data: Path) -> None:
    config = local(PRETRAIN, "corpus.mixture.book=0", "corpus.sources.arxiv.text_field=abstract", folder=data)
    assert sorted(config.corpus.sources) == ["arxiv", "redpajama", "ul2_oscar"]
    assert config.corpus.sources.arxiv.text_field == "abstract"
    (data / "poems").mkdir()
    more = local(PRETRAIN, "+corpus.mixture.poems=0.25", "scale=toy", folder=data)
    assert str(more.corpus.sources.poems["_target_"]).endswith("FileCorpus")
    assert more.context_length == 4096
    with pytest.raises(ConfigError, match=r"'corpus\.mix_at=a,b' is not understood beside corpus\.folder"):
        local(PRETRAIN, "corpus.mix_at=a,b", folder=data)
    with pytest.raises(ConfigError, match=r"unknown key 'corpus\.sources\.bok\.text_field' .*book\.text_field"):
        local(PRETRAIN, "corpus.sources.bok.text_field=x", folder=data)


def test_what_is_made_is_made_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / "classics.txt").touch()
    config = local("recipe=demo/extend", folder=tmp_path)
    assert str(config.corpus.sources.recall["_target_"]).endswith("RecallCorpus")
    assert config.corpus.sources.recall.haystack.path == f"{tmp_path}/classics.txt"
    (tmp_path / "recall.jsonl").touch()
    assert local("recipe=demo/extend", folder=tmp_path).corpus.sources.recall.path == f"{tmp_path}/recall.jsonl"


def test_missing_and_doubled_roles_are_one_sentence(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "book")
    (data / "ul2_oscar.jsonl.zst").unlink()
    said = (
        f"corpus.folder={data} has nothing to read for book, ul2_oscar; each of the sources book, arxiv, redpajama,"
        " ul2_oscar is a folder of its name there, or a file such as book.jsonl, .jsonl.zst, .parquet or .txt"
    )
    with pytest.raises(ConfigError) as fault:
        local(PRETRAIN, folder=data)
    assert str(fault.value) == said
    with pytest.raises(ConfigError, match=r"nothing is not a folder; each of the sources book, arxiv"):
        local(PRETRAIN, folder=tmp_path / "nothing")
    (data / "arxiv.txt").touch()
    with pytest.raises(ConfigError, match=r"has arxiv and arxiv\.txt for arxiv; keep one"):
        local(PRETRAIN, folder=data)


@pytest.mark.parametrize("recipe", ["index_1p9b_32k/pretrain", "demo/sft"])
def test_a_folder_of_which_nothing_would_be_read_is_refused(recipe: str, tmp_path: Path) -> None:
    """One preset's source has no path of its own, the other's are made."""
    roles = compose([f"recipe={recipe}"]).config.corpus.sources
    for folder, what in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "has nothing to read for")):
        with pytest.raises(ConfigError, match=f"corpus.folder={folder} {what}"):
            local(f"recipe={recipe}", folder=folder)
    (tmp_path / f"{next(iter(roles))}.jsonl").touch()
    assert local(f"recipe={recipe}", folder=tmp_path)


def test_a_source_whose_path_the_preset_leaves_open_is_missed(tmp_path: Path) -> None:
    words = "recipe=prolong_llama3_8b/pretrain_64k"
    paper = compose([words]).config
    left_open = next(role for role, node in paper.corpus.sources.items() if "path" in [*node])
    used = used_sources(paper)
    for role in used - {str(left_open)}:
        (tmp_path / f"{role}.jsonl").touch()
    with pytest.raises(ConfigError, match=f"has nothing to read for {left_open};"):
        local(words, folder=tmp_path)


@pytest.mark.parametrize("name", presets())
def test_every_preset_can_be_read_from_folders(name: str, tmp_path: Path) -> None:
    paper = compose([f"recipe={name}"]).config
    used = used_sources(paper)
    for role in used:
        (tmp_path / f"{role}.jsonl").touch()
    config = local(f"recipe={name}", folder=tmp_path)
    assert set(config.corpus.sources) == used
    assert config.corpus.mixture == paper.corpus.mixture
    for role, node in config.corpus.sources.items():
        reader = node.get("rows") or node
        assert reader.path == f"{tmp_path}/{role}.jsonl"
        assert ("rows" in node) == (config.stage == "supervised_finetuning")


def used_sources(config: DictConfig) -> set[str]:
    mixtures = [config.corpus.mixture, *(phase.mixture for phase in config.corpus.phases or ())]
    if config.corpus.mixture is None:
        return set(map(str, config.corpus.sources))
    return {str(role) for mixture in mixtures for role, share in mixture.items() if share}


def test_one_source_is_named_as_before(tmp_path: Path) -> None:
    words = ["corpus=local", f"corpus.sources.documents.path={tmp_path}"]
    config = compose([PRETRAIN, *words]).config
    assert (config.corpus.sources.documents.path, dict(config.corpus.mixture)) == (str(tmp_path), {"documents": 1.0})


def test_a_preset_trains_on_the_users_folders(tmp_path: Path, model_folder: Path, texts: Path) -> None:
    data = tmp_path / "data"
    for role in ROLES[:3]:
        (data / role).mkdir(parents=True)
        shutil.copy(texts / "train.jsonl", data / role)
    shutil.copy(texts / "train.jsonl", data / "ul2_oscar.jsonl")
    words = [
        PRETRAIN,
        "scale=toy",
        "debug=two_steps",
        "corpus=local",
        f"corpus.folder={data}",
        *(f"corpus.sources.{role}.filters.min_length=64" for role in ROLES),
        f"model.source.name_or_path={model_folder}",
        f"model.tokenizer.name_or_path={model_folder}",
        "packing.max_seqlen=512",
        "data.tokens_per_step=2048",
        "trainer.accelerator=cpu",
        "trainer.progress_bar=false",
        f"output_dir={tmp_path}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    assert run(words, train) == 0
    folder = tmp_path / "together_llama2_7b_32k" / "pretrain" / "latest"
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["steps"] == 2
    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    assert {entry["source"] for entry in ledger["sources"]} == {*ROLES}
