"""Stores of conversations: the same from one shard or many, one thread or many, killed or not."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.conversations.conversation import Conversation
from datamodules.conversations.policy import ConversationPolicy
from datamodules.corpora.base import Document, Quarantine
from datamodules.corpora.filters import DUPLICATE, DocumentFilters
from datamodules.prepare import encoding
from datamodules.prepare.local_engine import LocalEngine
from datamodules.tokens.store import TokenStore
from datamodules.tokens.tokenise import TokenPolicy, prepare_store, store_key, tokenizer_fingerprint
from tests.datamodules.conversations.chats import ROOT, SHORT, TURNS, conversation, encoded, literal, qwen_like
from tests.datamodules.toy import Texts, make_tokenizer

BAD = '{"messages": [{"role": "user", "content": "q"}]}'


@dataclass(frozen=True)
class Shard:
    name: str
    rows: Sequence[str]
    sleeps: bool = False

    def documents(self, quarantine: Quarantine) -> Iterator[Document]:
        for number, row in enumerate(self.rows, 1):
            if self.sleeps and number == 4:
                import time

                print("half", flush=True)
                time.sleep(60)
            if row == "unreadable":
                quarantine.add(f"{self.name}, row {number}", "not JSON")
            else:
                yield Document(row, f"{self.name}, row {number}")


@dataclass(frozen=True)
class Chats:
    """Conversations, some of which cannot be used, in shards."""

    num_shards: int = 1
    num_rows: int = 60
    max_quarantined: float = 0.5
    filters: DocumentFilters | None = None
    sleeps: bool = False

    def rows(self) -> list[str]:
        rng = np.random.default_rng(0)
        rows = []
        for k in range(self.num_rows):
            turns = [("user", f"question {k} " * int(rng.integers(1, 30))), ("assistant", f"answer {k}")]
            rows.append(conversation(*turns * int(rng.integers(1, 4))).to_json())
        for k in range(3, self.num_rows, 10):
            rows[k] = ("unreadable", BAD, conversation(("user", "q"), ("assistant", " ")).to_json())[k // 10 % 3]
        rows[5] = rows[20] = SHORT.to_json()
        rows[6] = json.dumps({"text": "learned whole " * 9})
        return rows

    def fingerprint(self) -> str:
        return f"chats {self.num_rows} {self.max_quarantined}"

    def shards(self) -> list[Shard]:
        parts = np.array_split(np.arange(self.num_rows), self.num_shards)
        rows = self.rows()
        return [Shard(f"shard {k}", [rows[i] for i in own], self.sleeps and k == 1) for k, own in enumerate(parts)]

    def texts(self) -> Iterator[str]:
        for shard in self.shards():
            yield from (document.text for document in shard.documents(Quarantine(strict=False)))


def policy(**options: Any) -> ConversationPolicy:
    return ConversationPolicy(template=literal("plain"), **options)


def prepare(folder: Path, corpus: Any, *, threads: int = 1, engine: Any = None, **options: Any) -> TokenStore:
    return prepare_store(
        corpus,
        make_tokenizer(),
        policy=policy(**options),
        cache_dir=folder,
        name="chats",
        progress=False,
        engine=engine or LocalEngine(num_threads=threads),
    )


def content(store: TokenStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.folder.iterdir()}


def samples(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    return [
        (store.slice(d, 0, int(size)).tolist(), store.mask_slice(d, 0, int(size)).tolist())
        for d, size in enumerate(store.lengths)
    ]


def test_store_holds_ids_and_labels_of_every_conversation(tmp_path: Path):
    corpus = Texts([SHORT.to_json(), TURNS.to_json(), json.dumps({"text": "all of it"})])
    store = prepare(tmp_path, corpus)
    chats = [Conversation.from_json(text) for text in corpus.content]
    expected = [(one.ids.tolist(), one.mask.tolist()) for one in encoded(make_tokenizer(), literal("plain"), *chats)]
    assert samples(store) == expected
    assert store.loss_mask is not None
    assert store.loss_mask.dtype == np.uint8
    assert len(store.loss_mask) == store.num_tokens
    assert [store.num_labels(d) for d in range(3)] == [sum(mask[1:]) for _, mask in expected]
    assert (store.folder / "loss_mask.bin").stat().st_size == store.num_tokens


SPLIT = {"context_length": 100, "too_long": "split"}


@pytest.mark.parametrize("filters", [None, DocumentFilters(drop_duplicates=True)])
def test_many_shards_and_threads_make_the_store_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: DocumentFilters | None
):
    monkeypatch.setattr("datamodules.conversations.samples.CALL_CHARACTERS", 1000)  # several calls
    assert encoding.CALL_CHARACTERS > 1000
    one = prepare(tmp_path / "1", Chats(filters=filters), **SPLIT)
    threads = prepare(tmp_path / "t", Chats(filters=filters), threads=3, **SPLIT)
    shards = prepare(tmp_path / "s", Chats(num_shards=4, filters=filters), threads=2, **SPLIT)
    assert content(one) == content(threads)
    for file in ("tokens.bin", "loss_mask.bin", "offsets.npy", "hashes.npy"):
        assert (one.folder / file).read_bytes() == (shards.folder / file).read_bytes()
    assert one.meta["drops"] == shards.meta["drops"]


def test_what_is_left_out_is_counted_with_its_place_in_order(tmp_path: Path):
    store = prepare(tmp_path, Chats(), **SPLIT)
    rows = [json.loads(line) for line in (store.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [row["place"] for row in rows] == [f"shard 0, row {k + 1}" for k in range(3, 60, 10)]
    assert [row["reason"][:20] for row in rows[:3]] == ["not JSON", "there is no turn of ", "message 2 of the ass"]
    assert store.meta["quarantined"]["count"] == 6
    assert store.meta["num_rows"] == 60
    (reason,) = store.meta["drops"]["repaired"]
    assert reason == "split into samples: longer than context_length=100"
    assert len(store) > 54
    assert store.lengths.max() <= 100


def test_refused_rows_stay_in_order_whatever_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Too long to be cut, which the encoding finds, between rows that the reading sets aside."""
    monkeypatch.setattr("datamodules.conversations.samples.CALL_CHARACTERS", 10)
    long = conversation(("user", "q"), ("assistant", "it was the best of times " * 9)).to_json()
    rows = [SHORT.to_json(), BAD, long, BAD, long, SHORT.to_json(), long, BAD]
    corpus = Named(rows)
    for threads in (1, 3):
        store = prepare(tmp_path / str(threads), corpus, threads=threads, context_length=40, too_long="truncate_middle")
        places = [json.loads(line)["place"] for line in (store.folder / "quarantine.jsonl").read_text().splitlines()]
        assert places == [f"rows, row {k}" for k in (2, 3, 4, 5, 7, 8)]


