"""What holds for every test: no network, one thread, no display, and GPU tests only where there is a GPU."""

import os

# Set before any test module is imported; worker processes inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # what torch.set_num_threads(1) does, without importing torch: contended threads are slower
)

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return

    import torch  # not at the top: tests that never touch a tensor should start without it

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
