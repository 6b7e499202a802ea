"""Fine-tuning through the front door, on conversations in a file: what is learned, mistakes, the second run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.cli import run
from recipes.train import train
from recipes.validate import validate
from tests.recipes.conftest import WORDS
from tests.recipes.words import replaced

Refused = Callable[..., list[str]]


def conversation(k: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"{' '.join(WORDS[: 3 + k % 9])}?"}
    return {"messages": [question, {"role": "assistant", "content": " ".join(WORDS[k % 5 : k % 5 + 3])}]}


def write_records(file: Path, records: Sequence[object]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


@pytest.fixture
def words(tiny: list[str], tmp_path: Path) -> list[str]:
    """Words that fine-tune the tiny model on a file of 24 conversations, six a step."""
    file = write_records(tmp_path / "train.jsonl", [conversation(k) for k in range(24)])
    kept = [word for word in tiny if not word.startswith(("corpus", "data.", "evaluation.", "output_dir", "cache_dir"))]
    return [
        *kept,
        "stage=supervised_finetuning",
        "data=supervised_finetuning",
        "corpus=local_conversations",
        f"corpus.sources.conversations.rows.path={file}",
        "chat_template=plain",
        "packing=best_fit",
        "packing.document_mask=true",
        "packing.reset_positions=true",
        "data.samples_per_step=6",
        "data.max_steps=2",
        "evaluation.lengths=[64,512]",
        "evaluation.perplexity.tail_tokens=16",
        f"output_dir={tmp_path}/runs/out",
        f"cache_dir={tmp_path}/runs/cache",
    ]


@pytest.fixture
def refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the words with changes and returns the sentences; no run may have been begun for them."""

    def refuse(*changes: str, records: Sequence[object] | None = None) -> list[str]:
        if records is not None:
            write_records(tmp_path / "train.jsonl", records)
        capsys.readouterr()
        assert run(replaced(words, *changes), train) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert not (tmp_path / "runs" / "out").exists()
        return [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]

    return refuse


def the_run(folder: Path) -> Path:
    (found,) = (path for path in (folder / "runs" / "out" / "demo" / "extend").iterdir() if not path.is_symlink())
    return found


