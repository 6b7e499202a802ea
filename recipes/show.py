"""Print one recipe: its paper and its differences, where each number comes from, every key, what your words changed,
and what its RoPE means.

python -m recipes.show data recipe=… i=… prints row i of its run instead: documents, text, and who sees whom.
python -m recipes.show numbers prints every number of the four papers beside the preset's, as Markdown."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_modules.rope.methods.base import RopeMethod
from recipes.cli import exit_status, help_printed
from recipes.compose import Composed, ConfigError, compose, conf_folder, one_sentence

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def show(composed: Composed) -> str:
    """The preset's header, its numbers' provenance, the configuration, the changes of the command line, and RoPE.

    References are followed, but those to whole nodes stay, as those nodes are printed in their own place, and so do
    bundled files, which lie elsewhere on every machine. All but the configuration is comment, so that the whole reads
    as YAML.
    """
    config = composed.config
    changes = _changes(composed)
    parts = [
        *_preset(composed),
        OmegaConf.to_yaml(OmegaConf.create({str(key): _shown(config, str(key)) for key in config})).rstrip(),
        "\n".join(["# The command line changed:", *(f"#   {change}" for change in changes)]) if changes else "",
        "\n".join(f"# {line}".rstrip() for line in ["", *rope_lines(composed)]),
    ]
    return "\n".join(filter(None, parts))


def _preset(composed: Composed) -> list[str]:
    """The header, with the count of its numbers, and the list of them; only the header where the preset names none."""
    from recipes.showing.provenance import numbers, provenance_lines, summary

    top, found = header(composed.config.recipe_name), numbers(composed)
    if not found:
        return [top]
    count = textwrap.fill(summary(found), 120, initial_indent="# Numbers  ", subsequent_indent=f"#{' ' * 10}")
    title = "# Where its numbers come from, the paper's own words in quotation marks"
    return [f"{top}\n{count}\n", "\n".join([title, *(f"#   {line}" for line in provenance_lines(found)), ""])]


def rope_lines(composed: Composed) -> list[str]:
    """What the recipe's RoPE means, or why that cannot be said."""
    from recipes.reporting.base_rope import known_rope, whole_number
    from recipes.reporting.rope_meaning import WIDTH, rope_meaning

    config = composed.config
    try:
        known = known_rope(config)
        context_length = whole_number(config, "context_length")
        extended = _rope_method(config).extend(known.rope, context_length=context_length)
        said = rope_meaning(
            composed.choices["rope"], known.rope, extended, context_length=context_length, sources=known.sources
        ).splitlines()
        return [*said, *_paper_counts_from(config)]
    except OmegaConfBaseException as error:  # before KeyError and ValueError, which some of them are too
        faults = [one_sentence(error)]
    except KeyError as error:
        faults = [f"the rope_parameters of the model's config.json lack {error}"]
    except (ValueError, TypeError) as error:
        faults = str(error).splitlines()
    return [line for fault in faults for line in textwrap.wrap(f"What this RoPE means cannot be said: {fault}", WIDTH)]


def _paper_counts_from(config: DictConfig) -> list[str]:
    """Where the paper takes another length for the base model's than its configuration, which RoPE goes by here."""
    native, stated = config.about.native_context_length, config.model.original_context_length
    if native is None or native >= stated:  # at another scale the model is another
        return []
    said = f"The paper counts from {native:,} tokens; the lengths above are of the model's configuration, {stated:,}."
    return ["", said]


def _rope_method(config: DictConfig) -> RopeMethod:
    """The method of `rope`, without the imports of everything else that a run is made of.

    Raises:
        ConfigError: If its keys do not fit; all faults, one a line.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from recipes.validate import missing_keys, signature_faults

    alone = OmegaConf.create({"rope": OmegaConf.to_container(config.rope, resolve=True)})
    if faults := [*missing_keys(alone), *signature_faults(alone)]:
        raise ConfigError("\n".join(faults))
    try:
        return instantiate(alone.rope, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError | TypeError) else error) from error


def header(preset: str) -> str:
    """The comment at the top of a preset's file."""
    lines = (conf_folder() / "recipe" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    lines = lines[1:] if lines[0].startswith("# @package") else lines
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def _shown(config: DictConfig, name: str) -> Any:
    """One key as plain data, with references to single values followed."""
    parent_name, _, key = name.rpartition(".")
    parent = OmegaConf.select(config, parent_name) if parent_name else config
    node: Any = parent._get_node(key)
    raw = node._value()
    if isinstance(raw, str) and "${" in raw:
        return _followed(config, parent, key, raw)
    if isinstance(node, DictConfig):
        return None if raw is None else {str(child): _shown(config, f"{name}.{child}") for child in node}
    return OmegaConf.to_container(node) if isinstance(node, ListConfig) else raw


def _followed(config: DictConfig, parent: DictConfig, key: str, raw: str) -> Any:
    if "${bundled:" in raw:
        return raw
    try:
        value = parent[key]
    except OmegaConfBaseException:  # a key without a value yet
        return raw
    if OmegaConf.is_config(value):
        return raw
    reference = REFERENCE.fullmatch(raw)
    return _shown(config, reference[1]) if reference else value


def _changes(composed: Composed) -> list[str]:
    """For each word but the recipe, what it changed and from what."""
    words = [word for word in composed.words if not word.startswith("recipe=")]
    if not words:
        return []
    from recipes.quick_compose import preset_values

    before = preset_values(composed.config.recipe_name)
    changes = []
    for word in words:
        name = word.split("=", 1)[0].lstrip("+")
        if name in composed.choices:
            old, new = before.choices[name], composed.choices[name]
        else:
            old, new = _raw(before.config, name), _raw(composed.config, name)
        changes.append(f"{name}: {_said(old)} -> {_said(new)}" if old != new else f"{word} is what it was")
    return changes


def _said(value: Any) -> str:
    """As it would be written on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _raw(config: DictConfig, name: str) -> Any:
    try:
        return _shown(config, name)
    except (OmegaConfBaseException, AttributeError):  # another option of the group has no such key
        return "(not there)"


if __name__ == "__main__":
    if sys.argv[1:2] == ["data"]:
        from recipes.showing.data import main

        sys.exit(main(sys.argv[2:]))
    if sys.argv[1:2] == ["numbers"]:
        from recipes.showing.numbers import main as numbers_main

        sys.exit(numbers_main(sys.argv[2:]))
    if not help_printed("show", sys.argv[1:], doc=__doc__ or ""):
        sys.exit(exit_status(lambda: print(show(compose(sys.argv[1:])))))
