"""Continued pre-training: every token of the packed sequences is a target."""

from __future__ import annotations

from lightning_modules.base import CausalLMModule


class ContinuedPretrainingModule(CausalLMModule):
    """Next-token prediction on packed documents; see `CausalLMModule`.

    The data says what is trained: `labels` cover every token but padding, and where documents are masked from one
    another no token is trained to predict the first token of the next document.
    """
