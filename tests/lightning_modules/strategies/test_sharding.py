from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.checkpointing import AtomicCheckpointIO
from lightning_modules.strategies.sharding import ShardedStrategy


def test_unsharded_checkpoint_says_which_strategy_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "step-0000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"optimizer_states": []}, path)
    with pytest.raises(ValueError, match="written by an unsharded run; resume it with strategy=single or strategy=ddp"):
        ShardedStrategy(data_parallel_size=1).load_checkpoint(path, weights_only=True)


def test_unknown_time_of_reduction_is_said_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"strategy\.reduce_gradients=never is not known; allowed are every_micro_"):
        ShardedStrategy(data_parallel_size=1, reduce_gradients="never")
