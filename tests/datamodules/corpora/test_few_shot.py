import gzip
import inspect
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hydra.utils import instantiate
from transformers import PreTrainedTokenizerBase

from datamodules.corpora import decompress, few_shot
from datamodules.corpora.base import BadDocument, Corpus, Quarantine, QuarantinedRow, shards_of
from datamodules.corpora.few_shot import FewShotCorpus
from tests.datamodules.toy import make_tokenizer


def record(task: str, number: int, **changes) -> dict:
    """An example that occurs once, of 20 to 60 characters."""
    return {
        "task_name": task,
        "definition": f"Definition of {task}.",
        "inputs": f"{task} question {number} {'x' * (7 * number % 40)}",
        "targets": f"{task} answer {number}",
        "id": number,
    } | changes


def write(file: Path, records: list, compress: Callable[[bytes], bytes] = bytes) -> Path:
    file.write_bytes(compress(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in records)))
    return file


@pytest.fixture
def records() -> list[dict]:
    """Three tasks mixed, with 40, 40 and 1 examples."""
    rows = [record(task, number) for number in range(40) for task in ("alpha", "beta")]
    return [*rows[:11], record("gamma", 0), *rows[11:]]


@dataclass(frozen=True)
class Trained:
    """A tokenizer of so many tokens."""

    vocab_size: int

    def load(self) -> PreTrainedTokenizerBase:
        return make_tokenizer(self.vocab_size)


def make_corpus(path: Path | str, **changes: Any) -> FewShotCorpus:
    options: dict[str, Any] = {"max_tokens": 502, "characters_per_token": 1.0} | changes
    return FewShotCorpus(str(path), **options)


def read(path: Path | str, **options: Any) -> list[str]:
    return list(make_corpus(path, **options).texts())


def test_drawn_documents_are_what_the_records_give(tmp_path: Path):
    """The picture at the head of the module: its records in, its documents out."""
    drawn = inspect.cleandoc(few_shot.__doc__ or "")
    rows = [json.loads(line) for line in re.findall(r"\{\"task_name.*?\}", drawn)]
    assert len(rows) == 3
    lines = re.findall(r"^(?: {4}seed 3 {7}| {17})(\w+\.\\n.*)$", drawn, re.MULTILINE)
    expected = [line.replace("\\n", "\n") for line in lines]
    assert len(expected) == 2
    assert read(write(tmp_path / "a.jsonl", rows), seed=3) == expected


def test_every_example_is_used_once_in_a_document_of_its_task(tmp_path: Path, records: list[dict]):
    documents = read(write(tmp_path / "a.jsonl", records))
    seen = Counter()
    for document in documents:
        definition, *examples = document.split("\n\n")
        task = definition.removeprefix("Definition of ").removesuffix(".")
        for example in examples:
            source, target = example.split("\n")
            assert source.startswith(task)
            assert target.startswith(task)
            seen[source, target] += 1
    assert seen == Counter((row["inputs"], row["targets"]) for row in records)
    assert max(seen.values()) == 1


def test_documents_are_as_full_as_the_budget_allows(tmp_path: Path, records: list[dict]):
    documents = read(write(tmp_path / "a.jsonl", records), max_tokens=502)
    tasks = [document.split("\n\n")[0] for document in documents]
    assert len(documents) > 8
    for document, task, after, following in zip(documents, tasks, documents[1:], tasks[1:], strict=False):
        assert len(document) <= 500
        if task == following:  # the next one began only because its first example had no room here
            assert len(document) + 2 + len(after.split("\n\n")[1]) > 500
    assert len(documents[-1]) <= 500
    assert [task for k, task in enumerate(tasks) if task not in tasks[:k]] == [
        f"Definition of {task}." for task in ("alpha", "beta", "gamma")
    ], "tasks come in the order of the file"


def test_a_document_may_be_filled_to_the_last_character(tmp_path: Path):
    rows = [record("t", 1, inputs="aaaa", targets="bbbbb"), record("t", 2, inputs="cccc", targets="ddddd")]
    file = write(tmp_path / "a.jsonl", rows)
    whole = len("Definition of t.") + 2 * len("\n\naaaa\nbbbbb")
    assert [len(text) for text in read(file, max_tokens=whole + 2)] == [whole]
    assert [len(text) for text in read(file, max_tokens=whole + 1)] == [whole - 12] * 2


