import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamodules.corpora.filters import DocumentFilters
from datamodules.prepare.ray_engine import RayEngine
from datamodules.tokens.store import TokenStore
from tests.datamodules.conversations.test_prepare import SPLIT
from tests.datamodules.conversations.test_prepare import prepare as prepare_conversations
from tests.datamodules.prepare.corpora import ShardedCorpus
from tests.datamodules.prepare.ray_runs import CHATS
from tests.datamodules.prepare.test_engines import content, prepare
from tests.datamodules.toy import make_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of the runs of `ray_runs.py`, and what came of them; one Ray for all tests, as it starts slowly."""
    pytest.importorskip("ray", reason="needs the extra `ray`: pip install 'ray[data]>=2.50'")
    folder = tmp_path_factory.mktemp("ray")
    command = [sys.executable, "-m", "tests.datamodules.prepare.ray_runs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_worker_that_dies_does_not_show_in_the_bytes(runs: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, found = runs
    assert (folder / "dies" / "died").exists()
    reads = (folder / "dies" / "log").read_text().splitlines()
    assert sorted(reads) == ["read 0", "read 1", "read 2", "read 2", "read 3"]
    corpus = ShardedCorpus(max_quarantined=0.2, filters=DocumentFilters(drop_duplicates=True))
    local = prepare(tmp_path, corpus, make_tokenizer())
    ray = TokenStore(Path(found["dies"]))
    assert content(ray) == content(local)
    assert "quarantine.jsonl" in content(ray)
    assert [path.suffix for path in sorted((folder / "cache" / "dies").iterdir())] == ["", ".lock"]


@pytest.mark.slow
def test_fault_of_the_data_is_one_sentence(runs: tuple[Path, dict[str, str]]):
    assert runs[1]["unreadable"] == "error: shard 1 is bad"


@pytest.mark.slow
def test_cluster_goes_on_with_finished_parts(runs: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, found = runs
    reads = (folder / "unreadable" / "log").read_text().splitlines()
    assert reads.count("read 1") == 2, "the one that failed"
    assert reads.count("read 0") == 1, "the one that was finished"
    local = prepare(tmp_path, ShardedCorpus(), make_tokenizer())
    assert content(TokenStore(Path(found["resumed"]))) == content(local)


@pytest.mark.slow
def test_conversations_are_the_same_from_a_cluster(runs: tuple[Path, dict[str, str]], tmp_path: Path):
    local = prepare_conversations(tmp_path, CHATS, **SPLIT)
    assert content(TokenStore(Path(runs[1]["conversations"]))) == content(local)


def test_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"prepare/engine=ray needs a package that is missing; run pip install"):
        prepare(tmp_path, ShardedCorpus(), make_tokenizer(), engine=RayEngine())


@pytest.mark.parametrize(("key", "value"), [("num_cpus_per_shard", 0), ("max_retries", -1)])
def test_settings_of_the_engine_are_judged(key: str, value: Any):
    with pytest.raises(ValueError, match=rf"{key}={value} must be at least .; set prepare\.engine\.{key}"):
        RayEngine(**{key: value})
