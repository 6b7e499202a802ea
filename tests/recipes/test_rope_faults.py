"""A rope that cannot work with the model: one sentence, status 2, nothing written, before a model is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import run
from recipes.compose import options
from tests.recipes.words import replaced

Refusal = Callable[..., list[str]]
ROPES = (
    *("adjusted_base", "dynamic_ntk", "linear", "llama3", "longrope", "ntk_aware", "progressive_base", "unchanged"),
    "yarn",
)
EIGHT = "[1,1,2,2,3,3,4,4]"  # the model rotates 16 dimensions of a head


def never(_: object) -> None:
    pytest.fail("the mistake was not noticed")


@pytest.fixture
def refusal(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs tiny words (512 -> 1024 tokens) with changes and returns the sentences."""

    def refused(*changes: str) -> list[str]:
        capsys.readouterr()
        assert run(replaced(tiny, *changes), never) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert not (tmp_path / "outputs").exists()
        assert "Traceback" not in err
        return [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]

    return refused


@pytest.fixture
def changed_model(model_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """The tiny model under another config.json."""

    def changed(**changes: Any) -> str:
        folder = tmp_path / "changed"
        shutil.copytree(model_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return f"model.source.name_or_path={folder}"

    return changed


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def test_every_rope_is_known_here() -> None:
    assert options("rope") == list(ROPES)


@pytest.mark.parametrize(
    "words",
    [
        ["rope=linear"],
        ["rope=ntk_aware"],
        ["rope=dynamic_ntk"],
        ["rope=yarn"],
        ["rope=yarn", "rope.factor=2.5", "rope.truncate=false", "rope.attention_factor=1.1"],
        ["rope=longrope", f"rope.long_factor={EIGHT}"],
        ["rope=llama3"],
        ["rope=progressive_base", "rope.rope_theta=[[600, 2e4], [1024, 9e4]]"],
        ["rope=adjusted_base", "rope.rope_theta=5e5", "rope.on_scaled_base=keep"],
    ],
    ids=lambda words: words[0],
)
def test_ropes_that_work_compose(tiny: list[str], words: list[str]) -> None:
    seen: list[Any] = []
    assert run(replaced(tiny, *words), seen.append) == 0
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rope=ntk_aware", "rope.factor=1.5"], "rope.factor=1.5 takes 512 tokens to 768, less than context_length=10"),
        (["rope=yarn", "rope.factor=1.5"], "set rope.factor to 2 or more, or null"),
        (["rope=llama3", "rope.factor=1.5"], "set rope.factor to 2 or more, or null"),
        (["rope=dynamic_ntk", "rope.factor=0.5"], "rope.factor=0.5 is not a number of at least 1; set rope.factor"),
        (["rope=yarn", "rope.beta_slow=64"], "set rope.beta_slow above 0 and below rope.beta_fast"),
        (["rope=llama3", "rope.high_freq_factor=1"], "set rope.low_freq_factor above 0 and below rope.high_freq_fac"),
        (["rope=longrope"], "rope.long_factor has no value; add rope.long_factor=…"),
        (
            ["rope=longrope", "rope.long_factor=[1,2]"],
            "rope.long_factor has 2 numbers, but the model rotates 16 dimens",
        ),
        (["rope=longrope", "rope.long_factor=2"], "rope.long_factor=2 is not a list of positive numbers"),
        (["rope=progressive_base"], "rope.rope_theta has no value; add rope.rope_theta=…"),
        (["rope=progressive_base", "rope.rope_theta=[[600, 2e4]]"], "no base for context_length=1024, its longest is"),
        (["rope=progressive_base", "rope.rope_theta=5e5"], "set rope.rope_theta to such as [[65536, 15.3e6], [262144"),
        (["rope=linear", "rope.on_scaled_base=keep"], "rope.on_scaled_base=keep is not allowed here (keep is for meth"),
        (["rope.on_scaled_base=drop"], "rope.on_scaled_base=drop is not allowed here; set it to refuse or replace or"),
        (["rope=yarn", "rope.truncate=1"], "rope.truncate=1 must be true or false"),
    ],
)
def test_one_fault_is_one_sentence(refusal: Refusal, words: list[str], sentence: str) -> None:
    (found,) = refusal(*words)
    assert sentence in found


@pytest.mark.parametrize("rope", [rope for rope in ROPES if rope != "unchanged"])
def test_a_scaled_base_model_is_refused_by_every_method(
    refusal: Refusal, changed_model: Callable[..., str], rope: str
) -> None:
    words = {
        "adjusted_base": ["rope.rope_theta=5e6"],
        "longrope": [f"rope.long_factor={EIGHT}"],
        "progressive_base": ["rope.rope_theta=[[1024, 9e4]]"],
    }
    (found,) = refusal(changed_model(rope_parameters=LLAMA3), f"rope={rope}", *words.get(rope, []))
    assert found.startswith(
        "the base model's rope_parameters already have rope_type=llama3, 8 times its 64 tokens;"
        " set rope.on_scaled_base=replace to drop that"
    )


def test_a_scaled_base_model_is_taken_where_the_recipe_says_how(
    tiny: list[str], changed_model: Callable[..., str]
) -> None:
    words = [changed_model(rope_parameters=LLAMA3), "rope.rope_theta=5e6"]
    for how in ("keep", "replace"):
        assert run(replaced(tiny, *words, f"rope.on_scaled_base={how}"), lambda _: None) == 0


def test_a_family_that_cannot_compute_the_type_is_refused(refusal: Refusal, changed_model: Callable[..., str]) -> None:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    phi3 = changed_model(model_type="phi3", original_max_position_embeddings=512, rope_parameters=parameters)
    (found,) = refusal(phi3, "rope=linear")
    assert found.startswith("phi3 does not take rope_parameters={")
    assert found.endswith("choose another rope")


def test_a_model_whose_config_lacks_a_theta_is_refused(refusal: Refusal, changed_model: Callable[..., str]) -> None:
    (found,) = refusal(changed_model(model_type="gpt2", n_positions=512, rope_parameters=None))
    assert "lack rope_type; give all keys" in found


def test_a_float_length_in_config_json_is_refused(refusal: Refusal, changed_model: Callable[..., str]) -> None:
    (found,) = refusal(changed_model(max_position_embeddings=512.0))
    assert "max_position_embeddings' expected int, got float (value: 512.0)); set model.source.name_or_path" in found


def test_what_the_recipe_says_about_the_base_models_rope_is_held_to_its_configuration(
    refusal: Refusal, changed_model: Callable[..., str]
) -> None:
    folder = changed_model().removeprefix("model.source.name_or_path=")
    words = ["model=hugging_face", f"model.source.name_or_path={folder}", "model.original_context_length=512"]
    assert refusal(*words, "model.head_dim=128", "model.original_rope_theta=5e5") == [
        "model.head_dim=128, but the model's configuration says 16; set model.head_dim=16",
        "model.original_rope_theta=500000.0, but the model's configuration says 10000.0;"
        " set model.original_rope_theta=10000.0",
    ]
