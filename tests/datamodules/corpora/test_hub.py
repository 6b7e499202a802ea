import json
from pathlib import Path

import pytest

from datamodules.corpora.hub import HubCorpus
from tests.datamodules.toy import write_jsonl

TEXTS = [f"text {k}\u2028\n" for k in range(5)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", TEXTS)
    write_jsonl(tmp_path / "data" / "test.jsonl", ["held out"])
    return tmp_path / "data"


def read(name: Path | str, **options) -> list[str]:
    return list(HubCorpus(str(name), **options).texts())


@pytest.mark.parametrize("streaming", [True, False])
def test_split_gives_the_texts_in_order(folder: Path, streaming: bool):
    assert read(folder, streaming=streaming) == TEXTS
    assert read(folder, streaming=streaming, split="test") == ["held out"]


def test_data_files_restrict_the_reading(folder: Path):
    assert read(folder, data_files="test.jsonl") == ["held out"]
    assert read(folder, data_files=["test.jsonl", "train.jsonl"]) == ["held out", *TEXTS]


@pytest.mark.parametrize(("count", "expected"), [(2, 2), (5, 5), (9, 5), (None, 5)])
def test_max_documents_reads_no_further(folder: Path, count: int | None, expected: int):
    assert read(folder, max_documents=count) == TEXTS[:expected]


def test_bad_row_after_max_documents_is_not_reached(folder: Path):
    with (folder / "train.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": None}) + "\n")
    assert read(folder, max_documents=5) == TEXTS
    with pytest.raises(ValueError, match=r"row 5 of .* has no text in field 'text'"):
        read(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_field": "body"}, "row 0 of .* has no text in field 'body' .it has .'text'..; set corpus.sources"),
        ({"split": "nope"}, "cannot be read: .*nope"),
        ({"config": "nope"}, "cannot be read: .*nope"),
        ({"data_files": "nope.jsonl"}, "cannot be read: .*nope.jsonl"),
    ],
)
def test_wrong_option_gives_one_sentence(folder: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_broken_file_gives_one_sentence(folder: Path):
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"hub data set .* cannot be read") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/no-such-data-set", "no such folder"])
def test_hub_name_without_network_gives_one_sentence(name: str):
    with pytest.raises(ValueError, match=f"hub data set {name} .*revision abc.* cannot be read.*network") as caught:
        read(name, revision="abc", data_files="a.jsonl.zst")
    assert "\n" not in str(caught.value)


def test_fingerprint_follows_what_is_read(folder: Path, tmp_path: Path):
    original = HubCorpus(str(folder)).fingerprint()
    assert original == HubCorpus(str(folder), streaming=False).fingerprint()
    variants = [
        {"split": "test"},
        {"config": "x"},
        {"revision": "abc"},
        {"data_files": "a"},
        {"max_documents": 3},
        {"text_field": "x"},
    ]
    assert len({original, *(HubCorpus(str(folder), **variant).fingerprint() for variant in variants)}) == 7
    assert HubCorpus("a/b", revision="1").fingerprint() != HubCorpus("a/b", revision="2").fingerprint()
    moved = folder.rename(tmp_path / "moved")
    assert HubCorpus(str(moved)).fingerprint() == original
    write_jsonl(moved / "train.jsonl", [*TEXTS[:-1], "changed"])
    assert HubCorpus(str(moved)).fingerprint() != original
