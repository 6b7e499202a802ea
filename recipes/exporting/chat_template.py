"""How a fine-tuned model is asked, in its export: the template in the tokenizer, and what ends an answer.

A base model's tokenizer has no template, or one with which this run was not trained. Without the right one another
program asks in words that the model never saw, and without the end of an answer it lets the model talk on.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from omegaconf import DictConfig

from recipes.build import build, build_tokenizer

FINETUNING = "supervised_finetuning"


class Asking(NamedTuple):
    """How a fine-tuned model is asked.

    Attributes:
        name: Of the template.
        jinja: The template; None where no text gives the ids of training.
        stop_ids: What ends an answer besides EOS.
        reason: Why there is no template.
    """

    name: str
    jinja: str | None
    stop_ids: tuple[int, ...] = ()
    reason: str = ""


def asking(config: DictConfig, tokenizer: Any) -> Asking | None:
    """How the model of a run is asked; None of a run that is not fine-tuned on conversations.

    Args:
        config: The run's.
        tokenizer: The run's.
    """
    if config.stage != FINETUNING:
        return None
    from recipes.chatting.forms import TemplateForm

    template: Any = build(config.chat_template)
    name = config.chat_template.get("name") or "tokenizer"
    stop_ids: tuple[int, ...] = ()
    try:
        stop_ids = TemplateForm(tokenizer, template, name=name).stop_ids
        return Asking(name, template.to_jinja(tokenizer), stop_ids)
    except ValueError as error:
        return Asking(name, None, stop_ids, str(error))


def with_chat_template(tokenizer: Any, how: Asking | None) -> Any:
    """A copy of the tokenizer with the template of training and no other; itself where there was no fine-tuning."""
    if how is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = how.jinja  # None takes one away that the model was not trained with
    return tokenizer


def chat_sections(config: DictConfig) -> tuple[str, ...]:
    """The section of the model card on how the model is asked; none of a run that is not fine-tuned."""
    if config.stage != FINETUNING:
        return ()
    how = asking(config, build_tokenizer(config))
    assert how is not None
    lines = ["## Asking it", ""]
    if how.jinja is None:
        lines += [
            f"It was fine-tuned on conversations written as `chat_template={how.name}`, and the tokenizer here has no"
            f" chat template: {how.reason}. `python -m recipes.chat chat_template={how.name}` writes them."
        ]
    else:
        lines += [
            f"It was fine-tuned on conversations written as `chat_template={how.name}`. The tokenizer here has that"
            " template: `tokenizer.apply_chat_template(messages, add_generation_prompt=True)` gives the tokens of"
            " training. One thing differs: the name of a control token in what somebody says was text in training, and"
            " other programs read it as that token."
        ]
    return ("\n".join(lines),)