@dataclass(frozen=True)
class Named:
    rows: Sequence[str]
    max_quarantined: float = 0.9
    filters: DocumentFilters | None = None

    def fingerprint(self) -> str:
        return json.dumps(list(self.rows))

    def shards(self) -> list[Shard]:
        return [Shard("rows", self.rows)]

    def texts(self) -> Iterator[str]:
        yield from self.rows


def test_too_long_conversations_are_an_error_with_their_place_unless_said_otherwise(tmp_path: Path):
    corpus = Named([SHORT.to_json(), TURNS.to_json()])
    with pytest.raises(
        ValueError, match=r"rows, row 2: 1\d\d tokens, more than context_length=40; set data.token_policy.too_long"
    ):
        prepare(tmp_path, corpus, context_length=40)


def test_dropped_conversations_are_counted_with_their_tokens(tmp_path: Path):
    corpus = Named([SHORT.to_json(), TURNS.to_json()])
    (_, turns) = encoded(make_tokenizer(), literal("plain"), SHORT, TURNS)
    store = prepare(tmp_path, corpus, context_length=40, too_long="drop")
    assert len(store) == 1
    (counts,) = store.meta["drops"]["dropped"].values()
    assert counts == {"documents": 1, "characters": len(TURNS.readable()), "tokens": len(turns.ids)}
    assert store.meta["num_rows"] == 2


def test_cut_tokens_are_counted(tmp_path: Path):
    long = conversation(("user", "it was the best of times " * 40 + "\n\nwas it?"), ("assistant", "yes"))
    (whole,) = encoded(make_tokenizer(), literal("plain"), long)
    store = prepare(tmp_path, Named([long.to_json()]), context_length=64, too_long="truncate_middle")
    cut = "cut in the middle: longer than context_length=64"
    assert store.meta["drops"]["repaired"] == {cut: 1}
    (counts,) = store.meta["drops"]["dropped"].values()
    assert counts["tokens"] == len(whole.ids) - store.num_tokens > 0


EMPTY = conversation(("user", "one"), ("assistant", ""), ("user", "two"), ("assistant", "2"))


def test_empty_answers_are_refused_kept_or_left_out(tmp_path: Path):
    corpus = Named([EMPTY.to_json(), SHORT.to_json()])
    tokenizer = make_tokenizer()
    kept = prepare(tmp_path / "k", corpus, empty_answers="keep")
    left_out = prepare(tmp_path / "d", corpus, empty_answers="drop")
    refused = prepare(tmp_path / "r", corpus)
    assert [len(kept), len(left_out), len(refused)] == [2, 2, 1]
    assert "one" in tokenizer.decode(kept.slice(0, 0, int(kept.lengths[0])))
    assert "one" not in tokenizer.decode(left_out.slice(0, 0, int(left_out.lengths[0])))
    (row,) = refused.meta["quarantined"]["first"]
    assert row == {
        "place": "rows, row 1",
        "reason": "message 2 of the assistant is empty; set data.token_policy.empty_answers to keep or drop, or"
        " repair it",
    }
    with pytest.raises(ValueError, match="rows, row 1: message 2 of the assistant is empty"):
        prepare(tmp_path / "s", replace(corpus, max_quarantined=0.0))


