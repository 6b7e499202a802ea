"""A mistake of the user's: one clear sentence, status 2, and nothing written."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import compose as composing
from recipes.cli import run
from recipes.prepare import prepare
from recipes.train import train
from tests.recipes.words import replaced

Refusal = Callable[..., list[str]]


def never(_: object) -> None:
    pytest.fail("the mistake was not noticed")


@pytest.fixture
def refusal(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs tiny words with changes and returns the sentences; nothing may have been written for them."""

    def refused(*changes: str, action: Callable[..., None] = never, words: list[str] | None = None) -> list[str]:
        capsys.readouterr()
        assert run(replaced(words or tiny, *changes), action) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert not (tmp_path / "outputs").exists()
        assert action is not never or not (tmp_path / "cache").exists()
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert all(len(line) < 500 and not line.rstrip().endswith(":") for line in lines)
        return [line.removeprefix("error: ") for line in lines]

    return refused


def test_tiny_words_are_right(tiny: list[str], tmp_path: Path) -> None:
    seen = []
    assert run(tiny, seen.append) == 0
    assert len(seen) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("data.max_steps=few", "data.max_steps=few must be a whole number of at least 1"),
        ("data.max_steps=0", "data.max_steps=0 must be a whole number of at least 1"),
        ("data.max_steps=2.5", "data.max_steps=2.5 must be a whole number of at least 1"),
        ("data.max_steps=null", "data.max_steps=null must be a whole number"),
        ("data.seed=x", "data.seed=x must be a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number above 0"),
        ("optimizer.lr=-1", "optimizer.lr=-1 must be a number above 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan must be a number above 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be two numbers"),
        ("optimizer.eps=small", "optimizer.eps=small must be a number"),
        ("packing.document_mask=maybe", "packing.document_mask=maybe must be true or false"),
        ("trainer.gradient_clip_norm=x", "trainer.gradient_clip_norm=x must be a number above 0, or null"),
        ("trainer.progress_bar=3", "trainer.progress_bar=3 must be true or false"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu is not known; allowed are auto, cpu, gpu"),
        ("trainer.devices=2", "trainer.devices=2 with strategy=single; set strategy=ddp or strategy=fsdp"),
        ("precision=fp16", "precision=fp16 is not known; allowed are bf16, fp32"),
        ("export.format=onnx", "export.format=onnx is not known; allowed are hugging_face, gguf"),
        ("export.max_shard_size=5", "export.max_shard_size=5 is not a size"),
        ("evaluation=5", "evaluation=5 does not exist; there are: answers, default"),
        ("evaluation.perplexity=5", "evaluation.perplexity=5 must have keys of its own below it"),
        ("evaluation.lengths=64", "evaluation.lengths=64 must be"),
        ("evaluation.lengths=[64,2048]", "evaluation.lengths [2048] are beyond context_length=1024"),
        ("evaluation.lengths=[16,64]", "evaluation.lengths [16] are not above evaluation.perplexity.tail_tokens=16"),
        ("evaluation.needle.depths=[2]", "evaluation.needle.depths=[2] must be numbers from 0 to 1"),
        (
            "data.tokens_per_step=2000",
            "data.tokens_per_step=2000 is not a multiple of packing.max_seqlen=1024; the nea",
        ),
        ("packing.max_seqlen=2048", "packing.max_seqlen=2048 is beyond context_length=1024"),
        ("packing.max_seqlen=${nothing}", "packing.max_seqlen=${nothing} leads nowhere (Interpolation key 'nothing'"),
        ("corpus.mixture.classics=-1", "corpus.mixture.classics=-1 is not a share; ratios are finite and not negative"),
        ("corpus.mixture.classics=0", "corpus.mixture gives no source a share"),
        ("+corpus.mixture.books=1", "corpus.mixture.books names no source; corpus.sources are classics"),
        ("corpus.phases=[{tokens: 9, mixture: {classics: -1}}]", "corpus.phases[0].mixture.classics=-1 is not a share"),
        ("corpus.phases=[{tokens: 9, mixture: {books: 1}}]", "corpus.phases[0].mixture.books names no source"),
        ("corpus.mix_at=token", "corpus.mix_at=token is not known; allowed are sequence, document"),
        ("corpus.at_exhaustion=stop", "corpus.at_exhaustion=stop is not known; allowed are error, renormalise"),
        (
            "corpus.sampling={books: {max_epochs: 1}}",
            "corpus.sampling.books names no source; corpus.sources are classics",
        ),
        ("corpus.sampling={classics: {epochs: 1}}", "must have keys among upsample, downsample and max_epochs"),
        (
            "corpus.sampling={classics: {max_epochs: 0}}",
            "corpus.sampling.classics.max_epochs=0 must be a number above 0",
        ),
        ("data.balance_window_steps=-1", "data.balance_window_steps=-1 must not be negative"),
        ("corpus.mixture=classics", "corpus.mixture=classics must be null or {source: share}"),
        ("corpus.phases=classics", "corpus.phases=classics must be null or a list of {tokens, mixture}"),
        ("corpus.phases={tokens: 9, mixture: {classics: 1}}", "must be null or a list of {tokens, mixture}"),
        ("corpus.phases=[{tokens: 9, mixture: null}]", "corpus.phases[0].mixture=None must be {source: share}"),
        ("corpus.sampling=[1]", "corpus.sampling=[1] must be null or {source: {max_epochs: 2}}"),
        ("corpus.sampling=classics", "corpus.sampling=classics must be null or {source: {max_epochs: 2}}"),
        ("seed=-1", "seed=-1 must not be negative"),
        ("corpus.phases=[{token: 9}]", "must have the keys tokens and mixture, and no other"),
        ("corpus.phases=[{tokens: few, mixture: {classics: 1}}]", "corpus.phases[0].tokens=few must be a number"),
        ("+seeed=1", "seeed is not a key that anything reads; did you mean seed?"),
        ("rope.rope_theta=-5.0", "rope.rope_theta=-5.0 is not a positive number; set rope.rope_theta"),
        ("model.original_context_length=4096", "but the model's configuration says 512; set model.original_context"),
        (
            "corpus.sources.classics.path=/nowhere/a.jsonl",
            "corpus path /nowhere/a.jsonl names no file; set corpus.sour",
        ),
        (
            "corpus.validation.path=/nowhere/b.jsonl",
            "corpus path /nowhere/b.jsonl names no file; set corpus.validation",
        ),
        (
            "model.source.name_or_path=/nowhere/m",
            "model.source.name_or_path=/nowhere/m does not exist; set model.sourc",
        ),
        ("model.tokenizer.name_or_path=./t", "model.tokenizer.name_or_path=./t does not exist; set model.tokenizer"),
        ("model.source.name_or_path=no-such/model", "model no-such/model cannot be read"),
        ("model.source._target_=os.system", "model.source._target_=os.system is not allowed; targets begin with data"),
        ("rope._target_=datamodules.tokens.store.os.system", "rope._target_=datamodules.tokens.store.os.system is not"),
        ("rope._target_=lightning_modules.rope.nothing.X", "rope._target_=lightning_modules.rope.nothing.X cannot be"),
        ("+rope.factor=2", "rope.factor is not an argument of lightning_modules.rope.methods.AdjustedBase"),
        ("output_dir=2024", "output_dir=2024 must be a text"),
        ("output_dir=/dev/null/runs", "output_dir=/dev/null/runs is not writable (/dev/null is not a folder"),
        ("cache_dir=/dev/null/cache", "cache_dir=/dev/null/cache is not writable"),
    ],
)
def test_one_fault_is_one_sentence(refusal: Refusal, change: str, sentence: str) -> None:
    (found,) = refusal(change)
    assert sentence in found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["augmentation=untie_the_knots", "augmentation.follow=blog"], "augmentation.follow=blog"),
        (["augmentation=ul2_denoising", "augmentation.num_sentinels=1000"], "name 1003 tokens that the tokenizer does"),
        (
            ["augmentation=skip_positions", "augmentation.target_length=64"],
            "augmentation.target_length=64 is below packing.max_seqlen=1024",
        ),
        (["augmentation=chunk_interleaving", "augmentation.num_chunks=0"], "augmentation.num_chunks=0"),
        (["augmentation=synthetic_tables", "augmentation.formats=[xml]"], "augmentation.formats"),
    ],
)
def test_augmentation_that_cannot_be_is_refused_before_anything_is_read(
    refusal: Refusal, changes: list[str], sentence: str
) -> None:
    plain = ["packing.document_mask=false", "packing.reset_positions=false"]
    (found,) = refusal(*plain, *changes)
    assert sentence in found


