"""What the tests of conf/ share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared import made_once


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token stores, shared by all processes of the test session."""
    return made_once(tmp_path_factory, "cache", lambda folder: None)
