"""What a plan says of every preset, and that it is what a run then does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_modules.checkpointing import newest_checkpoint
from recipes.cli import run
from recipes.compose import ConfigError, compose, options, presets
from recipes.planning.hardware import read_hardware
from recipes.planning.plan import Plan, plan_run
from recipes.planning.prepared import prepared_run
from recipes.planning.report import report
from recipes.prepare import prepare
from recipes.train import train
from tests.recipes.test_supervised_finetuning import conversation, write_records
from tests.recipes.words import replaced

LEAST_PRESETS = 6


def planned(*words: str, hardware: str = "cpu") -> Plan:
    return plan_run(compose(words), read_hardware(hardware))


def test_there_are_presets() -> None:
    assert len(presets()) >= LEAST_PRESETS


@pytest.mark.parametrize(("scale", "hardware"), [("paper", "h100_80gb"), ("single_gpu", "l40s_48gb"), ("toy", "cpu")])
@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_planned(preset: str, scale: str, hardware: str, nowhere: str) -> None:
    plan = planned(f"recipe={preset}", f"scale={scale}", nowhere, hardware=hardware)
    text = report(plan)
    assert ("\nfits\n" in text) == plan.need.fits == ("does not fit, short by" not in text)
    assert ("not measured on a GPU by this project" in text) == (hardware != "cpu")
    assert plan.need.tensors == pytest.approx(sum(plan.need.causes.values()))
    assert all(gib > 0 for gib in plan.need.causes.values())
    assert (plan.longest_context >= plan.run.job.row_tokens - 1024) == plan.need.fits
    assert plan.steps or plan.run.epochs
    assert (plan.seconds is None) == (hardware == "cpu")
    if scale == "toy":
        assert plan.need.fits
        assert plan.need.device < 2
    json.dumps(plan.as_dict())


@pytest.mark.parametrize("name", options("hardware"))
def test_hardware_is_complete_and_says_where_each_number_is_from(name: str) -> None:
    from recipes.compose import conf_folder

    hardware = read_hardware(name)
    assert hardware.memory_gib > 1
    first, *lines = (conf_folder() / "hardware" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    kinds = ("# published: ", "# second-hand: ", "# recalled: ", "# computed: ", "# our choice: ")
    assert [line for line in lines if not any(kind in line for kind in kinds)] == []
    if hardware.on_gpu:
        for least, most in (hardware.matmul_reached, hardware.attention_reached, hardware.memory_reached):
            assert 0 < least < most <= 1


def test_steps_tokens_and_checkpoint_are_those_of_the_run(tiny: list[str], nowhere: str) -> None:
    """Before anything is prepared, too, where rows are full."""
    before = planned(*replaced(tiny, nowhere))
    assert run(replaced(tiny, "data.micro_batch_size=1"), train) == 0
    folder = next(Path(word.split("=", 1)[1]) for word in tiny if word.startswith("output_dir="))
    (made,) = (path for path in folder.glob("demo/extend/*") if not path.is_symlink())
    info = json.loads((made / "run.json").read_text(encoding="utf-8"))
    after = planned(*tiny)
    assert (before.steps, before.tokens, before.tokens_are_exact) == (info["steps"], info["tokens"], True)
    assert (after.steps, after.tokens) == (info["steps"], info["tokens"])
    assert before.prepared is None
    assert after.prepared is not None
    checkpoint = newest_checkpoint(made / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.stat().st_size == pytest.approx(before.disk.checkpoint, rel=0.2)  # names and positions besides
    tensors = torch.load(checkpoint, map_location="cpu", weights_only=True)
    states = tensors["optimizer_states"][0]["state"].values()
    held = [*tensors["state_dict"].values(), *(value for state in states for value in state.values() if value.ndim)]
    whole = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held if tensor.ndim}
    assert sum(whole.values()) == pytest.approx(before.disk.checkpoint, rel=0.01)


@pytest.mark.parametrize("length", ["data.max_steps=3", "data.epochs=2"])
@pytest.mark.parametrize("step", ["data.samples_per_step=5", "data.tokens_per_step=2048"])
def test_steps_and_tokens_of_fine_tuning_are_those_of_its_rows(
    tiny: list[str], tmp_path: Path, length: str, step: str
) -> None:
    from recipes.build import build_data

    file = write_records(tmp_path / "train.jsonl", [conversation(k) for k in range(24)])
    kept = [word for word in tiny if not word.startswith(("corpus", "data.", "evaluation."))]
    words = [
        *kept,
        "stage=supervised_finetuning",
        "data=supervised_finetuning",
        "corpus=local_conversations",
        f"corpus.sources.conversations.rows.path={file}",
        "chat_template=plain",
        "packing=best_fit",
        "packing.document_mask=true",
        *([length] if "steps" in length else [length, "corpus.mixture=null"]),
        step,
        "evaluation.lengths=[64,512]",
        "evaluation.perplexity.tail_tokens=16",
    ]
    unknown = planned(*words)
    assert (unknown.steps, unknown.prepared) == (3 if "steps" in length else None, None)
    assert run(words, prepare) == 0
    found = planned(*words)
    data = build_data(compose(words).config)
    data.prepare_data()
    data.setup()
    rows = data.train_dataloader()
    seen = [batch for micro_batches in rows for batch in micro_batches]
    assert (found.steps, found.run.rows_per_step) == (len(rows), data.sequences_per_step)
    assert found.tokens == sum(int((batch["document_ids"] >= 0).sum()) for batch in seen)
    lengths = [
        int(count)
        for batch in seen
        for row in batch["document_ids"]
        for document, count in zip(*torch.unique(row, return_counts=True), strict=True)
        if document >= 0
    ]
    assert found.prepared is not None
    assert found.prepared.seen == sum(n * (n + 1) for n in lengths)
    assert max(batch["input_ids"].shape[1] for batch in seen) <= found.run.job.row_tokens


def test_stored_tokens_take_what_the_store_takes(tiny: list[str]) -> None:
    assert run(tiny, prepare) == 0
    found = prepared_run(compose(tiny).config)
    assert found is not None
    plan = planned(*tiny)
    assert plan.disk.tokens == found.stored_bytes
    assert found.stored_bytes == pytest.approx(2 * found.stored_tokens, rel=0.2)  # offsets and hashes besides


def test_a_stage_without_a_model_has_the_sizes_of_the_one_that_it_continues(nowhere: str) -> None:
    words = ["recipe=index_1p9b_32k/pretrain", nowhere, "model.source.name_or_path=???"]
    alone = compose(words)
    with pytest.raises(ConfigError, match="name_or_path has no value"):
        plan_run(alone, read_hardware("h100_80gb"))
    alone.config.about.continues = "index_1p9b_32k/pretrain"
    assert plan_run(alone, read_hardware("h100_80gb")).run.job.model.num_layers == 36


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.devices=7"], "128 sequences per step do not divide over 7 ranks"),
        (["model.source.name_or_path=nobody/Unknown-7B"], "neither on this disk nor known to the plan"),
        (["memory.activations.recompute=half"], "memory.activations.recompute=half is not known"),
        (["memory=every_n_layers"], "every_n_layers does not go with strategy=fsdp"),
        (["optimizer=adamw_8bit"], "adamw_8bit does not go with strategy=fsdp"),
        (["peft=qlora"], "peft=qlora does not go with strategy=fsdp"),
        (["model.source.dtype=bfloat16"], "dtype=bfloat16 rounds away what full training changes"),
        (["strategy=single", "trainer.devices=8"], "trainer.devices=8 with strategy=single"),
        (["data.tokens_per_step=1000"], "not a multiple of packing.max_seqlen"),
        (["peft=lora", "peft.target_modules=[w_proj]"], "peft.target_modules=w_proj is not known"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(words: list[str], sentence: str, nowhere: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        planned("recipe=index_1p9b_32k/pretrain", nowhere, *words, hardware="h100_80gb")
    assert len(str(refused.value).splitlines()) == 1


def test_what_does_not_fit_is_said_with_how_much_is_missing_and_on_how_many_devices_it_would(nowhere: str) -> None:
    words = ["recipe=utk_llama3p1_8b_128k/pretrain", nowhere]
    plan = planned(*words, "trainer.devices=2", hardware="h100_80gb")
    assert not plan.need.fits
    assert f"does not fit, short by {plan.need.short:.1f} GiB a device" in report(plan)
    assert plan.best is None
    assert plan.best_devices is not None
    more = planned(*words, f"trainer.devices={plan.best_devices}", hardware="h100_80gb")
    assert more.best is not None
    assert f"strategy={more.best.job.strategy} memory=" in report(more)
