"""`python -m recipes.chat`: the demo model answers questions about files that it can read, that are too long, and that
change."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from datamodules.corpora.files import FileCorpus
from datamodules.evaluation import NeedleGrid
from lightning_modules.evaluation.generation import Decoding, generate
from lightning_modules.models.index.configuration import IndexConfig
from lightning_modules.models.index.modeling import IndexForCausalLM
from lightning_modules.rope.methods import DynamicNTK
from lightning_modules.rope.patch import apply_rope_method
from recipes.chat import chat
from recipes.chatting import terminal
from recipes.chatting.opening import Opened, find_model, open_model, readable_length
from recipes.chatting.session import Session
from recipes.chatting.templates import prompt_form
from recipes.chatting.text_file import TextFile
from recipes.chatting.words import ChatWords
from recipes.cli import exit_status

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "lightning_modules" / "models" / "demo"
CLASSICS = ROOT / "datamodules" / "corpora" / "classics" / "heldout.jsonl.zst"
PAIR = "\nThe pair is light field.\n"


@pytest.fixture(scope="module")
def prose() -> str:
    return next(iter(FileCorpus(path=str(CLASSICS)).texts()))[5000:60000]


@pytest.fixture
def short(tmp_path: Path, prose: str) -> Path:
    file = tmp_path / "short.txt"
    file.write_text(prose[:400] + PAIR + prose[400:800], encoding="utf-8")
    return file


@pytest.fixture
def long(tmp_path: Path, prose: str) -> Path:
    file = tmp_path / "long.txt"
    file.write_text(prose[:300] + PAIR + prose[300:30000] + "\nThe pair is man king.\n" + prose[30000:30300])
    return file


@pytest.fixture(scope="module")
def opened() -> Opened:
    return open_model(ChatWords(model="demo", file=Path("any"), max_new_tokens=16))


class Conversation:
    """A session with what it said to the user."""

    def __init__(self, opened: Opened, file: Path, *, max_new_tokens: int = 16, **options: Any) -> None:
        self.said: list[str] = []
        text = TextFile(file)
        text.read()
        decoding = Decoding(max_new_tokens=max_new_tokens)
        form = prompt_form(options.pop("chat_template", "auto"), opened.tokenizer)
        self.session = Session(opened, form, text, decoding=decoding, say=self.said.append, **options)

    def ask(self, question: str) -> Any:
        return self.session.ask(question).generation


def test_one_answer_through_the_front_door(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=demo", f"file={short}", "prompt=The pair is light", "max_new_tokens=8"]
    assert exit_status(lambda: chat(words)) == 0
    out, err = capsys.readouterr()
    assert out == "field.\n"
    assert re.search(r"\[model demo: 4\.8 M parameters in fp32 on cpu, reads 512 tokens; asked as a base model", err)
    assert re.search(
        r"\[prompt of \d+ tokens, first token after [\d.]+ s; answer of 3 tokens at [\d.]+ tokens/s\]", err
    )


def test_needles_of_the_evaluation_grid_are_found(opened: Opened, prose: str, tmp_path: Path) -> None:
    tokenizer: Any = opened.tokenizer
    tokens = np.array(tokenizer(prose, add_special_tokens=False, verbose=False)["input_ids"])
    grid = NeedleGrid(
        tokenizer=tokenizer,
        haystack_tokens=tokens,
        haystack_offsets=np.array([0, len(tokens)]),
        lengths=[400],
        depths=[0.1, 0.5, 0.9],
        num_samples=2,
        seed=0,
    )
    found = []
    for depth in grid.depths:
        for sample, row in enumerate(grid.rows(400, depth).input_ids):
            key, value = grid.fact(depth, sample)
            file = tmp_path / f"{depth}-{sample}.txt"
            text = tokenizer.decode(row.tolist())
            question, answer = grid.format.ask(key), grid.format.reply(value)
            assert text.endswith(question + answer)
            file.write_text(text.removesuffix(question + answer), encoding="utf-8")
            found.append(Conversation(opened, file).ask(question.strip()).text == f"{answer}.")
    assert found == [True] * 6


def test_second_question_does_not_read_the_text_again(opened: Opened, short: Path) -> None:
    talk = Conversation(opened, short)
    first, second = talk.ask("The pair is light"), talk.ask("The pair is light")
    assert (first.num_reused_tokens, first.text) == (0, " field.")
    assert second.num_reused_tokens >= first.num_prompt_tokens
    turns = "\nThe pair is light field.\nThe pair is light"
    fresh = opened.tokenizer(short.read_text("utf-8").rstrip("\n") + turns)["input_ids"]
    decoding = Decoding(max_new_tokens=16, stop_ids=(1,), stop_strings=("\n",))
    assert second.num_prompt_tokens == len(fresh)
    assert second.token_ids == generate(opened.model, opened.tokenizer, fresh, decoding=decoding).token_ids
    assert talk.said == []


def test_changed_file_is_read_again_from_the_change_on(opened: Opened, short: Path) -> None:
    talk = Conversation(opened, short)
    first = talk.ask("The pair is light")
    short.write_text(short.read_text("utf-8").replace("light field", "light king"), encoding="utf-8")
    second = talk.ask("The pair is light")
    assert (first.text, second.text) == (" field.", " king.")
    assert 0 < second.num_reused_tokens < first.num_prompt_tokens - 50
    (said,) = talk.said
    assert re.fullmatch(
        rf"{short} has changed: read again, \d+ tokens where it had \d+, and what was said so far is forgotten", said
    )
    assert [turn.answer for turn in talk.session.turns] == [" king."]


def test_vanished_file_is_said_and_its_text_answers_on(opened: Opened, short: Path) -> None:
    talk = Conversation(opened, short)
    talk.ask("The pair is light")
    short.unlink()
    assert talk.ask("The pair is light").text == " field."
    assert re.search(r"cannot be read .* answering from what was read before", talk.said[0])


def test_long_text_loses_its_middle_and_the_answer_has_its_room(opened: Opened, long: Path) -> None:
    tokenizer: Any = opened.tokenizer
    seen: list[list[int]] = []
    talk = Conversation(opened, long, several=False)
    question = "The pair is man"
    encode = talk.session.form.encode
    talk.session.form.encode = lambda *of: seen.append(encode(*of)) or seen[-1]  # type: ignore[method-assign]
    assert talk.ask(question).text == " king."
    text, ids = long.read_text("utf-8"), tokenizer(long.read_text("utf-8"), verbose=False)["input_ids"]
    asked = tokenizer("\n" + question)["input_ids"]
    prompt = seen[-1]
    assert 512 - 16 - 2 <= len(prompt) <= 512 - 16
    assert prompt[-len(asked) :] == asked
    read = tokenizer.decode(prompt[: -len(asked)])
    (said,) = talk.said
    match = re.search(r"(\d+) of the text's (\d+) tokens are cut out of its middle, (\d+) to (\d+) \(lines", said)
    assert match
    num_cut, num_tokens, first, last = map(int, match.groups())
    assert num_tokens == len(ids)
    assert num_cut == last - first + 1
    begin, end = tokenizer.decode(ids[: first - 1]), tokenizer.decode(ids[last:])
    assert text.startswith(begin)
    assert text.endswith(end)
    assert read == (begin + end).rstrip("\n")
    assert abs(len(ids[: first - 1]) - len(ids[last:])) <= 1
    assert "512 tokens that are read, of which 16 are kept free for the answer" in said


def test_questions_about_a_long_text_share_what_was_read_of_it(opened: Opened, long: Path) -> None:
    talk = Conversation(opened, long)
    answers = [talk.ask(f"The pair is {key}") for key in ("man", "light", "man")]
    assert [answer.text for answer in answers] == [" king.", " field.", " king."]
    assert all(now.num_reused_tokens > 400 for now in answers[1:])
    assert len(talk.said) == 1  # the cut, once


def test_early_questions_are_forgotten_where_there_is_no_room(opened: Opened, long: Path) -> None:
    talk = Conversation(opened, long)
    for _ in range(12):
        answer = talk.ask("The pair is man")
        assert answer.num_prompt_tokens <= 512 - 16
    assert answer.text == " king."
    assert any(re.match(r"\d+ of \d+ earlier questions are forgotten", said) for said in talk.said)


def test_question_that_is_too_long_is_said_and_the_next_is_answered(opened: Opened, short: Path) -> None:
    talk = Conversation(opened, short)
    with pytest.raises(ValueError, match=r"the question takes \d+ tokens, and there is room for 496"):
        talk.ask("word " * 600)
    assert talk.ask("The pair is light").text == " field."


def test_questions_come_from_a_pipe_until_its_end(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("The pair is light\n\nThe pair is light\n"))
    assert exit_status(lambda: chat(["model=demo", f"file={short}", "max_new_tokens=8"])) == 0
    out, err = capsys.readouterr()
    assert out == "field.\nfield.\n"
    assert re.search(r"prompt of \d+ tokens \(\d+ of them read before\)", err)


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(
    opened: Opened, short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation(opened, short, max_new_tokens=40)
    lines: list[Any] = ["What is light?", KeyboardInterrupt(), "The pair is light", EOFError()]

    def line() -> str:
        found = lines.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    pieces: list[str] = []

    def press(text: str = "", **options: Any) -> None:
        print(text, **options)
        if options.get("flush") and options.get("end") == "" and text.strip() and len(lines) == 3:
            pieces.append(text)
            if len(pieces) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "read_line", line)
    monkeypatch.setattr(terminal, "print", press, raising=False)
    terminal.converse_by_line(talk.session)
    out, err = capsys.readouterr()
    first, second = talk.session.turns
    assert "stopped by Ctrl-C" in err
    assert first.answer.strip() == "".join(pieces).strip()
    assert second.question == "The pair is light"
    assert out.splitlines()[-1] == second.answer.strip()


def test_interrupted_single_answer_is_status_130(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "open_model", interrupted)
    with pytest.raises(SystemExit) as left:
        chat(["model=demo", f"file={short}", "prompt=x"])
    assert left.value.code == 130


def run_with_export(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copytree(DEMO, folder / "export")
    (folder / "run.json").write_text(json.dumps({"recipe": "demo/extend"}))
    return folder


def test_runs_are_found_by_folder_by_latest_and_as_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_export(tmp_path / "outputs" / "demo" / "extend" / "1")
    (run.parent / "latest").symlink_to("1")
    monkeypatch.chdir(tmp_path)
    for name in (str(run), str(run.parent / "latest"), str(run.parent), "latest", str(run / "export")):
        assert Path(find_model(name).source).resolve() == (run / "export").resolve()
        assert find_model(name).run == run.resolve()
    assert find_model("demo").run is None


def test_adapter_is_read_with_the_rope_beside_it(tmp_path: Path, short: Path) -> None:
    import warnings

    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    apply_rope_method(base, DynamicNTK(), 2048)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.peft_config["default"].base_model_name_or_path = str(DEMO)
        adapted.save_pretrained(str(tmp_path / "adapter"))
    base.config.save_pretrained(tmp_path / "adapter")
    words = ChatWords(model=str(tmp_path / "adapter"), file=short)
    opened = open_model(words)
    assert opened.context_length == 2048
    assert opened.model.config.rope_parameters["rope_type"] == "dynamic"
    ids = torch.arange(20)[None] + 300
    adapted.eval()
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids).logits, adapted(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_length_of_a_dynamic_rope_is_not_its_base_models(opened: Opened) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    apply_rope_method(model, DynamicNTK(), 2048)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.model_max_length = int(1e30)
    assert readable_length(model.config, tokenizer) == 2048
    tokenizer.model_max_length = 4096  # as our export writes it
    assert readable_length(model.config, tokenizer) == 4096
    assert readable_length(opened.model.config, tokenizer) == 512


def test_index_answers_as_the_llama_that_it_is(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = IndexForCausalLM(IndexConfig(vocab_size=4096, num_key_value_heads=2, norm_head=True, **sizes)).eval()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path)
    opened = open_model(ChatWords(model=str(tmp_path), file=Path("any")))
    assert type(opened.model) is LlamaForCausalLM
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_have_the_dtype_asked_for_and_rope_tables_fp32(dtype: str, expected: torch.dtype) -> None:
    opened = open_model(ChatWords(model="demo", file=Path("any"), dtype=dtype, device="cpu"))
    assert {parameter.dtype for parameter in opened.model.parameters()} == {expected}
    assert {buffer.dtype for buffer in opened.model.buffers()} == {torch.float32}
    assert opened.notices == ()


def without(folder: Path, *names: str) -> Path:
    shutil.copytree(DEMO, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def wrong_weights(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no tokenizer": (lambda f: without(f, "tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
    "no weights": (lambda f: without(f, "model.safetensors"), "cannot be read"),
    "other weights": (wrong_weights, "cannot be read"),
    "no config": (lambda f: without(f, "config.json"), "has no config.json"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_that_is_no_model_is_one_sentence(
    name: str, tmp_path: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = FOLDERS[name]
    folder = make(tmp_path / "model")
    assert exit_status(lambda: chat([f"model={folder}", f"file={short}", "prompt=x"])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert f"model={folder}" in err
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=demo", "file={tmp}/none.txt"], "none.txt cannot be read (No such file or directory)"),
        (["model=demo", "file={tmp}/empty.txt"], "empty.txt is empty"),
        (["model=demo", "file={tmp}/binary"], "binary is binary and no text"),
        (["model=demo", "file={tmp}"], "is a folder; name a file in it"),
        (["model=/no/such/folder", "file={file}"], "model=/no/such/folder does not exist"),
        (["model=demo", "file={file}", "context_length=513"], "context_length=513 is more than the 512 tokens"),
        (["model=demo", "file={file}", "max_new_tokens=512"], "max_new_tokens=512 leaves nothing of the 512 tokens"),
        (
            ["model=demo", "file={file}", "chat_template=no"],
            "chat_template=no is not known; choose auto, none or one of",
        ),
        (["model=demo", "file={file}", "chat_template=chatml"], "needs the token <|im_start|>"),
        (["model=demo", "file={file}", "device=tpu9"], "device=tpu9 cannot be used"),
        (["model={run}", "file={file}"], "has no export yet; write it with python -m recipes.export"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], sentence: str, tmp_path: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"recipe": "demo/extend"}')
    given = [word.format(tmp=tmp_path, file=short, run=tmp_path / "run") for word in words]
    assert exit_status(lambda: chat([*given, "prompt=x"])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_tokenizer_of_another_model_is_said(opened: Opened, short: Path) -> None:
    talk = Conversation(opened, short)
    talk.session.form.encode = lambda *_: [1, 5000]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="gives token 5000, and the model has 4096"):
        talk.ask("x")
