"""`python -m tests.distributed.refused_run <words>`: recipes.train with an attention that forgets documents."""

import lightning_modules.attention.registry as registry
from recipes.cli import main
from recipes.train import train
from tests.lightning_modules.callbacks.test_start_gate import plain_causal_attention

if __name__ == "__main__":
    registry.per_document_attention_forward = plain_causal_attention  # type: ignore[assignment]
    main("train", train, doc="")
