"""The README.md of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.verifying.dialects import described
from recipes.verifying.folder import text_part


def model_card(
    *,
    recipe: str,
    about: Mapping[str, Any],
    starts_from: str,
    table: str,
    facts: Mapping[str, Any],
    sections: tuple[str, ...] = (),
    library: str = "transformers",
    base: str | None = None,
) -> str:
    """Recipe, numbers, versions, and what else there is to say.

    Args:
        recipe: Its name.
        about: Of the recipe, for people.
        starts_from: The model that was trained.
        table: The scores, in Markdown.
        facts: Lines of a list.
        sections: Further ones, each with its heading.
        library: That loads it: transformers, or peft for an adapter.
        base: Of an adapter, the hub name of the model that it belongs to; a folder of one's own means nothing there.
    """
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        *([f"base_model: {base}"] if base else []),
        "---",
        f"# {recipe}",
        "",
        f"Trained with `recipe={recipe}` of long-context-recipes. Paper: {about['paper']}. Starts from: {starts_from}.",
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


def adapter_section(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What an adapter alone is and how it is loaded: with the config.json beside it, whose RoPE it was trained with.

    Args:
        settings: Its adapter_config.json.
        config: The config.json beside it.
    """
    base = settings["base_model_name_or_path"]
    besides = settings.get("modules_to_save")
    lines = [
        "## A LoRA adapter",
        "",
        f"Rank {settings['r']}, alpha {settings['lora_alpha']:g}, for `{base}`"
        + (f"; {len(besides)} embeddings and norms trained besides and are here whole." if besides else "."),
        "It was trained with the RoPE of the config.json here, which peft does not read by itself: "
        f"{described(text_part(dict(config)).get('rope_parameters') or {})}.",
        "",
        "```python",
        f'base = AutoModelForCausalLM.from_pretrained("{base}", config=AutoConfig.from_pretrained(folder))',
        "model = PeftModel.from_pretrained(base, folder)",
        "```",
    ]
    return "\n".join(lines)