def test_budget_is_in_the_tokens_of_the_tokenizer(tmp_path: Path, records: list[dict]):
    file = write(tmp_path / "a.jsonl", records)
    for vocab_size in (258, 300):
        tokenizer = make_tokenizer(vocab_size)
        documents = read(file, max_tokens=600, tokenizer=Trained(vocab_size), characters_per_token=1e9)

        def count(text: str, tokenizer: PreTrainedTokenizerBase = tokenizer) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False))

        assert len(documents) > 6
        for document, following in pairwise(documents):
            assert count(document) <= 598, "two are kept free for BOS and EOS"
            if document.split("\n\n")[0] == following.split("\n\n")[0]:
                assert count(document + "\n\n" + following.split("\n\n")[1]) > 598
    estimated = read(file, max_tokens=600, characters_per_token=2.0)
    assert max(map(len, estimated)) <= 1196
    assert max(map(len, estimated)) > 1100


def test_a_tokenizer_of_the_configuration_is_loaded_where_it_is_needed(tmp_path: Path, records: list[dict]):
    """As a recipe writes it: `tokenizer: ${model.tokenizer}`."""
    file = write(tmp_path / "a.jsonl", records)
    trained_on = {"_target_": "datamodules.corpora.files.FileCorpus", "path": str(file), "text_field": "inputs"}
    tokenizer = {"_target_": "datamodules.tokens.tokenizer.TrainedTokenizer", "corpus": trained_on}
    node = {
        "_target_": "datamodules.corpora.few_shot.FewShotCorpus",
        "path": str(file),
        "max_tokens": 300,
        "tokenizer": tokenizer | {"vocab_size": 300, "context_length": 64},
    }
    corpus = instantiate(node, _convert_="all")
    sent = pickle.dumps(corpus.shards())
    documents = list(corpus.texts())
    assert len(documents) > 6
    assert pickle.dumps(corpus.shards()) == sent, "the loaded tokenizer is sent along"
    assert [document.text for shard in pickle.loads(sent) for document in shard.documents(Quarantine())] == documents


def test_without_a_definition_the_first_example_has_no_separator(tmp_path: Path):
    rows = [{"inputs": "aaaa", "targets": "bbbbb"}, {"inputs": "cccc", "targets": "ddddd"}]
    file = write(tmp_path / "a.jsonl", rows)
    fields = {"definition_field": None, "task_field": None}
    assert [len(text) for text in read(file, max_tokens=22 + 2, **fields)] == [22]
    assert [len(text) for text in read(file, max_tokens=21 + 2, **fields)] == [10, 10]


def natural_instructions(number: int, num_instances: int) -> dict:
    """A task's file as the project publishes them."""
    return {
        "Contributors": ["Some One"],
        "Categories": ["Question Answering"],
        "Definition": [f"Definition {number}.", "The same in other words."],
        "Positive Examples": [{"input": f"shown {number}", "output": f"right {number}", "explanation": "because"}],
        "Negative Examples": [{"input": f"shown {number}", "output": f"wrong {number}", "explanation": "not so"}],
        "Instances": [
            {"id": f"task-{k}", "input": f"question {number} {k}", "output": [f"answer {number} {k}", "other words"]}
            for k in range(num_instances)
        ],
    }


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_tasks_of_natural_instructions_are_read_from_their_own_files(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
):
    for number in (1, 2):
        content = json.dumps(natural_instructions(number, 30), indent=4).encode()
        (tmp_path / f"task00{number}_quoref.json{suffix}").write_bytes(compress(b"\xef\xbb\xbf" + content))
    corpus = make_corpus(tmp_path, max_tokens=400)
    documents = [document for shard in corpus.shards() for document in shard.documents(Quarantine())]
    seen = Counter()
    for text, place in documents:
        definition, *examples = text.split("\n\n")
        number = definition.removeprefix("Definition ").removesuffix(".")
        assert f"task00{number}_quoref.json{suffix}, task 'task00{number}_quoref', document " in place
        assert len(text) <= 398
        seen.update(examples)
    assert len(documents) > 4
    expected = [f"question {number} {k}\nanswer {number} {k}" for number in (1, 2) for k in range(30)]
    assert seen == Counter([*expected, "shown 1\nright 1", "shown 2\nright 2"])


