"""From `chat_template=` to the form of a prompt."""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from datamodules.conversations.jinja_template import TokenizerTemplate
from datamodules.conversations.template import ChatTemplate
from recipes.chatting.forms import BaseModelForm, PromptForm, TemplateForm
from recipes.compose import conf_folder

AUTO, OWN, NONE = "auto", "tokenizer", "none"
FINETUNING = "supervised_finetuning"


def prompt_form(name: str, tokenizer: PreTrainedTokenizerBase, *, run: Path | None = None) -> PromptForm:
    """The form that a word asks for.

    Args:
        name: `none` for the base-model form; `tokenizer` for the tokenizer's own template, or another option of
            conf/chat_template; `auto` for the template that the run was fine-tuned with, or else the tokenizer's own,
            or else the base-model form.
        tokenizer: The model's.
        run: The folder of the run that the model is of.

    Raises:
        ValueError: There is no such template, or the tokenizer lacks what it takes.
    """
    if name == AUTO:
        if (trained := _trained_with(run)) is not None:
            return trained_form(trained, tokenizer)
        name = OWN if tokenizer.chat_template else NONE
    if name == NONE:
        return BaseModelForm(tokenizer)
    if name == OWN:  # some write the day on which they are used
        today = {"date_string": time.strftime("%d %b %Y")}
        return TemplateForm(tokenizer, TokenizerTemplate(arguments=today), name=name)
    return TemplateForm(tokenizer, _template(name), name=name)


def trained_form(node: DictConfig, tokenizer: PreTrainedTokenizerBase) -> PromptForm:
    """The form of a run's own `chat_template` node."""
    from recipes.build import build

    return TemplateForm(tokenizer, build(node), name=node.get("name") or OWN)


def _trained_with(run: Path | None) -> DictConfig | None:
    """The `chat_template` node of a run of supervised fine-tuning; None of any other, and of no run."""
    if run is None or not (run / "config.yaml").is_file():
        return None
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    return config.chat_template if config.get("stage") == FINETUNING else None


def template_names() -> list[str]:
    """The options of conf/chat_template."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def _template(name: str) -> ChatTemplate:
    from recipes.build import build

    if name not in template_names():
        raise ValueError(
            f"chat_template={name} is not known; choose {AUTO}, {NONE} or one of {', '.join(template_names())}"
        )
    return build(OmegaConf.load(_folder() / f"{name}.yaml"))


def _folder() -> Path:
    return conf_folder() / "chat_template"
