from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.checkpointing import AtomicCheckpointIO
from lightning_modules.strategies.sharding import ShardedStrategy


def test_unsharded_checkpoint_says_which_strategy_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "step-0000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"optimizer_states": []}, path)
    with pytest.raises(ValueError, match="written by an unsharded run; resume it with strategy=single or strategy=ddp"):
        ShardedStrategy().load_checkpoint(path, weights_only=True)