def test_natural_instructions_as_together_published_them_hold_lists(tmp_path: Path):
    rows = [{"definition": ["Add."], "inputs": f"{k} + 1", "targets": [str(k + 1), "words"]} for k in range(3)]
    (text,) = read(write(tmp_path / "a.jsonl", rows), task_field=None)
    assert sorted(text.split("\n\n")) == ["0 + 1\n1", "1 + 1\n2", "2 + 1\n3", "Add."]


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"Definition": 3}, "", "field 'Definition' holds a int, where a string is needed"),
        ({"Instances": {}}, "", "field 'Instances' holds a dict, where a list is needed"),
        ({"Instances": [3]}, ", instance 1", "a JSON int, where an object is needed"),
        ({"Instances": [{"input": "a", "output": []}]}, ", instance 1", "field 'output' holds a list, where a string"),
        ({"Instances": [{"input": "a", "output": [" "]}]}, ", instance 1", "field 'output' is empty"),
        ({"Positive Examples": [{"output": "a"}]}, ", positive example 1", "no field 'input' (it has ['output'])"),
    ],
)
def test_bad_parts_of_a_task_file_are_set_aside_with_their_place(tmp_path: Path, change: dict, place: str, reason: str):
    file = tmp_path / "task1.json"
    file.write_text(json.dumps(natural_instructions(1, 1) | change))
    quarantine = Quarantine(strict=False)
    (shard,) = make_corpus(file, max_quarantined=0.5).shards()
    documents = list(shard.documents(quarantine))
    assert len(documents) == (1 if place else 0)
    ((found_place, found),) = quarantine.rows
    assert found_place == f"{file}{place}"
    assert found.startswith(reason)
    with pytest.raises(BadDocument, match=re.escape(f"{file}{place}: {reason}")):
        read(file)


