from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from recipes import run_folder
from recipes.run_folder import (
    RANK_VARIABLE,
    RunFolder,
    base_fingerprint,
    close_run,
    find_run,
    mechanism,
    new_folder,
    open_run,
)
from tests.processes import ForkWithPipes


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is a first rank, and lets its locks go."""
    monkeypatch.delenv(RANK_VARIABLE, raising=False)
    yield
    forget()


def make_config(folder: Path, **keys: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "recipe_name": "demo/base",
            "output_dir": str(folder),
            "run_folder": None,
            "resume": "auto",
            "checkpoint": None,
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
            "data": {"max_steps": 10, "num_workers": 0},
            "trainer": {"devices": 1},
            "strategy": {"name": "single"},
            **keys,
        }
    )


def forget() -> None:
    """What the end of the process does."""
    os.environ.pop(RANK_VARIABLE, None)
    while run_folder._held_locks:
        run_folder._held_locks.pop().close()


def stopped_run(config: DictConfig, *, step: int = 3) -> RunFolder:
    """A run whose process died after a checkpoint."""
    run = open_run(config)
    torch.save({"global_step": step}, run.checkpoints / f"step-{step:07d}.ckpt")
    forget()
    return run


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    runs = []
    for _ in range(3):  # within one second
        runs.append(open_run(make_config(tmp_path, resume="never")))
        forget()
    assert len({run.path for run in runs}) == 3
    assert (tmp_path / "demo/base/latest").resolve() == runs[-1].path.resolve()


def test_auto_goes_on_with_the_stopped_run_of_the_same_settings(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    run = open_run(make_config(tmp_path))
    assert run.path == stopped.path
    assert run.checkpoint == stopped.path / "checkpoints/step-0000003.ckpt"


@pytest.mark.parametrize(
    "keys",
    [{"data": {"max_steps": 10, "num_workers": 4}}, {"trainer": {"devices": 2}}, {"strategy": {"name": "ddp"}}],
)
def test_practical_keys_may_differ(keys: dict[str, Any], tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    assert open_run(make_config(tmp_path, **keys)).path == stopped.path


@pytest.mark.parametrize("keys", [{"optimizer": {"lr": 2e-3, "weight_decay": 0.1}}, {"recipe_name": "demo/extend"}])
def test_auto_starts_anew_for_another_mechanism(keys: dict[str, Any], tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    run = open_run(make_config(tmp_path, **keys))
    assert run.checkpoint is None
    assert run.path != stopped.path


def test_auto_starts_anew_after_a_finished_run_even_with_an_older_stopped_one(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    finished = stopped_run(make_config(tmp_path, resume="never"))
    close_run(finished, status="finished")
    run = open_run(make_config(tmp_path))
    assert run.checkpoint is None
    assert run.path not in (stopped.path, finished.path)


def test_auto_finds_the_stopped_run_behind_a_run_of_other_settings(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    stopped_run(make_config(tmp_path, optimizer={"lr": 5.0, "weight_decay": 0.1}))
    assert open_run(make_config(tmp_path)).path == stopped.path


def test_run_without_a_complete_checkpoint_is_not_gone_on_with(tmp_path: Path) -> None:
    first = open_run(make_config(tmp_path))
    (first.checkpoints / ".step-0000003.ckpt.partial").write_bytes(b"half")
    forget()
    assert open_run(make_config(tmp_path)).path != first.path


def test_never_starts_anew(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    assert open_run(make_config(tmp_path, resume="never")).path != stopped.path


@pytest.mark.parametrize("name", ["", "checkpoints/step-0000003.ckpt", "../latest"])
def test_path_of_a_run_or_of_its_checkpoint_is_gone_on_with(name: str, tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    run = open_run(make_config(tmp_path, resume=str(stopped.path / name)))
    assert run.path == stopped.path.resolve()
    assert run.checkpoint is not None
    assert run.checkpoint.name == "step-0000003.ckpt"


def test_path_of_another_recipe_is_a_clear_error(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path, recipe_name="demo/extend"))
    with pytest.raises(ValueError, match="is a run of recipe=demo/extend, not of recipe=demo/base"):
        open_run(make_config(tmp_path, resume=str(stopped.path)))


def test_path_with_other_settings_names_each_key(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    other = make_config(
        tmp_path,
        resume=str(stopped.path),
        optimizer={"lr": 2e-3, "weight_decay": 0.1},
        data={"max_steps": 99, "num_workers": 3},
        new_key=1,
    )
    with pytest.raises(ValueError, match="other settings") as error:
        open_run(other)
    listed = str(error.value).split("other settings: ")[1].split("; ")
    assert listed == [
        "data.max_steps=99 (the run has 10)",
        "new_key=1 (the run has None)",
        "optimizer.lr=0.002 (the run has 0.001)",
    ]


@pytest.mark.parametrize("resume", ["nowhere", "demo"])
def test_path_that_is_no_run_is_a_clear_error(resume: str, tmp_path: Path) -> None:
    stopped_run(make_config(tmp_path))
    with pytest.raises(ValueError, match="is neither a run folder nor a checkpoint in one"):
        open_run(make_config(tmp_path, resume=str(tmp_path / resume)))


HOLDER = """
import sys
from recipes.run_folder import open_run
from omegaconf import OmegaConf
run = open_run(OmegaConf.load(sys.argv[1]))
print(run.path, flush=True)
sys.stdin.readline()
"""


def test_lock_keeps_a_second_trainer_out_until_the_first_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stopped_run(make_config(tmp_path))
    OmegaConf.save(make_config(tmp_path), tmp_path / "config.yaml")
    holder = ForkWithPipes([sys.executable, "-c", HOLDER, str(tmp_path / "config.yaml")])
    with holder.stdin, holder.stdout:
        assert f"going on with {stopped.path}" in holder.stdout.readline().decode()
        with pytest.raises(ValueError, match="is being trained by another process; wait for it, or set resume=never"):
            open_run(make_config(tmp_path, resume=str(stopped.path)))
        assert open_run(make_config(tmp_path)).path != stopped.path
        assert "is being trained by another process" in capsys.readouterr().out
        forget()
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    assert open_run(make_config(tmp_path, resume=str(stopped.path))).path == stopped.path.resolve()


def test_forked_loader_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It outlives a killed trainer by seconds, in which the same command may be given again."""
    stopped = stopped_run(make_config(tmp_path))
    open_run(make_config(tmp_path))
    context = multiprocessing.get_context("fork")
    begun, ends = context.Event(), context.Event()

    def work() -> None:
        begun.set()
        ends.wait()

    worker = context.Process(target=work)
    worker.start()
    assert begun.wait(timeout=30)  # from here on the fork is complete, with what it closes in the child
    forget()
    try:
        assert open_run(make_config(tmp_path)).path == stopped.path
    finally:
        ends.set()
        worker.join()