def test_epochs_end_the_run_and_every_conversation_is_read_so_often(words: list[str], tmp_path: Path) -> None:
    assert run(replaced(words, "data.max_steps=null", "data.epochs=2"), train) == 0
    info = json.loads((the_run(tmp_path) / "run.json").read_text(encoding="utf-8"))
    assert (info["status"], info["steps"]) == ("finished", 2 * 24 // 6)
    ledger = json.loads((the_run(tmp_path) / "ledger.json").read_text(encoding="utf-8"))
    (source,) = ledger["sources"]
    assert (source["source"], source["epochs"], source["pieces"]) == ("conversations", 2.0, 48)
    assert info["tokens"] == ledger["tokens"]


def test_layouts_train_alike(words: list[str], tmp_path: Path) -> None:
    """Two whole runs through the trainer: packed, and one conversation a row."""
    weights = []
    for layout in ("best_fit", "padded"):
        changes = [f"packing={layout}", f"run_folder={tmp_path}/runs/{layout}", "precision=fp32", "data.max_steps=3"]
        assert run(replaced(words, *changes, "data.loss_weighting=sqrt"), train) == 0
        (file,) = (tmp_path / "runs" / layout / "checkpoints").iterdir()
        weights.append(torch.load(file, weights_only=True)["state_dict"])
    packed, padded = weights
    assert packed.keys() == padded.keys()
    for name, tensor in packed.items():
        torch.testing.assert_close(tensor, padded[name], rtol=1e-4, atol=1e-4, msg=name)


def test_rows_are_shown_with_what_is_learned_and_empty_ones_too(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recipes.showing.data import main

    changes = ["data.max_steps=null", "data.epochs=1", "data.samples_per_step=10", "packing=padded"]
    changes += ["data.loss_weighting=sqrt", f"figure={tmp_path}/row.png", "colour=never"]
    shown = []
    for i in (0, 29, 30):
        assert main(replaced(words, *changes, f"i={i}")) == (2 if i == 30 else 0)
        out, err = capsys.readouterr()
        shown.append(out)
    assert "⟦User: the sea was" in shown[0]
    assert "ssistant:⟧" in shown[0]  # of a longer row both ends
    assert "labels weigh 0.5 in the loss" in shown[0]  # three words and EOS
    assert shown[1].startswith("row 29 of 0-29, in optimizer step 2 of 0-2 with the rows 20-29\nno tokens: ")
    assert err.endswith("i=30 is beyond the run, whose 30 rows are 0 to 29; set i, or data.epochs for a longer run\n")


def test_conversations_are_not_read_as_the_json_that_they_are_written_in(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [word for word in words if not word.startswith("data.samples_per_step")]
    changes = ["stage=continued_pretraining", "data=continued_pretraining", "data.tokens_per_step=2048"]
    assert run(replaced(kept, *changes), train) == 2
    sentence = "error: corpus.sources.conversations holds conversations, which stage=continued_pretraining would read"
    assert sentence in capsys.readouterr().err


def test_what_messages_tell_to_set_can_be_set(words: list[str]) -> None:
    from recipes.compose import compose

    source = "corpus.sources.conversations"
    changes = ["data.token_policy.loss_on=last_answer", "data.token_policy.empty_answers=keep"]
    changes += [f"{source}.roles={{human: user}}", f"{source}.rows.filters.drop_duplicates=true"]
    validate(compose([*words, *changes]))


def test_unusable_conversations_are_named_with_their_line(refused: Refused) -> None:
    good, user = conversation(0), {"role": "user", "content": "a"}
    for bad, reason in (
        ({"messages": [user, user, {"role": "assistant", "content": "b"}]}, "user"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "robot"),
        ({"messages": [user]}, "assistant"),
        ({"talk": "a"}, "messages"),
    ):
        (sentence,) = refused(records=[good, bad])
        assert "train.jsonl, line 2" in sentence
        assert reason in sentence


def test_conversation_that_no_row_holds_is_refused_with_the_way_out(refused: Refused) -> None:
    long = conversation(0)
    long["messages"][0]["content"] = " ".join(WORDS * 200)
    (sentence,) = refused(records=[conversation(0), long])
    assert "line 2" in sentence
    assert "too_long" in sentence


def test_longer_conversations_are_dropped_where_that_is_asked_and_counted(words: list[str], tmp_path: Path) -> None:
    long = conversation(0)
    long["messages"][0]["content"] = " ".join(WORDS * 200)
    write_records(tmp_path / "train.jsonl", [*(conversation(k) for k in range(11)), long])
    changes = ["data.token_policy.too_long=drop", "data.max_steps=null", "data.epochs=1"]
    assert run(replaced(words, *changes), train) == 0
    (meta,) = (tmp_path / "runs" / "cache").glob("*/meta.json")
    facts = json.loads(meta.read_text(encoding="utf-8"))
    assert facts["num_documents"] == 11
    (dropped,) = facts["drops"]["dropped"].items()
    assert dropped[0] == "longer than context_length=1024"
    assert dropped[1]["documents"] == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["data.tokens_per_step=2048"], "data.tokens_per_step=2048 and data.samples_per_step=6: a step is so many"),
        (["data.epochs=2"], "data.max_steps=2 and data.epochs=2: a run is so many steps or so many epochs"),
        (["data.max_steps=null"], "data.max_steps=null and data.epochs=null: a run is so many steps or so many"),
        (["stage=continued_pretraining"], "stage=continued_pretraining does not go with the data of another stage"),
        (["data.loss_weighting=mean"], "data.loss_weighting=mean is not known; allowed are token, sample, sqrt"),
        (["data.mix_by=rows"], "data.mix_by=rows is not known; allowed are tokens, samples"),
        (["data.samples_per_step=0"], "data.samples_per_step=0 must be a whole number of at least 1"),
        (["chat_template=tokenizer"], "chat_template"),
        (["packing=concat_chunk"], "packing=concat_chunk cuts conversations at the edges of rows"),
        (["data.token_policy.too_long=cut"], "too_long=cut is not known"),
        (
            ["data.max_steps=null", "data.epochs=1", "length_schedule=linear"],
            "data.epochs leaves the number of steps open, which length_schedule needs",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(change: list[str], sentence: str, refused: Refused) -> None:
    assert any(sentence in line for line in refused(*change))


def test_corpora_for_ones_own_conversations_validate(words: list[str], tmp_path: Path) -> None:
    from recipes.compose import compose

    file = tmp_path / "train.jsonl"
    two = [word for word in words if not word.startswith("corpus")]
    two += [
        "corpus=long_and_short_conversations",
        f"corpus.sources.long.rows.path={file}",
        f"corpus.sources.short.rows.path={file}",
        "corpus.long_fraction=0.001",
        "data.mix_by=samples",
    ]
    composed = compose(two)
    validate(composed)
    assert dict(composed.config.corpus.mixture) == {"long": 0.001, "short": 0.999}
