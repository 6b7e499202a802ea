import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from pyarrow import parquet, table

from datamodules.corpora.base import Quarantine
from datamodules.corpora.hub import DataFile, HubCorpus
from datamodules.corpora.rows import RowRules, read_json
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
    with pytest.raises(ValueError, match=r"train\.jsonl, line 6: field 'text' holds null"):
        read(folder)


LATER = 12 << 20  # bytes; `datasets` gives each 10 MB of a JSON file types of its own


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("number", [3, 3.5, True, {"a": 1}, ["b"]])
def test_no_text_among_texts_is_named_by_its_line_and_puts_no_other_in_quotes(
    folder: Path, streaming: bool, number: Any
):
    long = "x" * (LATER // 8)
    lines = [{"text": f"{long}{k}"} for k in range(8)] + [{"text": 'say "so"'}, {"text": number}, {"text": "end"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    corpus = HubCorpus(str(folder), streaming=streaming).texts()
    assert [next(corpus)[-1] for _ in range(8)] == list("01234567")
    assert next(corpus) == 'say "so"'
    with pytest.raises(ValueError, match=r"train\.jsonl, line 10: field 'text' holds a .*, where a string is needed"):
        next(corpus)


@pytest.mark.parametrize("streaming", [True, False])
def test_texts_that_all_look_like_dates_stay_texts(folder: Path, streaming: bool):
    texts = ["2021-01-01", "2021-01-02T03:04:05", "2021-01-03 00:00:00"]
    write_jsonl(folder / "train.jsonl", texts)
    assert read(folder, streaming=streaming) == texts


@pytest.mark.parametrize("streaming", [True, False])
def test_texts_stay_as_they_are_written_whatever_stands_beside_them(folder: Path, streaming: bool):
    texts = ["2021-01-01", "2021-01-02T03:04:05", "1e5", "007", "", "null", "NaN", "  spaces ", "[1]", '{"a": 1}']
    lines = [{"text": text} for text in texts] + [{"text": "last", "meta": {"year": 1999}}, {"meta": 1, "text": "more"}]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read(folder, streaming=streaming) == [*texts, "last", "more"]


def test_configurations_of_the_card_choose_the_files(folder: Path):
    configs = [
        {"config_name": "one", "data_files": [{"split": "train", "path": "test.jsonl"}]},
        {"config_name": "two", "data_files": [{"split": "all", "path": "t*.jsonl"}]},
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", encoding="utf-8")
    assert read(folder, config="one") == ["held out"]
    assert read(folder, config="two", split="all") == ["held out", *TEXTS]


def compressed(content: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        return zstandard.ZstdCompressor().compress(content)
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](content)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_compressed_files_are_read_to_their_end_or_refused(folder: Path, suffix: str):
    whole = compressed((folder / "train.jsonl").read_bytes(), suffix)
    (folder / "train.jsonl").unlink()
    file = folder / f"train.jsonl{suffix}"
    file.write_bytes(whole)
    assert read(folder) == TEXTS
    file.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="cannot be read: Compressed file ended"):
        read(folder)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files_that_are_not_here_are_read_over_fsspec(suffix: str):
    url = f"memory://data/name@abc/train.v1.jsonl{suffix}"
    content = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    with fsspec.open(url, "wb") as handle:
        handle.write(compressed(content, suffix) if suffix else content)  # type: ignore[union-attr]
    documents = read_json(DataFile(url, url), RowRules(), Quarantine())
    assert [document.text for document in documents] == TEXTS
    with pytest.raises(ValueError, match=f"{url}, line 1: no field 'body'"):
        list(read_json(DataFile(url, url), RowRules(text_field="body"), Quarantine()))


@pytest.mark.parametrize("streaming", [True, False])
def test_typed_files_go_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    table = pyarrow.table({"text": [*TEXTS, None], "year": list(range(6))})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    assert read(folder, streaming=streaming, max_documents=5) == TEXTS
    with pytest.raises(ValueError, match=r"row 5 of .* has no text in field 'text' .it has .'text', 'year'..; set"):
        read(folder, streaming=streaming)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_field": "body"}, "train.jsonl, line 1: no field 'body' .it has .'text'..; set corpus.sources"),
        ({"split": "nope"}, "cannot be read: .*nope"),
        ({"config": "nope"}, "cannot be read: .*nope"),
        ({"data_files": "nope.jsonl"}, "cannot be read: .*nope.jsonl"),
        ({"split": "train[:2]"}, "there is no split 'train.:2.' but .'test', 'train'.; set max_documents"),
    ],
)
def test_wrong_option_gives_one_sentence(folder: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_broken_file_gives_one_sentence(folder: Path):
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: not JSON") as caught:
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


def sizes(corpus: HubCorpus) -> list[tuple[int | None, int | None]]:
    return [(shard.num_bytes, shard.num_documents) for shard in corpus.shards()]


@pytest.mark.parametrize("streaming", [True, False])
def test_json_files_tell_their_bytes_for_the_progress_bar(folder: Path, streaming: bool):
    (folder / "train-2.jsonl.gz").write_bytes(gzip.compress((folder / "train.jsonl").read_bytes()))
    plain, packed = ((folder / name).stat().st_size for name in ("train.jsonl", "train-2.jsonl.gz"))
    found = sizes(HubCorpus(str(folder), streaming=streaming))
    assert sorted(found) == sorted([(plain, None), (4 * packed, None)])
    assert sizes(HubCorpus(str(folder), max_documents=3)) == [(None, 3)]


def test_files_elsewhere_tell_theirs_and_what_cannot_be_asked_says_nothing():
    with fsspec.open("memory://data/sized.jsonl", "wb") as handle:
        handle.write(b"x" * 100)  # type: ignore[union-attr]
    assert DataFile("memory://data/sized.jsonl", None).num_bytes == 100
    assert DataFile("memory://data/missing.jsonl", None).num_bytes is None


@pytest.mark.parametrize("card", [False, True])
def test_rows_tell_how_many_they_are(folder: Path, card: bool):
    for file in folder.iterdir():
        file.unlink()
    for k in range(2):
        parquet.write_table(table({"text": [f"text {k} {n}" for n in range(50)]}), folder / f"train-{k}.parquet")
    if card:
        split = {"name": "train", "num_examples": 100, "num_bytes": 1000}
        features = [{"name": "text", "dtype": "string"}]
        info = {"features": features, "splits": [split], "download_size": 0, "dataset_size": 1000}
        (folder / "README.md").write_text(f"---\ndataset_info: {json.dumps(info)}\n---\n", encoding="utf-8")
    streamed = sizes(HubCorpus(str(folder)))  # before anything is in the cache, which knows it too
    assert streamed == ([(None, 50)] * 2 if card else [(None, None)] * 2)
    assert sum(count or 0 for _, count in sizes(HubCorpus(str(folder), streaming=False))) == 100
    assert sizes(HubCorpus(str(folder), max_documents=30)) == [(None, 30)]
    assert sizes(HubCorpus(str(folder), max_documents=300, streaming=False)) == [(None, 100)]
