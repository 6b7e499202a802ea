"""Show the presets in a table."""

from __future__ import annotations

import sys
from typing import Any


def table() -> str:
    """One row a preset, from its composed configuration; imports neither torch nor transformers."""
    from recipes.compose import presets
    from recipes.quick_compose import preset_values

    header = ("recipe", "paper", "extends", "context", "RoPE", "packing", "documents masked", "tokens")
    rows: list[tuple[str, ...]] = [header]
    for preset in presets():
        config, choices = preset_values(preset)
        before, after = config.model.original_context_length, config.context_length
        rows.append(
            (
                preset,
                config.about.paper,
                config.about.extends,
                f"{before} -> {after}" if after != before else str(after),
                choices["rope"],
                choices["packing"],
                "yes" if config.packing.document_mask else "no",
                _amount(config.data),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _amount(data: Any) -> str:
    """How much the stage reads: tokens, or samples where a step is so many of them, or epochs."""
    if data.get("epochs") is not None:
        return f"{data.epochs} epochs"
    if data.get("samples_per_step") is not None:
        return f"{_tokens(data.samples_per_step * data.max_steps)} samples"
    return _tokens(data.tokens_per_step * data.max_steps)


def _tokens(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _print() -> None:
    print(table())
    from recipes.compose import ablations

    print("\npython -m recipes.show recipe=<name> prints one; add scale=toy to try it on the bundled model")
    print(f"python -m recipes.ablate ablation=<name> compares variants of one: {', '.join(ablations())}")


if __name__ == "__main__":
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print("usage: python -m recipes.list\n\nShow the presets in a table.")
    else:
        from recipes.cli import exit_status

        sys.exit(exit_status(_print))
