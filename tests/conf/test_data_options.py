"""Every packing and every augmentation is one word on the command line of a recipe, and trains at scale=toy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.cli import run
from recipes.compose import compose, options
from recipes.train import train

PACKINGS = ("best_fit", "concat_chunk", "length_buckets", "padded")
AUGMENTATIONS = (
    "chunk_interleaving",
    "few_shot_packing",
    "none",
    "skip_positions",
    "synthetic_tables",
    "ul2_denoising",
    "untie_the_knots",
)
FULL_ATTENTION = ("chunk_interleaving", "untie_the_knots")
"""Their chunks belong together across the row."""

WORDY = ("skip_positions", "ul2_denoising")
FEW_SENTINELS = (
    "augmentation.num_sentinels=12",
    "augmentation.mode_tokens=null",
    "augmentation.denoisers=[{mode: X, rate: 0.15, mean_span_length: 32, weight: 1.0}]",
)
"""The demo's vocabulary has 13 rows that no text reaches."""

TOKENS_PER_STEP = 1024

CASES = [
    *((f"packing={option}",) for option in PACKINGS),
    ("packing=best_fit", "packing.document_mask=true", "packing.reset_positions=true", "corpus.mix_at=document"),
    *((f"augmentation={option}",) for option in AUGMENTATIONS if option not in (*FULL_ATTENTION, *WORDY)),
    *(
        (f"augmentation={option}", "packing.document_mask=false", "packing.reset_positions=false")
        for option in FULL_ATTENTION
    ),
    ("augmentation=skip_positions", "packing.max_seqlen=512"),
    ("augmentation=ul2_denoising", *FEW_SENTINELS),
]


def test_options_are_all_found() -> None:
    assert options("packing") == sorted(PACKINGS)
    assert options("augmentation") == sorted(AUGMENTATIONS)


@pytest.mark.usefixtures("small_bundle")
@pytest.mark.parametrize("words", CASES, ids=lambda words: ",".join(words))
def test_one_word_changes_the_data_of_demo_extend(words: tuple[str, ...], tmp_path: Path, cache_dir: Path) -> None:
    words = (
        "recipe=demo/extend",
        "scale=toy",
        *words,
        "context_length=1024",
        "rope.rope_theta=20000.0",
        "evaluation.lengths=[512,1024]",
        "debug=two_steps",
        f"data.tokens_per_step={TOKENS_PER_STEP}",
        "data.micro_batch_size=1",
        "data.validation_sequences=1",
        "trainer.progress_bar=false",
        "trainer.accelerator=cpu",
        f"output_dir={tmp_path}",
        f"cache_dir={cache_dir}",
    )
    assert run(words, train) == 0
    folder = tmp_path / "demo" / "extend" / "latest"
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["steps"] == 2
    found = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    max_seqlen = compose(words).config.packing.max_seqlen
    assert found["rows"] == 2 * TOKENS_PER_STEP // max_seqlen
    assert sum(source["tokens"] for source in found["sources"]) == found["tokens"]
