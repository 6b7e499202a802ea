"""Model types that Hugging Face repositories ship as code of their own, and that are read here without running it."""

from __future__ import annotations

from lightning_modules.models.index.modeling import register_index
from lightning_modules.models.skywork.configuration import register_skywork


def register_models() -> None:
    """Makes "index" and "skywork" known to transformers' Auto classes; idempotent."""
    register_index()
    register_skywork()
