"""Which samples a run holds, where its sources end."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.mixture import Mixture
from datamodules.packing.padded import Padded
from datamodules.packing.run import RunRequest
from datamodules.packing.sample_steps import dealt_samples
from datamodules.packing.stream import Sampling


def ending(seed: int, *, mix_by: str) -> RunRequest:
    """Sources whose shares differ by many orders of magnitude; each is read one and a half or three times."""
    rng = np.random.default_rng(seed)
    names = [f"s{k}" for k in range(4)]
    return RunRequest(
        mixture=Mixture({name: float(rng.random() ** 12) + 1e-9 for name in names}),
        lengths={name: rng.integers(1, int(rng.choice([3, 30, 3000])), int(rng.integers(2, 60))) for name in names},
        packing=Padded(4096),
        num_rows=10_000,
        seed=seed,
        by_samples=True,
        mix_by=mix_by,
        sampling={name: Sampling(max_epochs=float(rng.choice([1.5, 3])), name=name) for name in names},
        may_end=True,
    )


@pytest.mark.parametrize("mix_by", ["tokens", "samples"])
def test_run_that_may_end_reads_all_there_is_whatever_the_shares(mix_by: str) -> None:
    """Shares of a millionth leave rounding errors of whole tokens where a source ends."""
    for seed in range(300):
        request = ending(seed, mix_by=mix_by)
        sources, documents = dealt_samples(request)
        for number, name in enumerate(request.names):
            found = np.bincount(documents[sources == number], minlength=len(request.lengths[name]))
            epochs = request.sampling[name].max_epochs
            assert epochs is not None
            whole = int(epochs)
            assert found.min() >= whole
            assert found.max() <= whole + (epochs % 1 > 0)
            assert found.sum() == whole * len(found) + round((epochs % 1) * len(found))
