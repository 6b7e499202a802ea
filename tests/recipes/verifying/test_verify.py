"""`python -m recipes.verify checkpoint=…` on sound folders and on planted faults."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma3TextConfig

import recipes.verifying.certify
from lightning_modules.attention.registry import PER_DOCUMENT_ATTENTION, register_attention_functions
from recipes.cli import exit_status
from recipes.verify import verify
from recipes.verifying.certificate import VIOLATION, WARNING, Certificate, Finding, Section
from recipes.verifying.certify import card_section, certify
from recipes.verifying.dialects import what_older_readers_compute
from recipes.verifying.documents import packed_row, whether_documents_leak
from recipes.verifying.folder import find_checkpoint
from recipes.verifying.loaded import FreshAnswer, reload_in_fresh_process
from recipes.verifying.reload import logits, open_folder, rotary_buffers
from tests.lightning_modules.callbacks.test_start_gate import plain_causal_attention

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512}
Edit = Callable[..., Path]


@pytest.fixture
def edited(model_folder: Path, tmp_path: Path) -> Edit:
    """A copy of the tiny model's folder with keys of config.json given anew, or taken out where None."""

    def edit(**changes: Any) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(model_folder, folder, dirs_exist_ok=True)
        file = folder / "config.json"
        config = {**json.loads(file.read_text("utf-8")), **changes}
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")
        return folder

    return edit


def found(certificate: Certificate, verdict: str) -> list[str]:
    """The words of a verdict, the calls of transformers that leak by themselves left out."""
    findings = [finding for section in certificate.sections for finding in section.findings]
    return [f.words for f in findings if f.verdict == verdict and not f.words.startswith("sdpa with")]


def test_a_folder_of_plain_transformers_is_clean_and_a_fresh_process_agrees(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(lambda: verify([f"checkpoint={model_folder}"])) == 0
    page = capsys.readouterr().out
    for words in (
        "newer readers (transformers 5) take rope_parameters: default, theta 10000",
        "model.rotary_emb: 8 frequencies in fp32",
        "the same frequencies, bit for bit",
        "the same logits of 96 random tokens, bit for bit",
        "the same RoPE: default, theta 10000 (rope_theta is absent, and this their default)",
        "lcr_per_document: no document sees another, no token its future; the 48 logits move that should",
        "sdpa with use_cache left at its default: documents see one another",
        "verdict  clean: no violations",
    ):
        assert words in page
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.usefixtures("reopened_by_a_fork")
def test_the_fresh_process_never_imports_this_repository(model_folder: Path) -> None:
    from safetensors import safe_open

    import recipes.verifying.loaded as loaded

    seen: dict[str, str] = {}

    def load_and_look(file: Path) -> dict[str, torch.Tensor]:
        with safe_open(file, "pt") as handle:
            seen.update(handle.metadata())
        return load_file(file)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loaded, "load_file", load_and_look)
        answer = reload_in_fresh_process(find_checkpoint(model_folder))
    assert answer.problem == ""
    assert json.loads(seen["foreign"]) == []
    assert answer.tensors["logits"].shape == (1, 96, 512)


