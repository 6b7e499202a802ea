from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.checkpointing import AtomicCheckpointIO, is_complete, newest_checkpoint, step_of


def write(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:07d}.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": step, "weights": torch.full((100,), float(step))}, path)
    return path


def shard_folder(folder: Path, step: int, *, complete: bool) -> Path:
    path = folder / f"step-{step:07d}.ckpt"
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"shard")
    (path / ".metadata").write_bytes(b"metadata")
    if complete:
        torch.save({"global_step": step}, path / "meta.pt")
    return path


def test_checkpoint_comes_back_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded["step"] == 7
    assert torch.equal(loaded["weights"], torch.full((100,), 7.0))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000007.ckpt"]


def test_interrupted_write_leaves_the_previous_checkpoint_and_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path, 1)

    def half(checkpoint: Any, handle: Any) -> None:
        handle.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2)
    assert not (tmp_path / "step-0000002.ckpt").exists()
    assert newest_checkpoint(tmp_path) == first
    assert torch.load(first, weights_only=True)["step"] == 1


def test_killed_write_over_a_checkpoint_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 3)
    before = path.read_bytes()

    def killed(checkpoint: Any, handle: Any) -> None:
        handle.write(b"x" * 100_000)
        handle.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", killed)
    if (child := os.fork()) == 0:
        write(tmp_path, 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert newest_checkpoint(tmp_path) == path
    assert (tmp_path / ".step-0000003.ckpt.partial").stat().st_size == 100_000


def test_full_disk_is_a_clear_error_and_its_debris_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path, 1)

    def full(checkpoint: Any, handle: Any) -> None:
        handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"step-0000002\.ckpt could not be written .*No space left.*previous one is"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_full_disk_inside_torchs_zip_writer_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer turns the OSError of a failing file into a RuntimeError of its own."""
    write(tmp_path, 1)
    original = Path.open

    def failing(self: Path, *args: Any, **kwargs: Any) -> Any:
        handle = original(self, *args, **kwargs)
        return _FullFile(handle) if self.name.endswith(".partial") else handle

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(ValueError, match="could not be written"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.ckpt"]


class _FullFile:
    """A file on a disk that takes 200 bytes."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.room = handle, 200

    def __enter__(self) -> _FullFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.handle.close()

    def write(self, data: Any) -> int:
        self.room -= len(memoryview(data).cast("B"))
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.handle.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)


def test_newest_ignores_partial_and_truncated_files_and_unfinished_shards(tmp_path: Path) -> None:
    newest = write(tmp_path, 20)
    write(tmp_path, 3)
    (tmp_path / ".step-0000030.ckpt.partial").write_bytes(b"half")
    (tmp_path / "step-0000040.ckpt").write_bytes(newest.read_bytes()[:-100])
    (tmp_path / "step-0000050.ckpt").touch()
    shard_folder(tmp_path, 60, complete=False)
    (shard_folder(tmp_path, 70, complete=False) / "meta.pt").write_bytes(b"PK half")
    assert newest_checkpoint(tmp_path) == newest
    sharded = shard_folder(tmp_path, 80, complete=True)
    assert is_complete(sharded)
    assert newest_checkpoint(tmp_path) == sharded
    assert step_of(sharded) == 80


def test_no_folder_has_no_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None


def test_sharded_checkpoint_says_which_strategy_opens_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is sharded; resume it with strategy=fsdp"):
        AtomicCheckpointIO().load_checkpoint(shard_folder(tmp_path, 5, complete=True), weights_only=True)