def test_further_ranks_open_what_the_first_opened(tmp_path: Path) -> None:
    stopped = stopped_run(make_config(tmp_path))
    first = open_run(make_config(tmp_path))
    assert open_run(make_config(tmp_path)) == first  # the variable is set, as for a process that the first one starts
    assert first.checkpoint is not None
    forget()
    close_run(stopped, status="finished")
    fresh = open_run(make_config(tmp_path))
    assert open_run(make_config(tmp_path)) == fresh
    assert fresh.checkpoint is None


def test_find_run_takes_the_newest_finished_one(tmp_path: Path) -> None:
    finished = stopped_run(make_config(tmp_path))
    close_run(finished, status="finished")
    stopped_run(make_config(tmp_path, resume="never"))
    assert find_run(make_config(tmp_path)).path == finished.path
    with pytest.raises(ValueError, match="no finished run of recipe=demo/extend"):
        find_run(make_config(tmp_path, recipe_name="demo/extend"))


def test_mechanism_holds_what_trains_and_nothing_practical(tmp_path: Path) -> None:
    assert mechanism(make_config(tmp_path)) == {
        "recipe_name": "demo/base",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0.1,
        "data.max_steps": 10,
    }


def test_no_folder_behind_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=r"disk is in the way of the folder .*/disk/a; set output_dir"):
        new_folder(tmp_path / "disk", "a")


def test_base_model_with_one_other_tensor_in_the_middle_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file that is read whole, and in one that is read in slices."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    weights, config = (
        tmp_path / "model.safetensors",
        OmegaConf.create({"model": {"source": {"name_or_path": str(tmp_path)}}}),
    )
    content = bytearray(2**20)
    for largest in (2**21, 2**19):
        monkeypatch.setattr(run_folder, "READ_WHOLE", largest)
        monkeypatch.setattr(run_folder, "SLICE_BYTES", 2**7)
        found = []
        for value in (0, 1):
            content[2**19 : 2**19 + 2**10] = bytes([value]) * 2**10
            weights.write_bytes(content)
            found.append(base_fingerprint(config))
        assert found[0] != found[1]