@pytest.mark.usefixtures("reopened_here")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # A second theta: the older readers' differs from the one that the model computes with.
        ({"rope_theta": 5e5}, ["two thetas: rope_theta is 500000, in rope_parameters it is 10000", "another RoPE"]),
        # A config that disagrees with the live RoPE: transformers lets rope_scaling win over rope_parameters.
        (
            {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            ["model.rotary_emb computes linear, theta 10000, factor 2, and config.json says", "another RoPE"],
        ),
        # Saved by transformers 5 alone: older readers fall back to theta 10000.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 85550.0}}, ["another RoPE, without an error"]),
        ({"rope_parameters": YARN, "max_position_embeddings": 2048}, ["cos and sin are scaled by 1 and not by 1.138"]),
        ({"max_position_embeddings": 512.0}, ["max_position_embeddings is 512.0, which is no integer", "not load"]),
    ],
)  # fmt: skip
def test_a_planted_fault_is_a_violation_and_status_1(
    changes: dict[str, Any], words: list[str], edited: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(**changes)
    violations = found(certify(folder), VIOLATION)
    assert len(violations) == len(words)
    for expected, violation in zip(words, violations, strict=True):
        assert expected in violation
    with pytest.raises(SystemExit) as left:
        exit_status(lambda: verify([f"checkpoint={folder}"]))
    assert left.value.code == 1
    assert "VIOLATION" in capsys.readouterr().out


@pytest.mark.usefixtures("reopened_here")
def test_the_keys_that_mend_make_it_clean(edited: Edit) -> None:
    for parameters in (YARN, {"rope_type": "default", "rope_theta": 85550.0}):
        changes = {"rope_parameters": parameters, "max_position_embeddings": 2048}
        (mend,) = (
            finding.mend
            for section in certify(edited(**changes)).sections
            for finding in section.findings
            if finding.verdict == VIOLATION
        )
        keys = json.loads("{" + mend.split("config.json: ")[1] + "}")
        mended = certify(edited(**changes, **keys))
        assert found(mended, VIOLATION) == []


def test_how_far_older_readers_are_off_is_the_closed_form(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 85550.0}
    (finding,) = what_older_readers_compute(config)
    exponents = np.arange(0, 16, 2) / 16
    difference = (10000.0**-exponents / 85550.0**-exponents - 1).max()
    assert f"inv_freq of all layers is off by up to {difference:.2g} times its value" in finding.words


def test_gemma_says_its_two_ropes_to_older_readers_too() -> None:
    parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    }
    config = Gemma3TextConfig(num_hidden_layers=6, rope_parameters=parameters).to_dict()
    (finding,) = what_older_readers_compute(config)
    assert finding.verdict == VIOLATION
    assert "full_attention layers" in finding.words
    assert "sliding_attention layers" in finding.words
    keys = json.loads("{" + finding.mend.split("config.json: ")[1] + "}")
    assert keys["rope_local_base_freq"] == 20000.0
    (mended,) = what_older_readers_compute({**config, **keys})
    assert mended.verdict == "ok"


@pytest.mark.usefixtures("reopened_here")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_position_embeddings": 32768}, "a model whose rope_scaling got lost"),
        ({"use_cache": False, "rope_theta": 10000.0}, None),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}, "rope_theta": 1e4,
             "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "yarn without original_max_position_embeddings",
        ),
        (
            {"rope_parameters": YARN, "rope_theta": 1e4, "rope_scaling": YARN, "max_position_embeddings": 4096},
            "yarn by 4 takes 512 tokens to 2048, less than max_position_embeddings=4096",
        ),
    ],
)  # fmt: skip
def test_what_may_be_meant_so_is_a_warning(changes: dict[str, Any], words: str | None, edited: Edit) -> None:
    certificate = certify(edited(**changes))
    assert found(certificate, VIOLATION) == []
    if words is not None:
        assert any(words in warning for warning in found(certificate, WARNING))


@pytest.mark.usefixtures("reopened_here")
def test_weights_that_are_missing_are_a_violation(edited: Edit) -> None:
    folder = edited()
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "drawn at random: model.layers.1.mlp.up_proj.weight" in found(certify(folder), VIOLATION)[0]


def test_a_fresh_process_that_computes_something_else_is_a_violation(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.model.rotary_emb.inv_freq *= 1.001
    tables = {f"buffer {name}": table for name, table in rotary_buffers(model).items()}
    fresh = FreshAnswer({"logits": logits(model) * 1.1, **tables})
    monkeypatch.setattr(recipes.verifying.certify, "reload_in_fresh_process", lambda _: fresh)
    frequencies, computed = found(certify(model_folder), VIOLATION)
    assert frequencies == "other frequencies: model.rotary_emb.inv_freq"
    assert computed.startswith("other logits of 96 random tokens")


@pytest.fixture
def _leaky() -> Iterator[None]:
    register_attention_functions()
    kept = AttentionInterface._global_mapping[PER_DOCUMENT_ATTENTION]
    yield
    AttentionInterface.register(PER_DOCUMENT_ATTENTION, kept)


@pytest.mark.usefixtures("_leaky")
def test_a_leaking_mask_is_a_violation(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert [finding for finding in whether_documents_leak(model) if finding.verdict == VIOLATION] == []
    monkeypatch.setattr("recipes.verifying.documents.register_attention_functions", lambda: None)
    AttentionInterface.register(PER_DOCUMENT_ATTENTION, plain_causal_attention)
    before = model.config._attn_implementation
    (violation,) = (finding for finding in whether_documents_leak(model) if finding.verdict == VIOLATION)
    assert violation.words.startswith("lcr_per_document: documents see one another; ")
    # A change at 12 (document 0), 48 (1) or 64 (2) is seen from there on by all that is not of its own document.
    document_ids = packed_row()[0][0]
    expected = sum(int((document_ids[at:] != document_ids[at]).sum()) for at in (12, 48, 64))
    assert f" {expected} of 192 logits of other documents move" in violation.words
    assert model.config._attn_implementation == before


def test_what_an_attention_of_ours_cannot_do_is_said_and_not_looked_at() -> None:
    from tests.lightning_modules.tiny_models import tiny_model

    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0).eval()
    findings = [*whether_documents_leak(model)]
    assert findings[0].verdict == "not looked at"
    assert "has no sliding window but the model's is 8" in findings[0].words


@pytest.fixture(scope="module")
def adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter that was made on the base model with YaRN, and the logits that it then had."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    options: dict[str, Any] = {"rope_parameters": dict(YARN), "max_position_embeddings": 2048}
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, **options)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 on transformers 5.23
        model = get_peft_model(model, lora)
        model.save_pretrained(str(folder))
        merged = model.merge_and_unload().eval()
    merged.config.save_pretrained(folder)
    return folder, logits(merged)


