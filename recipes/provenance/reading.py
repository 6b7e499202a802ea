"""What a preset says of its own numbers: every value of its file with the comment that says where it comes from.

The comment stands behind the value, or on the lines directly above it, or behind or above a mapping that it is part of.
The file is read as text, since that is where the comments are; a configuration that was composed has lost them.
Costs some milliseconds a file, and neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from recipes.compose import conf_folder
from recipes.provenance.arithmetic import equal, results
from recipes.provenance.comments import Comments, last_line
from recipes.provenance.grammar import Provenance, one_of_kinds, parsed, shortened

WITHOUT = ("about", "stage")
"""Top-level keys that say what a preset is, not how it was done."""
FREE_GROUPS = ("data", "chat_template", "evaluation", "memory", "strategy")
"""Groups whose choice follows from the stage, the model or the machine."""
PLACES = ("path", "name_or_path", "name", "revision", "data_files", "split", "text_field")
"""Keys that say where something lies."""


class Stated(NamedTuple):
    """One value of a preset, and where it comes from.

    Attributes:
        key: Dotted key, such as `optimizer.lr`; of a group's option the group, such as `rope`.
        value: As plain data; a list, or a mapping of shares such as a mixture, that stands on one line is one value.
        kind: One of `grammar.KINDS`; empty if the file does not say, or not so that it is understood.
        quote: The paper's own number or words; empty if none are quoted.
        text: The place or the reason.
        line: In the file, from 1.
        arithmetic: What a computed value is computed by.
    """

    key: str
    value: Any
    kind: str
    quote: str
    text: str
    line: int
    arithmetic: str = ""


class _Leaf(NamedTuple):
    key: str
    value: Any
    line: int  # from 0
    comments: list[str]  # of the nearest place that has any; two are one too many


def preset_file(preset: str) -> Path:
    return conf_folder() / "recipe" / f"{preset}.yaml"


def variant_file(variant: str) -> Path:
    return conf_folder() / "variant" / f"{variant}.yaml"


def stated_numbers(file: Path) -> list[Stated]:
    """Every value of a preset's or variant's file that can have a provenance, in the file's order.

    Never raises for a missing or malformed provenance: a preset of one's own needs none.

    Raises:
        OSError: There is no such file.
        yaml.YAMLError: It is not YAML.
    """
    leaves, _ = _leaves(file)
    return [_stated(leaf) for leaf in leaves]


def provenance_faults(file: Path) -> list[str]:
    """What is wrong with the provenance in a file, one sentence each: file, line, key, fault, and what is allowed."""
    try:
        leaves, twice = _leaves(file)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return [f"{_shown(file)}, line {line}: this is not YAML: {error.problem}"]
    numbers = {leaf.key: leaf.value for leaf in leaves if isinstance(leaf.value, int | float)}
    found = [(line, f"{key} stands twice, first in line {first}; keep one") for key, first, line in twice]
    found += [(leaf.line + 1, f"{leaf.key} {fault}") for leaf in leaves if (fault := _fault(leaf, numbers))]
    return [f"{_shown(file)}, line {line}: {sentence}" for line, sentence in sorted(found)]


def _stated(leaf: _Leaf) -> Stated:
    try:
        known = parsed(leaf.comments[0]) if leaf.comments else Provenance("", "", "")
    except ValueError:
        known = Provenance("", "", "")
    return Stated(leaf.key, leaf.value, known.kind, known.quote, known.text, leaf.line + 1, known.arithmetic)


def _fault(leaf: _Leaf, numbers: Mapping[str, float]) -> str:
    """The rest of a sentence that begins with the key; empty if nothing is wrong."""
    if not leaf.comments:
        return f"does not say where it comes from; end its line with {one_of_kinds()}"
    if len(leaf.comments) > 1:
        return f"has {len(leaf.comments)} provenances, such as '# {shortened(leaf.comments[1])}'; keep one"
    try:
        known = parsed(leaf.comments[0])
        return _arithmetic_fault(leaf, known.arithmetic, numbers) if known.arithmetic else ""
    except ValueError as error:
        return str(error)


def _arithmetic_fault(leaf: _Leaf, arithmetic: str, numbers: Mapping[str, float]) -> str:
    values = [*_scalars(leaf.value)]
    others = {key: number for key, number in numbers.items() if key != leaf.key}
    found = results(arithmetic, others)
    if len(found) not in (1, len(values)):
        return f"has {len(values)} values, but '{arithmetic}' gives {len(found)}; give one for each, or one for all"
    for value, result in zip(values, found * (len(values) if len(found) == 1 else 1), strict=True):
        if not equal(value, result):
            return f"is {value}, but '{arithmetic}' gives {result:.15g}; change one of them"
    return ""


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _scalars(inner)
    else:
        yield value


def _shown(file: Path) -> str:
    home = conf_folder().parent
    return (file.relative_to(home) if file.is_relative_to(home) else file).as_posix()


def _leaves(file: Path) -> tuple[list[_Leaf], list[tuple[str, int, int]]]:
    """The values, and keys that stand twice with both lines, from 1."""
    reader = _Reader(file.read_text(encoding="utf-8"))
    return [*reader.leaves()], reader.twice


class _Reader:
    """Walks through the nodes of one file.

    Args:
        text: The whole file.
    """

    def __init__(self, text: str) -> None:
        from recipes.quick_compose import Loader

        self.comments = Comments(text)
        self.loader = Loader(text)
        self.root = self.loader.get_single_node()
        self.values_on = {node.start_mark.line for node in _scalar_nodes(self.root)}
        self.twice: list[tuple[str, int, int]] = []

    def leaves(self) -> Iterator[_Leaf]:
        if isinstance(self.root, yaml.MappingNode):
            for key, node, value in self._items(self.root, ""):
                if key == "defaults":
                    yield from self._choices(node, value)
                elif key not in WITHOUT:
                    yield from self._below(key, value, node, [])

    def _items(self, mapping: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, Any, Any]]:
        """Dotted key, the key's node and the value's; a key that stands twice is noted."""
        first: dict[str, int] = {}
        for node, value in mapping.value:
            key, line = f"{prefix}{node.value}", node.start_mark.line + 1
            if key in first:
                self.twice.append((key, first[key], line))
            first.setdefault(key, line)
            yield key, node, value

    def _choices(self, node: Any, entries: Any) -> Iterator[_Leaf]:
        """Options of groups, `- override /rope: linear`."""
        above = self._of_mapping(node, entries)
        for entry in entries.value if isinstance(entries, yaml.SequenceNode) else []:
            for name, option in entry.value if isinstance(entry, yaml.MappingNode) else []:
                group = name.value.removeprefix("override /")
                if group != name.value and group not in FREE_GROUPS:
                    yield _Leaf(group, option.value, option.start_mark.line, self._of_line(name, option) or above)

    def _below(self, key: str, node: Any, start: Any, inherited: list[str]) -> Iterator[_Leaf]:
        """The values of one node, with the comment of the nearest mapping around them.

        Args:
            key: Its dotted key.
            node: The value.
            start: The node at which its line begins: the key, or the item itself.
            inherited: Comments of what is around it.
        """
        if isinstance(node, yaml.ScalarNode):
            if not self._needs_none(key, node):
                yield self._leaf(key, node, self._of_line(start, node) or inherited)
        elif self._is_one_value(key, node):
            yield self._leaf(key, node, self._of_line(start, node) or inherited)
        else:
            inherited = self._of_mapping(start, node) or inherited
            if isinstance(node, yaml.MappingNode):
                for name, child, value in self._items(node, f"{key}."):
                    yield from self._below(name, value, child, inherited)
            else:
                for number, item in enumerate(node.value):
                    yield from self._below(f"{key}.{number}", item, item, inherited)

    def _leaf(self, key: str, node: Any, comments: list[str]) -> _Leaf:
        return _Leaf(key, self.loader.construct_object(node, deep=True), node.start_mark.line, comments)

    def _is_one_value(self, key: str, node: Any) -> bool:
        """Whether it is a list, or a mapping of shares such as a mixture, that stands on one line."""
        if not node.flow_style or not node.value or node.start_mark.line != node.end_mark.line:
            return False
        if isinstance(node, yaml.SequenceNode):
            children = node.value
            return all(isinstance(child, yaml.ScalarNode) and not self._needs_none(key, child) for child in children)
        numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        all_numbers = all(child.tag in numbers for _, child in node.value)
        return "." in key and all_numbers and len({name.value for name, _ in node.value}) == len(node.value)

    def _needs_none(self, key: str, node: yaml.ScalarNode) -> bool:
        """Whether a value states nothing: none, a reference, a class, or where something lies."""
        name, text = key.rpartition(".")[2], node.value
        is_class = name.startswith("_") and name.endswith("_")
        is_place = name in PLACES or ("/" in text and " " not in text)
        return node.tag.endswith(":null") or text == "???" or "${" in text or is_class or is_place

    def _of_line(self, start: Any, node: Any) -> list[str]:
        """Behind a value, and directly above where its line begins."""
        lines = sorted({start.start_mark.line, node.start_mark.line, last_line(node.start_mark, node.end_mark)})
        return [*filter(None, map(self.comments.behind, lines)), *self.comments.above(start.start_mark.line)]

    def _of_mapping(self, start: Any, node: Any) -> list[str]:
        """Behind the key of a mapping or list, where no value stands, or its closing bracket; and above the key."""
        lines = {start.start_mark.line} - self.values_on
        if node.flow_style and node.end_mark.line > node.start_mark.line:
            lines |= {node.end_mark.line}
        behind = [*filter(None, map(self.comments.behind, sorted(lines)))]
        return [*behind, *self.comments.above(start.start_mark.line)]


def _scalar_nodes(node: Any) -> Iterator[Any]:
    """Scalars that are values, not keys."""
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _scalar_nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _scalar_nodes(value)
    elif node is not None:
        yield node