def test_value_that_many_keys_refer_to_is_one_fault(refusal: Refusal) -> None:
    assert refusal("seed=abc") == ["seed=abc must be a whole number"]


def test_folder_behind_a_link_that_leads_nowhere(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    (found,) = refusal(f"output_dir={tmp_path}/disk/runs")
    assert found.startswith(
        f"output_dir={tmp_path}/disk/runs is not writable ({tmp_path}/disk is not a folder that one"
    )


def test_unknown_time_of_reduction(refusal: Refusal) -> None:
    (found,) = refusal("strategy=fsdp", "strategy.reduce_gradients=never")
    assert found.startswith("strategy.reduce_gradients=never is not known; allowed are every_micro_batch, once_a_step")


def test_several_faults_come_in_one_message(refusal: Refusal) -> None:
    changes = [
        "data.max_steps=few",
        "corpus.mixture.classics=-1",
        "data.tokens_per_step=2000",
        "output_dir=/dev/null/a",
    ]
    found = refusal(*changes, "optimizer.eps=x", "precision=fp8", "+seeed=3")
    assert sorted(line.split("=")[0].split()[0] for line in found) == [
        *("corpus.mixture.classics", "data.max_steps", "data.tokens_per_step", "optimizer.eps", "output_dir"),
        *("precision", "seeed"),
    ]


def test_keys_without_a_value(refusal: Refusal) -> None:
    (found,) = refusal(words=["recipe=index_1p9b_32k/pretrain"])
    assert found == (
        "corpus.sources.documents.path has no value;"
        " add corpus.sources.documents.path=… to the command line or the preset"
    )
    found = refusal("model=hugging_face", words=["recipe=index_1p9b_32k/pretrain"])
    assert [line.split()[0] for line in found] == [
        *("model.source.name_or_path", "model.original_context_length", "corpus.sources.documents.path"),
    ]


def test_context_beyond_an_unchanged_rope(refusal: Refusal) -> None:
    (found,) = refusal("rope=unchanged")
    assert found == (
        "context_length=1024 is beyond the 512 that the base model reads with rope=unchanged;"
        " choose another rope or lower context_length"
    )


def test_context_beyond_what_the_factor_covers(refusal: Refusal) -> None:
    (found,) = refusal("rope=linear", "rope.factor=1.5")
    assert "rope.factor=1.5 takes 512 tokens to 768, less than context_length=1024" in found


def test_rows_beyond_what_rope_covers(refusal: Refusal) -> None:
    changes = ["context_length=512", "packing.max_seqlen=1024", "rope=unchanged", "evaluation.lengths=[64]"]
    (found,) = refusal(*changes)
    assert found.startswith("packing.max_seqlen=1024 is beyond context_length=512")


def test_tokenizer_of_another_model(refusal: Refusal, model_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    (found,) = refusal(f"model.source.name_or_path={other}")
    assert found.startswith("the tokenizer has ")
    assert found.endswith("the model's vocabulary has 300; set model.tokenizer.name_or_path to the model's own")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "optimizer: {lr: 1.0e-3, beta: [0.9, 0.95]}",
            "optimizer.beta is not an argument of lightning_modules.optim.adamw.adamw; did you mean",
        ),
        ("rope_thta: 8e6", "rope_thta is not a key that anything reads"),
        ("rope: {rope_thta: 8e6}", "AdjustedBase; did you mean rope_theta?"),
        ("data: {token_policy: {append_bos: true}}", "data.token_policy.append_bos is not an argument of data"),
        ("corpus: {sources: {classics: {pth: a}}}", "corpus.sources.classics.pth is not an argument of datamodules"),
        ("optimizer: {lr: fast}", "optimizer.lr=fast must be a number above 0"),
    ],
)
def test_faults_of_a_preset(
    refusal: Refusal, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(composing.conf_folder(), conf)
    monkeypatch.setattr(composing, "conf_folder", lambda: conf)
    preset = "defaults: [override /rope: adjusted_base]\nabout: {paper: a, extends: b}\n"
    lr = "" if "lr" in text else "optimizer: {lr: 1.0e-3}\n"
    theta = "" if "rope: " in text else "rope: {rope_theta: 1.0e+5}\n"
    (conf / "recipe" / "mine.yaml").write_text(f"# @package _global_\n{preset}{lr}{theta}{text}\n", encoding="utf-8")
    found = refusal("recipe=mine", words=tiny)
    assert any(sentence in line for line in found)
    assert len(found) == (2 if "rope: " in text else 1)  # the first: rope.rope_theta has no value


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return f"corpus.sources.classics.path={path}"


GOOD = b'{"text": "a good line"}\n'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "bad.jsonl is empty; remove it from corpus.sources"),
        (GOOD + b'{"text": "caf\xe9"}\n', "bad.jsonl, line 2: byte 13 is not valid UTF-8"),
        (GOOD + GOOD + b"nothing\n", "bad.jsonl, line 3: not JSON (Expecting value at column 1)"),
        (
            GOOD + b'{"txt": "a"}\n',
            "bad.jsonl, line 2: no field 'text' (it has ['txt']); set corpus.sources.*.text_field",
        ),
        (GOOD + b'{"text": 5}\n', "bad.jsonl, line 2: field 'text' holds a int, where a string is needed"),
    ],
)
@pytest.mark.parametrize("action", [prepare, train])
def test_corpora_that_cannot_be_read(
    refusal: Refusal, tmp_path: Path, content: bytes, sentence: str, action: Callable[..., None]
) -> None:
    (found,) = refusal(write(tmp_path / "bad.jsonl", content), action=action)
    assert sentence in found


