"""What the runs of this folder share: a text with its token stores, which the first of them makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resume.recipe_runs import tiny_words
from tests.shared import made_once


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "text", tiny_words)
