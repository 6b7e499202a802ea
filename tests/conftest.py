"""What holds for every test: no network, one thread, no display, and GPU tests only where there is a GPU."""

import os

# Set before any test module is imported; worker processes inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # what torch.set_num_threads(1) does, without importing torch: contended threads are slower
)

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

gc.disable()  # while the libraries are imported, whose half a million objects are all there to stay


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """What `-m 'not slow'` leaves out, which processes of pytest-xdist keep to themselves."""
    if items and (output := getattr(items[0].config, "workeroutput", None)) is not None:
        output["deselected"] = output.get("deselected", 0) + len(items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every process deselects the same tests; the closing line says how many."""
    reporter = node.config.pluginmanager.get_plugin("terminalreporter")
    if left_out := getattr(node, "workeroutput", {}).get("deselected"):
        reporter.stats["deselected"] = [None] * left_out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return

    import torch  # not at the top: tests that never touch a tensor should start without it

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def rendered_by_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that renders a tokenizer's chat template is a fork, without the time to import transformers.

    `datamodules/conversations/test_jinja_template.py` has one that is an interpreter of its own.
    """
    from datamodules.conversations import jinja_process
    from tests.processes import ForkWithPipes

    forking = SimpleNamespace(Popen=ForkWithPipes, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(jinja_process, "subprocess", forking)


@pytest.fixture(scope="session")
def small_bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.shared import made_once
    from tests.small_bundle import write_small_bundle

    return made_once(tmp_path_factory, "small_bundle", write_small_bundle)


@pytest.fixture
def small_bundle(small_bundle_folder: Path) -> Iterator[None]:
    """`${bundled:…}` is a model of 0.2 M parameters and a few pages of text."""
    from tests.small_bundle import small_bundle_in_use

    with small_bundle_in_use(small_bundle_folder):
        yield
