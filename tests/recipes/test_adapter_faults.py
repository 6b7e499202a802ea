"""Adapters and what does not go with them, refused before a model is built."""

from __future__ import annotations

import pytest

from recipes.compose import ConfigError, compose
from recipes.validate import validate


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["peft=lora", "peft.r=0"], "peft.r=0 must be a whole number of at least 1"),
        (["peft=lora", "peft.target_modules=q_proj"], "peft.target_modules=q_proj must be all-linear or a list"),
        (["model.source.dtype=bfloat16"], "model.source.dtype=bfloat16 rounds away what full training changes"),
        (["peft=lora", "model.source.dtype=bfloat16", "precision=fp32"], "set precision=bf16"),
        (["peft=qlora"], "peft=qlora needs a CUDA GPU, and there is none here; set peft=lora"),
        (["peft=qlora", "strategy=fsdp"], "peft=qlora holds weights in 4 bits, which strategy=fsdp cannot shard"),
        (["attention=shifted_sparse", "attention.group_size=7"], "attention.group_size=7 must be an even number"),
        (["attention=shifted_sparse", "attention.group_size=4096"], "below packing.max_seqlen=4096"),
        (
            [
                "attention=shifted_sparse",
                "attention.group_size=256",
                "length_schedule=linear",
                "length_schedule.mechanism=window",
            ],
            "attention.group_size and length_schedule.mechanism=window both limit attention",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"\w") as refused:
        validate(compose(["recipe=demo/extend", *changes]))
    assert any(sentence in line for line in str(refused.value).splitlines()), str(refused.value)


@pytest.mark.parametrize("peft", ["lora", "lora_plus", "longlora"])
def test_adapters_validate(peft: str) -> None:
    validate(compose(["recipe=demo/extend", f"peft={peft}", "model.source.dtype=bfloat16"]))