def test_a_json_file_that_is_no_task_says_what_is_expected(tmp_path: Path):
    for content in ('[{"inputs": "a"}]', '{"inputs": "a",\n "targets": "b"}', '{"inputs": "a"}\n{"inputs": "b"}'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(BadDocument, match=r"a \.json file must be one task of Natural Instructions, records"):
            read(tmp_path / "a.json")


def test_an_example_beyond_the_budget_is_kept_whole(tmp_path: Path):
    rows = [record("t", number, inputs="y" * 900) for number in range(3)] + [record("t", 3)]
    documents = read(write(tmp_path / "a.jsonl", rows), max_tokens=202)
    assert sorted(len(document) > 900 for document in documents) == [False, True, True, True]
    assert sum(document.count("y" * 900) for document in documents) == 3


def test_examples_are_shuffled_by_seed_and_task_alone(tmp_path: Path, records: list[dict]):
    file = write(tmp_path / "a.jsonl", records)
    whole = read(file, max_tokens=100002)
    assert len(whole) == 3
    order = [int(number) for number in re.findall(r"alpha question (\d+)", whole[0])]
    assert sorted(order) == list(range(40))
    assert order != sorted(order)
    assert read(file, max_tokens=100002) == whole
    assert read(file, max_tokens=100002, seed=1)[0] != whole[0]
    other_order = [int(number) for number in re.findall(r"beta question (\d+)", whole[1])]
    assert other_order != order, "two tasks of the same size are shuffled alike"
    alone = write(tmp_path / "alone.jsonl", [row for row in records if row["task_name"] == "alpha"])
    assert read(alone, max_tokens=100002) == whole[:1], "another task changed this one's order"


def test_fields_of_p3_and_of_own_files(tmp_path: Path):
    p3 = [{"inputs_pretokenized": f"q{k}", "targets_pretokenized": f"a{k}", "inputs": [1, 2]} for k in range(5)]
    fields = {"definition_field": None, "task_field": None}
    (text,) = read(
        write(tmp_path / "a.jsonl", p3),
        input_field="inputs_pretokenized",
        target_field="targets_pretokenized",
        **fields,
    )
    assert sorted(text.split("\n\n")) == [f"q{k}\na{k}" for k in range(5)]

    own = [{"task": "Add.", "input": "1 {target} {0}", "target": "2 {input}"}]
    options = {"input_field": "input", "target_field": "target", "definition_field": "task", "task_field": None}
    (text,) = read(write(tmp_path / "b.jsonl", own), example="A: {target} <- Q: {input}!", separator=" | ", **options)
    assert text == "Add. | A: 2 {input} <- Q: 1 {target} {0}!", "braces of the data are data"


def test_same_task_with_another_definition_has_documents_of_its_own(tmp_path: Path):
    rows = [record("t", k, definition=f"Version {k % 2}.") for k in range(6)]
    documents = read(write(tmp_path / "a.jsonl", rows))
    assert [document.split("\n\n")[0] for document in documents] == ["Version 0.", "Version 1."]
    assert [document.count("answer") for document in documents] == [3, 3]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_give_the_same(
    tmp_path: Path, records: list[dict], suffix: str, compress: Callable[[bytes], bytes]
):
    plain = read(write(tmp_path / "a.jsonl", records))
    assert read(write(tmp_path / f"b.jsonl{suffix}", records, compress)) == plain


def test_a_file_is_a_shard_and_a_place_names_file_and_task(tmp_path: Path, records: list[dict]):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", [row | {"task_name": f"{name} {row['task_name']}"} for row in records])
    corpus = FewShotCorpus(str(tmp_path), max_tokens=502)
    assert isinstance(corpus, Corpus)
    shards = pickle.loads(pickle.dumps(shards_of(corpus)))
    assert [shard.name for shard in shards] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    documents = [document for shard in shards for document in shard.documents(Quarantine())]
    assert [document.text for document in documents] == list(corpus.texts())
    assert documents[1].place == f"{tmp_path}/a.jsonl, task 'a alpha', document 2"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"inputs": "\xff"}', "byte 12 is not valid UTF-8"),
        (b'{"inputs": ', "not JSON (Expecting value at column 11)"),
        (b"[1]", "a JSON list, where each line must be one JSON object"),
        (b"[" * 200_000, "not JSON that can be read"),
        (b'{"inputs": "a"}', "no field 'targets' (it has ['inputs']); set corpus.sources.*.target_field"),
        (b'{"targets": "a"}', "no field 'inputs' (it has ['targets']); set corpus.sources.*.input_field"),
        (b'{"inputs": "a", "targets": null}', "field 'targets' holds null, where a string is needed"),
        (b'{"inputs": 3, "targets": "a"}', "field 'inputs' holds a int"),
        (b'{"inputs": "a", "targets": " "}', "field 'targets' is empty"),
        (b'{"inputs": "a\\ud83d", "targets": "a"}', "field 'inputs': character 1 is half of a surrogate pair"),
        (b'{"inputs": "a", "targets": "b"}', "no field 'task_name' (it has ['inputs', 'targets'])"),
        (b'{"inputs": "a", "targets": "b", "task_name": "c"}', "no field 'definition'"),
    ],
)
def test_bad_record_is_set_aside_with_line_and_reason(tmp_path: Path, line: bytes, reason: str):
    file = tmp_path / "a.jsonl"
    good = json.dumps(record("t", 1)).encode()
    file.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n" + good.replace(b"answer 1", b"answer 2") + b"\n")
    quarantine = Quarantine(strict=False)
    (shard,) = make_corpus(file, max_quarantined=0.5).shards()
    (document,) = shard.documents(quarantine)
    assert document.text.count("answer") == 2
    ((place, found),) = quarantine.rows
    assert isinstance(quarantine.rows[0], QuarantinedRow)
    assert place == f"{file}, line 3"
    assert found.startswith(reason)
    with pytest.raises(BadDocument, match=re.escape(f"{file}, line 3: {reason}")) as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_broken_off_and_useless_files_are_errors(tmp_path: Path, records: list[dict]):
    whole = zstandard.compress(b"".join(json.dumps(row).encode() + b"\n" for row in records))
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst cannot be read: .*; is it complete\?"):
        read(tmp_path / "a.jsonl.zst")
    (tmp_path / "b.jsonl").write_bytes(b"\n \n")
    with pytest.raises(ValueError, match=r"b\.jsonl holds no examples; remove it from corpus\.sources\.\*\.path"):
        read(tmp_path / "b.jsonl")
    quarantine = Quarantine(strict=False)
    (shard,) = make_corpus(tmp_path / "b.jsonl", max_quarantined=0.1).shards()
    assert list(shard.documents(quarantine)) == []
    assert quarantine.rows == [QuarantinedRow(f"{tmp_path}/b.jsonl", "holds no examples")]
    (tmp_path / "c.txt").write_text("text")
    with pytest.raises(ValueError, match=r"c\.txt is no \.jsonl or \.json file.*; set corpus\.sources\.\*\.path"):
        read(tmp_path / "c.txt")


