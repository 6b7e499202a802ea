"""Which fields of a row become its text."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.corpora.base import Quarantine
from datamodules.corpora.files import FileCorpus

ROWS = [
    {"article": "text one", "abstract": "short one", "meta": {"id": "a", "of": {"lang": "en"}}, "x.y": "p"},
    {"article": "text two", "abstract": "", "meta": {"id": "b", "of": {"lang": "zh"}}, "x.y": "q"},
    {"article": "", "abstract": "short three", "meta": {"id": "c", "of": {"lang": "de"}}, "x.y": "r"},
]
KINDS = ["jsonl", "parquet"]


def write(folder: Path, kind: str, rows: list[dict]) -> str:
    file = folder / f"a.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return str(file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "separator", "expected"),
    [
        ("article", "\n\n", ["text one", "text two", ""]),
        (["article", "abstract"], "\n\n", ["text one\n\nshort one", "text two", "short three"]),
        (["abstract", "article"], " | ", ["short one | text one", "text two", "short three"]),
        (["article"], "\n\n", ["text one", "text two", ""]),
        ("meta.id", "\n\n", ["a", "b", "c"]),
        (["meta.of.lang", "meta.id"], ":", ["en:a", "zh:b", "de:c"]),
        ("x.y", "", ["p", "q", "r"]),
    ],
)
def test_fields_are_joined_in_the_order_that_is_asked_for(
    tmp_path: Path, kind: str, fields: str | list[str], separator: str, expected: list[str]
):
    corpus = FileCorpus(write(tmp_path, kind, ROWS), text_field=fields, field_separator=separator)
    assert list(corpus.texts()) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["article", "summary"], "no field 'summary' (it has ['abstract', 'article', 'meta', 'x.y']); set corpus"),
        ("meta.name", "no field 'meta.name' ("),
        ("article.id", "no field 'article.id' ("),
        (["article", "meta"], "field 'meta' holds a dict, where a string is needed"),
    ],
)
def test_field_that_is_not_there_is_named(tmp_path: Path, kind: str, fields: str | list[str], message: str):
    with pytest.raises(ValueError, match=r".") as caught:
        list(FileCorpus(write(tmp_path, kind, ROWS), text_field=fields).texts())
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_part_of_a_joined_text_that_is_null_sets_the_row_aside(tmp_path: Path, kind: str):
    rows = [{"a": "1", "b": {"c": "x"}}, {"a": "2", "b": {"c": None}}, {"a": "3", "b": {"c": "z"}}]
    (shard,) = FileCorpus(write(tmp_path, kind, rows), text_field=["a", "b.c"], field_separator="").shards()
    quarantine = Quarantine(strict=False)
    assert [document.text for document in shard.documents(quarantine)] == ["1x", "3z"]
    assert [row.reason for row in quarantine.rows] == ["field 'b.c' holds null, where a string is needed"]


@pytest.mark.parametrize("fields", ["", [], [""], None])
def test_text_field_without_a_name_is_refused(fields: object):
    with pytest.raises(ValueError, match=r"must be a name or a list of names; set corpus\.sources\.\*\.text_field"):
        FileCorpus("a", text_field=fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"text_field": ["text", "more"]},
        {"text_field": ["text"], "field_separator": " "},
        {"invalid_utf8": "replace"},
        {"max_document_bytes": 5},
        {"max_quarantined": 0.1, "allow_partial": True},
        {"task_field": "task"},
    ],
)
def test_fingerprint_follows_every_rule_that_may_change_a_text(tmp_path: Path, options: dict):
    path = write(tmp_path, "jsonl", [{"text": "a"}])
    assert FileCorpus(path, **options).fingerprint() != FileCorpus(path).fingerprint()
    assert FileCorpus(path, **options).fingerprint() == FileCorpus(path, **options).fingerprint()


def test_fingerprint_of_a_corpus_without_rules_is_what_it_was(tmp_path: Path):
    """Stores that were made before there were rules stay valid."""
    path = write(tmp_path, "jsonl", [{"text": "a"}])
    assert FileCorpus(path).fingerprint() == "6656c8a088f18ea616b8f1c9d60222d25d0ddf32362801b1892a85cb35143845"
    assert FileCorpus(path, max_compression_ratio=5).fingerprint() == FileCorpus(path).fingerprint()
    assert FileCorpus(path, max_quarantined=0.5).fingerprint() == FileCorpus(path).fingerprint()
