from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from typing import Any, TextIO

import pytest

from datamodules.step_batches import collate
from lightning_modules.callbacks import progress
from lightning_modules.callbacks.progress import TrainingProgress, progress_line
from tests.lightning_modules.tiny_training import make_module, make_row, make_trainer, step_loader

NUMBERS: dict[str, Any] = {"loss": 3.4123, "lr": 9e-4, "tok/s": 8123.0}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, "train  37/80"),
        (NUMBERS, "train  37/80  loss 3.41  lr 9e-4  8.12K tok/s"),
        ({**NUMBERS, "val_loss": 3.5, "v_num": 1}, "train  37/80  loss 3.41  val loss 3.50  lr 9e-4  8.12K tok/s"),
        ({"lr": 9.44e-4, "tok/s": 2.5e6}, "train  37/80  lr 9.4e-4  2.50M tok/s"),
        ({"lr": 0.0, "tok/s": 12.0}, "train  37/80  lr 0e0  12.0 tok/s"),
    ],
)
def test_line_shows_what_there_is(numbers: dict[str, Any], expected: str) -> None:
    assert progress_line("train", 37, 80, numbers) == expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(monkeypatch: pytest.MonkeyPatch, stream: TextIO) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    step = [collate([make_row((32,), seed=0)])]
    trainer = make_trainer(callbacks=[TrainingProgress()], enable_progress_bar=True)
    trainer.fit(make_module(max_steps=4), step_loader([step] * 4))


def train(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    fit(monkeypatch, stream)
    return stream.getvalue()


def test_terminal_gets_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    text = train(monkeypatch, Terminal())
    assert text.count("\n") == 1
    last = text.rstrip("\n").split("\r")[-1]
    assert last.startswith("train  4/4  loss ")
    assert " left" in last
    assert "Epoch" not in text
    assert "v_num" not in text


@pytest.mark.parametrize(("columns", "shown"), [(0, 80), (30, 30), (200, 200)])
def test_line_fills_the_terminal_and_80_columns_of_one_that_has_none(
    columns: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pseudo-terminal has 0 rows and 0 columns until somebody says otherwise."""
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    main, terminal = pty.openpty()
    if columns:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(terminal, "w") as stream, open(main, "rb", buffering=0) as screen:  # noqa: PTH123
        fit(monkeypatch, stream)
        os.write(terminal, b"end")
        text = ""
        while not text.endswith("end"):
            text += screen.read(4096).decode()
    last = text.removesuffix("end").rstrip("\r\n").split("\r")[-1].rstrip()
    assert last.startswith("train  4/4  loss ")
    assert len(last) <= shown
    assert (" left" in last) == (shown >= 80)


def test_file_gets_whole_lines_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = train(monkeypatch, io.StringIO()).splitlines()
    assert [line.split("  ")[1] for line in lines] == ["1/4", "4/4"]
    assert all("\r" not in line and " loss " in line for line in lines)


def test_bar_is_closed_when_training_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    step = [collate([make_row((32,), seed=0)])]
    step[0]["labels"].fill_(-100)
    callback = TrainingProgress()
    with pytest.raises(ValueError, match="no target token"):
        make_trainer(callbacks=[callback], enable_progress_bar=True).fit(make_module(), step_loader([step] * 3))
    assert callback._bar is None
