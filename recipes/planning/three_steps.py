"""Three real steps of a recipe in a temporary folder, measured: the child process of `recipes.plan calibrate=true`.

Prints one line of JSON. What counts on a GPU is CUDA's peak of allocated bytes. On a CPU it is the peak of the resident
set in the second step above what the process has for itself: its resident set behind the first step, when all libraries
are loaded and all kernels compiled, without the parameters and optimizer states that are among it. In these two steps
the C library gives every freed tensor back at once, where it would keep up to some 100 MiB; the third step, which is
timed, runs as always. Linux alone says all that; elsewhere it is the peak of the whole process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.cli import exit_status

STEPS = 3
M_MMAP_THRESHOLD = -3
SMALL_BLOCK, USUAL_BLOCK = 1 << 16, 1 << 25
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(words: Sequence[str]) -> None:
    """Run the steps and print what was measured."""
    from recipes.compose import compose
    from recipes.validate import validate

    with tempfile.TemporaryDirectory() as folder:
        own = [f"data.max_steps={STEPS}", f"output_dir={folder}", "resume=never", "trainer.progress_bar=false"]
        names = {word.split("=", 1)[0] for word in own} | {"data.epochs"}
        kept = [word for word in words if word.split("=", 1)[0] not in names]
        epochs = compose(kept).config.data.get("epochs")
        composed = compose([*kept, *own, *(["data.epochs=null"] if epochs is not None else [])])
        validate(composed)
        print(json.dumps(measure(composed.config, Path(folder))))


def measure(config: Any, folder: Path) -> dict[str, Any]:
    """Machine, peak bytes of tensors, and seconds of each step that is timed."""
    import lightning.pytorch as pl
    import torch

    from recipes.build import build_data, build_module, build_trainer, quiet
    from recipes.training import hardware

    quiet()
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    data = build_data(config)
    data.validation = None
    data.prepare_data()
    module = build_module(config, data)
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    seconds: list[float] = []
    own: list[int] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seconds.append(time.perf_counter())

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            seconds[-1] = time.perf_counter() - seconds[-1]
            if not own:
                own.append(0 if on_gpu else resident(trimmed=True) - state_bytes(pl_module, trainer.optimizers[0]))
                reset_peak()
            elif len(own) < STEPS:
                own.append(torch.cuda.max_memory_allocated() if on_gpu else resident_peak())
                give_back(above=USUAL_BLOCK)

    (folder / "checkpoints").mkdir()
    trainer = build_trainer(config, folder, max_steps=data.num_steps)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.insert(0, Clock())  # before the one that saves the last step
    give_back(above=SMALL_BLOCK)
    trainer.fit(module, data)
    timed = seconds[1:] if on_gpu else seconds[2:]
    return {"machine": hardware(), "peak_bytes": (own[-1] if on_gpu else own[1]) - own[0], "seconds": timed}


def give_back(*, above: int) -> None:
    """Let the C library of Linux give blocks of so many bytes back to the system as soon as they are freed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, above)


def state_bytes(module: Any, optimizer: Any) -> int:
    """Parameters, and what the optimizer holds for them."""
    tensors = [*module.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
    found = {id(tensor): tensor for tensor in tensors if hasattr(tensor, "element_size")}
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def resident(*, trimmed: bool) -> int:
    """Memory that this process has, in bytes; `trimmed` gives back first what is free."""
    if trimmed:
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") if STATUS.exists() else 0


def reset_peak() -> None:
    """Let the peak of the resident set begin anew, where the system can."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return


def resident_peak() -> int:
    """Most bytes of memory that this process had at once, since `reset_peak`."""
    if STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