def test_file_that_changed_since_the_corpus_was_dealt_out_is_an_error(tmp_path: Path, records: list[dict]):
    (shard,) = make_corpus(write(tmp_path / "a.jsonl", records)).shards()
    write(tmp_path / "a.jsonl", records[1:])
    with pytest.raises(BadDocument, match=r"a\.jsonl changed while it was being read"):
        list(shard.documents(Quarantine()))


def test_file_that_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decompress, "UNJUDGED_BYTES", 1 << 16)
    rows = [record("t", number, inputs="0" * 1_000_000) for number in range(2)]
    file = write(tmp_path / "a.jsonl.zst", rows, zstandard.compress)
    with pytest.raises(ValueError, match=r"unpacks to more than .* raise corpus\.sources\.\*\.max_compression_ratio"):
        read(file)
    assert len(read(file, max_compression_ratio=1e9)) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_tokens": 2}, r"corpus\.sources\.\*\.max_tokens=2 must be at least 3"),
        ({"characters_per_token": 0.0}, r"corpus\.sources\.\*\.characters_per_token=0\.0 must be positive"),
        ({"max_quarantined": 1.5}, r"corpus\.sources\.\*\.max_quarantined=1\.5 must be from 0 to 1"),
        ({"seed": -1}, r"corpus\.sources\.\*\.seed=-1 at least 0"),
        ({"example": "{input}"}, r"corpus\.sources\.\*\.example='\{input\}' must hold \{input\} once and \{target\}"),
        ({"example": "{input}{target}{input}"}, r"must hold \{input\} once"),
    ],
)
def test_impossible_parameters_name_the_key(change: dict, told: str):
    with pytest.raises(ValueError, match=told):
        make_corpus("a", **change)


def test_fingerprint_follows_the_content_and_every_parameter(tmp_path: Path, records: list[dict]):
    file = write(tmp_path / "a.jsonl", records)
    elsewhere = write(tmp_path / "b.jsonl", records)

    def fingerprint(path: Path = file, **change: Any) -> str:
        return make_corpus(path, **change).fingerprint()

    assert fingerprint(elsewhere) == fingerprint()
    assert fingerprint(max_quarantined=0.1, max_compression_ratio=9.0) == fingerprint()
    same = [fingerprint(tokenizer=Trained(300), characters_per_token=ratio) for ratio in (1.0, 4.0)]
    assert same[0] == same[1] != fingerprint(tokenizer=Trained(310))
    changes = [
        {"max_tokens": 503},
        {"characters_per_token": 2.0},
        {"tokenizer": Trained(300)},
        {"input_field": "id"},
        {"target_field": "id"},
        {"definition_field": None},
        {"task_field": None},
        {"example": "{input} {target}"},
        {"separator": "\n"},
        {"seed": 1},
        {"path": write(tmp_path / "c.jsonl", records[1:])},
    ]
    assert len({fingerprint(), *(fingerprint(**change) for change in changes)}) == 1 + len(changes)
