"""Loader processes that leave stopping to the trainer."""

from __future__ import annotations

import signal


def leave_sigterm_to_the_trainer(worker: int) -> None:
    """A `worker_init_fn` for loaders of training.

    A scheduler sends SIGTERM to the whole process group. A worker that died of it would break the step that the trainer
    wants to finish and save; as it is, workers end with the trainer's loader, or seconds after a trainer that was
    killed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
