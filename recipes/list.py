"""Show the presets in a table, and the pipelines, variants and ablations by name."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

WIDTH = 160
"""Characters of a line where no terminal says otherwise."""
HEAD = ("recipe", "paper", "base model", "context", "RoPE", "packing", "stage", "tokens")
PROSE = ("paper", "base model")
PARTS = ("model", "packing", "data")
"""Groups that the table reads."""
STAGES = {"continued_pretraining": "CPT", "supervised_finetuning": "SFT"}
LEGEND = (
    "CPT: continued pre-training; SFT: supervised fine-tuning; 2/3: the second of three stages; masked: documents of a"
    " row do not see one another, full: they do; reported: by the paper, not measured here"
)


def table(*, width: int = WIDTH, wrap: bool = False) -> str:
    """One row a preset, from its composed configuration, and below it the score that its paper reports.

    Imports neither torch nor transformers; some milliseconds a preset.

    Args:
        width: Characters of a line.
        wrap: Let long cells go on in a further line; otherwise they are shortened, and every preset's row is a line.
    """
    from recipes.compose import presets
    from recipes.quick_compose import preset_parts
    from recipes.showing.columns import columns
    from recipes.showing.stages import in_order, stages

    composed = {preset: preset_parts(preset, PARTS) for preset in presets()}
    places = stages({preset: config.about.get("continues") for preset, (config, _) in composed.items()})
    rows: list[tuple[str, ...]] = [HEAD]
    notes: list[str] = []
    for preset in in_order(places):
        config, choices = composed[preset]
        number, of = places[preset]
        stage = STAGES.get(config.stage) or str(config.stage)
        rows.append(
            (
                preset,
                str(config.about.paper),
                str(config.about.extends),
                _context(config),
                choices["rope"],
                f"{choices['packing']} {'masked' if config.packing.document_mask else 'full'}",
                f"{stage} {number}/{of}" if of > 1 else stage,
                _amount(config.data),
            )
        )
        reported = config.about.get("reported")
        notes.append(f"reported: {reported}" if reported else "")
    return "\n".join(columns(rows, width=width, wrap=wrap, prose=PROSE, notes=notes))


def _context(config: Any) -> str:
    """What the base model reads, by the paper's count where it has one, and what the finished one does."""
    after = _length(_known(config, "context_length"))
    before = config.about.get("native_context_length") or _known(config, "model.original_context_length")
    return after if _length(before) == after else f"{_length(before)} -> {after}"


def _known(config: Any, key: str) -> Any:
    """A key's value; None where it is the user's to name."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:  # a reference to a key without a value
        return None


def _length(tokens: Any) -> str:
    """Such as 32K for 32768, and 200,000 for what is no power's multiple."""
    if tokens is None:
        return "?"
    tokens = int(tokens)
    return f"{tokens // 1024}K" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"


def _amount(data: Any) -> str:
    """How much the stage reads: tokens, or samples where a step is so many of them, or epochs."""
    keys = ("epochs", "max_steps", "samples_per_step", "tokens_per_step")
    epochs, steps, samples, tokens = (_known(data, key) for key in keys)
    if epochs is not None:
        return f"{epochs} epoch{'s' if epochs != 1 else ''}"
    if steps is None or (samples is None and tokens is None):
        return "?"
    return f"{_tokens(samples * steps)} samples" if samples is not None else _tokens(tokens * steps)


def _tokens(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def names(*, width: int = WIDTH) -> str:
    """Pipelines, variants and ablations, and the commands that take them."""
    from recipes.compose import options

    def said(start: str, group: str) -> str:
        found = [name for name in options(group) if name != "none"]
        return textwrap.fill(
            f"{start}: {', '.join(found)}",
            width,
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )

    lines = [
        textwrap.fill(LEGEND, width),
        "",
        "python -m recipes.show recipe=<name> prints one, with where each number comes from; add scale=toy to try it on"
        " the bundled model",
    ]
    for group, start in (
        ("pipeline", "python -m recipes.run pipeline=<name> runs all stages of a paper"),
        ("variant", "variant=<name> beside its paper's recipe=… changes the mechanism, as a baseline or ablation does"),
        ("ablation", "python -m recipes.ablate ablation=<name> compares several runs"),
    ):
        lines += [said(start, group)] if set(options(group)) - {"none"} else []
    return "\n".join(lines)


def _print() -> None:
    width = shutil.get_terminal_size(fallback=(WIDTH, 24)).columns
    print(table(width=width, wrap=sys.stdout.isatty()))
    print(f"\n{names(width=width)}")


if __name__ == "__main__":
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(f"usage: python -m recipes.list\n\n{__doc__}")
    else:
        from recipes.cli import exit_status

        sys.exit(exit_status(_print))
