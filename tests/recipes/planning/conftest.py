"""A folder where nothing is prepared."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A word for a cache that is not there."""
    return f"cache_dir={tmp_path}/nowhere"
