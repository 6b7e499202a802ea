"""The README.md of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(
    *, recipe: str, about: Mapping[str, Any], table: str, facts: Mapping[str, Any], sections: tuple[str, ...] = ()
) -> str:
    """Recipe, numbers, versions, and what else there is to say.

    Args:
        recipe: Its name.
        about: Paper and base model, for people.
        table: The scores, in Markdown.
        facts: Lines of a list.
        sections: Further ones, each with its heading.
    """
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        f"# {recipe}",
        "",
        f"Trained by `python -m recipes.run recipe={recipe}` of long-context-recipes.",
        f"Paper: {about['paper']}. Extends: {about['extends']}.",
        "",
        table.strip(),
        "",
        "Perplexity is of the same last tokens of held-out windows at every length; needle recall is teacher-forced"
        " exact match, mean over depths.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    for section in sections:
        lines += ["", section.strip()]
    return "\n".join(lines) + "\n"