def test_conversation_without_any_label_is_quarantined(tmp_path: Path):
    """A template whose answers are followed by no control token leaves an empty answer nothing to learn."""
    template = replace(literal("plain"), assistant=["Assistant:{content}\n"])
    empty = conversation(("user", "one"), ("assistant", ""))
    options = {"cache_dir": tmp_path, "name": "n", "progress": False}
    store = prepare_store(
        Named([empty.to_json(), SHORT.to_json()]),
        make_tokenizer(),
        policy=ConversationPolicy(template=template, empty_answers="keep"),
        **options,
    )
    (row,) = store.meta["quarantined"]["first"]
    assert row == {"place": "rows, row 1", "reason": "nothing of the conversation is a label"}


def test_duplicate_conversation_is_dropped_and_samples_of_one_are_not_duplicates(tmp_path: Path):
    filters = DocumentFilters(drop_duplicates=True)
    long = conversation(*[("user", "the same"), ("assistant", "again")] * 9).to_json()
    store = prepare(
        tmp_path, Named([long, SHORT.to_json(), long], filters=filters), context_length=60, too_long="split"
    )
    alone = prepare(tmp_path / "a", Named([long, SHORT.to_json()]), context_length=60, too_long="split")
    assert samples(store) == samples(alone)
    assert store.meta["drops"]["dropped"][DUPLICATE]["documents"] == len(alone) - 1


def test_filters_judge_what_is_said_and_not_its_json(tmp_path: Path):
    corpus = Named([SHORT.to_json(), TURNS.to_json()], filters=DocumentFilters(min_length=9, min_length_unit="words"))
    assert len(SHORT.to_json().split()) >= 9
    assert len(prepare(tmp_path, corpus)) == 1


KILLED = """
import sys
from pathlib import Path
from tests.datamodules.conversations.test_prepare import Chats, prepare
prepare(Path(sys.argv[1]), Chats(num_shards=3, sleeps=True), context_length=100, too_long="split")
"""


def test_killed_build_goes_on_and_gives_the_same_bytes(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cache")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    (parts,) = (tmp_path / "cache").glob("*.parts")
    assert (parts / "000000" / "loss_mask.bin").exists()
    again = prepare(tmp_path / "cache", Chats(num_shards=3), **SPLIT)
    assert content(again) == content(prepare(tmp_path / "other", Chats(num_shards=3), **SPLIT))


def test_key_changes_with_template_and_policy_and_not_with_a_name():
    tokenizer, corpus = qwen_like(), Texts([SHORT.to_json()])
    policies = [
        policy(),
        policy(context_length=9),
        policy(context_length=9, too_long="drop"),
        policy(loss_on="all"),
        policy(empty_answers="keep"),
        ConversationPolicy(template=literal("chatml")),
        ConversationPolicy(template=literal("chatqa2")),
        ConversationPolicy(template=replace(literal("plain"), texts_apart=True)),
        TokenPolicy(),
    ]
    assert len({store_key(corpus, tokenizer, one) for one in policies}) == len(policies)
    renamed = ConversationPolicy(template=replace(literal("plain"), name="other"))
    assert store_key(corpus, tokenizer, renamed) == store_key(corpus, tokenizer, policy())
    assert store_key(corpus, tokenizer, policy(too_long="drop")) == store_key(corpus, tokenizer, policy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"too_long": "cut"}, "too_long=cut is not known; set data.token_policy.too_long to one of error, split"),
        ({"loss_on": "user"}, "loss_on=user is not known"),
        ({"empty_answers": ""}, "empty_answers= is not known"),
        ({"context_length": 1}, "context_length=1 must be a whole number of at least 2"),
        ({"context_length": True}, "context_length=True must be"),
    ],
)
def test_fault_of_a_policy_names_its_key(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        policy(**options)


def test_template_that_the_tokenizer_cannot_write_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(ValueError, match=r"chat template chatml needs the token <\|im_start\|>"):
        prepare_store(
            Texts(["nothing is read"]),
            make_tokenizer(),
            policy=ConversationPolicy(template=literal("chatml")),
            cache_dir=tmp_path,
            name="n",
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_plain_text_keeps_its_key_and_has_no_mask(tmp_path: Path):
    """Stores that were made before conversations were known are found again."""
    options = {"cache_dir": tmp_path, "name": "n", "progress": False}
    store = prepare_store(Texts(["it was"]), make_tokenizer(), policy=TokenPolicy(prepend_bos=True), **options)
    assert store.loss_mask is None
    filters, tokens = DocumentFilters().fingerprint(), tokenizer_fingerprint(make_tokenizer())
    around = {"prepend_bos": True, "append_eos": True, "separator": ""}
    key = json.dumps([2, '["it was"]', filters, tokens, around], sort_keys=True)
    assert store.folder.name == hashlib.sha256(key.encode()).hexdigest()[:16]
    assert store.meta["policy"] == {"prepend_bos": True, "append_eos": True, "separator": ""}
    assert sorted(file.name for file in store.folder.iterdir()) == [
        "hashes.npy",
        "meta.json",
        "offsets.npy",
        "tokens.bin",
    ]