def test_resume_of_what_is_no_run(refusal: Refusal, tmp_path: Path) -> None:
    (found,) = refusal(f"resume={tmp_path}", action=train)
    assert found == f"resume={tmp_path} is neither a run folder nor a checkpoint in one"


def test_resume_of_another_recipe(refusal: Refusal, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    with zipfile.ZipFile(other / "checkpoints" / "step-0000002.ckpt", "w") as checkpoint:  # as torch writes them
        checkpoint.writestr("data", b"x")
    (other / "run.json").write_text(json.dumps({"recipe": "demo/base", "status": "finished", "mechanism": {}}))
    (found,) = refusal(f"resume={other}", action=train)
    assert found == f"resume={other} is a run of recipe=demo/base, not of recipe=demo/extend"


def test_evaluation_of_what_is_not_there(refusal: Refusal, tmp_path: Path) -> None:
    from recipes.evaluate import evaluate

    (found,) = refusal(action=evaluate)
    assert found.startswith(
        f"no finished run of recipe=demo/extend with these settings under {tmp_path}/outputs; train"
    )
    (found,) = refusal(f"checkpoint={tmp_path}/nothing", action=evaluate)
    assert found == f"checkpoint={tmp_path}/nothing is neither a run folder nor a checkpoint in one"


def test_source_that_ends_too_early_is_said_before_there_is_a_run(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = replaced(tiny, "corpus.sampling={classics: {max_epochs: 0.1}}", "data.max_steps=50")
    assert run(words, train) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "corpus.sampling lets the sources be read for" in errors[0]
    assert not (tmp_path / "outputs").exists()