@pytest.mark.usefixtures("reopened_here")
def test_a_merged_adapter_has_the_rope_that_lies_beside_it(adapter: tuple[Path, torch.Tensor]) -> None:
    folder, expected = adapter
    checkpoint = find_checkpoint(folder)
    torch.testing.assert_close(logits(open_folder(folder, checkpoint.base).model), expected, rtol=1e-4, atol=1e-4)
    certificate = certify(folder)
    assert "an adapter whose config.json is not its base model's" in found(certificate, WARNING)[0]
    assert "yarn, theta 10000, factor 4" in certificate.text()
    (violation,) = found(certificate, VIOLATION)
    assert violation.startswith("another RoPE, without an error: default, theta 10000")


@pytest.mark.usefixtures("reopened_here")
def test_an_adapter_without_its_config_is_warned_of(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    alone = shutil.copytree(adapter[0], tmp_path / "alone")
    (alone / "config.json").unlink()
    certificate = certify(alone)
    assert found(certificate, VIOLATION) == []
    assert "an adapter stores no RoPE, and there is no config.json beside it" in found(certificate, WARNING)[0]


def test_an_adapter_whose_base_is_elsewhere_is_refused(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    alone = shutil.copytree(adapter[0], tmp_path / "alone")
    file = alone / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "base_model_name_or_path": "some/model"}))
    with pytest.raises(ValueError, match="its base model some/model is not on this disk"):
        find_checkpoint(alone)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give one checkpoint=<folder>"),
        (["checkpoint=a", "checkpoint=b"], "give one checkpoint=<folder>"),
        (["recipe=demo/extend"], "'recipe=demo/extend' is not understood; give checkpoint=<folder>"),
        (["checkpoint=nowhere"], "checkpoint=nowhere does not exist"),
        (["checkpoint=empty"], "checkpoint=empty has no config.json; name a Hugging Face folder"),
        (["checkpoint=run"], "run run has no export yet; write it with python -m recipes.export recipe=demo/extend"),
        (["checkpoint=broken"], "broken/config.json is not JSON"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "run", "broken"):
        Path(name).mkdir()
    Path("run/run.json").write_text('{"recipe": "demo/extend"}')
    Path("broken/config.json").write_text("{")
    assert exit_status(lambda: verify(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1


def test_a_runs_folder_means_its_export(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "export" / "config.json").write_text('{"model_type": "llama"}')
    assert find_checkpoint(tmp_path).folder == tmp_path / "export"


def test_the_page_and_the_section_of_a_card() -> None:
    findings = [Finding("ok", "all is well"), Finding(VIOLATION, "it is " + "very " * 30 + "wrong", "mend it")]
    certificate = Certificate("/home/me/model", "a model", [Section("files", findings)], 1.25)
    assert not certificate.clean
    assert certificate.text().splitlines() == [
        "certificate of /home/me/model",
        "a model",
        "",
        "1  files",
        "   ok             all is well",
        "   VIOLATION      it is " + "very " * 17 + "very",
        "                  " + "very " * 12 + "wrong",
        "                  -> mend it",
        "",
        "verdict  NOT CLEAN: 1 violation, no warnings   (1.2 s)",
    ]
    assert "/home" not in card_section(certificate)
    assert "certificate of model\n" in card_section(certificate)
