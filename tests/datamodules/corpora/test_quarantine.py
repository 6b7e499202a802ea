"""The limit of rows that may be set aside is weighed whenever a store is opened, and no part of its name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet, table

from datamodules.corpora.few_shot import FewShotCorpus
from datamodules.corpora.files import FileCorpus
from datamodules.corpora.hub import HubCorpus
from datamodules.prepare.local_engine import LocalEngine
from datamodules.tokens.policy import TokenPolicy
from datamodules.tokens.store import TokenStore
from datamodules.tokens.tokenise import prepare_store
from tests.datamodules.toy import make_tokenizer

TOKENIZER = make_tokenizer()


def prepared(corpus: Any, folder: Path) -> TokenStore:
    return prepare_store(
        corpus, TOKENIZER, policy=TokenPolicy(), cache_dir=folder / "cache", name="source", progress=False
    )


def write_rows(folder: Path) -> Path:
    """20 rows, of which 2 hold no text; a record of few-shot examples each."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = [{"text": f"text {k}", "inputs": f"q {k}", "targets": f"a {k}"} for k in range(20)]
    for row in (7, 13):
        rows[row] = {"text": None}
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def files(folder: Path, limit: float) -> FileCorpus:
    return FileCorpus(str(write_rows(folder / "data")), max_quarantined=limit)


def hub(folder: Path, limit: float) -> HubCorpus:
    return HubCorpus(str(write_rows(folder / "data").parent), max_quarantined=limit)


def few_shot(folder: Path, limit: float) -> FewShotCorpus:
    file = write_rows(folder / "data")
    return FewShotCorpus(str(file), max_tokens=20, max_quarantined=limit, definition_field=None, task_field=None)


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it: from then on nothing may be tokenised."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the corpus is tokenised anew")

    return lambda: monkeypatch.setattr(LocalEngine, "run", fail)


@pytest.mark.parametrize("make", [files, hub, few_shot])
def test_raising_the_limit_takes_the_store_that_is_there(tmp_path: Path, make: Any, nothing_is_read: Any):
    store = prepared(make(tmp_path, 0.2), tmp_path)
    assert store.meta["quarantined"]["count"] == 2
    nothing_is_read()
    for limit in (0.2, 0.3, 1.0):
        assert prepared(make(tmp_path, limit), tmp_path).folder == store.folder


@pytest.mark.parametrize("make", [files, hub, few_shot])
@pytest.mark.parametrize("limit", [0.01, 0.0])
def test_lowering_it_below_what_was_set_aside_is_an_error(
    tmp_path: Path, make: Any, limit: float, nothing_is_read: Any
):
    store = prepared(make(tmp_path, 0.2), tmp_path)
    nothing_is_read()
    assert store.meta["num_rows"] == 20, "records, where several make one document"
    told = f"2 of 20 rows (10.00%) cannot be used, above max_quarantined={limit:g} ("
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        prepared(make(tmp_path, limit), tmp_path)
    assert "train.jsonl, line 8: " in str(caught.value)
    assert str(caught.value).endswith("repair them or raise corpus.sources.*.max_quarantined")
    assert prepared(make(tmp_path, 0.1), tmp_path).folder == store.folder, "as many as were set aside are allowed"


def test_a_store_of_which_nothing_was_set_aside_serves_every_limit(tmp_path: Path, nothing_is_read: Any):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    store = prepared(FileCorpus(str(tmp_path / "a.jsonl"), max_quarantined=0.5), tmp_path)
    nothing_is_read()
    assert prepared(FileCorpus(str(tmp_path / "a.jsonl")), tmp_path).folder == store.folder


def test_files_that_cannot_be_read_count_by_their_size_at_a_lower_limit_too(tmp_path: Path, nothing_is_read: Any):
    """One row of 201 by count, but half of the bytes."""
    whole = tmp_path / "files"
    whole.mkdir()
    parquet.write_table(table({"text": [f"text {k}" for k in range(200)]}), whole / "a.parquet")
    (whole / "b.parquet").write_bytes(b"x" * (whole / "a.parquet").stat().st_size)
    store = prepared(FileCorpus(str(whole), max_quarantined=0.6), tmp_path)
    assert (store.meta["quarantined"]["count"], store.meta["num_rows"]) == (1, 201)
    nothing_is_read()
    with pytest.raises(ValueError, match=r"1 files with 50\.0% of the bytes .* above max_quarantined=0\.1"):
        prepared(FileCorpus(str(whole), max_quarantined=0.1), tmp_path)
    assert prepared(FileCorpus(str(whole), max_quarantined=0.5), tmp_path).folder == store.folder


def test_stores_that_do_not_tell_their_limit_are_judged_by_their_rows(tmp_path: Path):
    store = prepared(files(tmp_path, 0.2), tmp_path)
    meta = store.folder / "meta.json"
    content = json.loads(meta.read_text())
    del content["max_quarantined"]
    meta.write_text(json.dumps(content))
    assert prepared(files(tmp_path, 0.2), tmp_path).folder == store.folder
    with pytest.raises(ValueError, match=re.escape("2 of 20 rows (10.00%) cannot be used")):
        prepared(files(tmp_path, 0.05), tmp_path)


def test_a_limit_that_stopped_a_preparation_may_be_raised(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.jsonl, line 8: field 'text' holds null"):
        prepared(files(tmp_path, 0.0), tmp_path)
    with pytest.raises(ValueError, match=r"2 of 20 rows"):
        prepared(files(tmp_path, 0.05), tmp_path)
    assert prepared(files(tmp_path, 0.1), tmp_path).meta["quarantined"]["count"] == 2
