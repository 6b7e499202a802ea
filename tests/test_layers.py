"""Imports run one way: conf -> recipes -> {datamodules, lightning_modules}; one sideways arrow, `datamodules.batch`.

Read from the syntax tree, so that imports inside functions and under `TYPE_CHECKING` count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "conf": (),
    "recipes": ("recipes", "datamodules", "lightning_modules"),
    "datamodules": ("datamodules",),
    "lightning_modules": ("lightning_modules", "datamodules.batch"),
    "tests": ("tests", "benchmarks", "recipes", "datamodules", "lightning_modules", "conf"),
    "benchmarks": ("benchmarks", "recipes", "datamodules", "lightning_modules", "conf"),
}
"""Which of our own modules a package may import, each with everything below it."""

CONFIG_LIBRARIES = ("hydra", "omegaconf")
BELOW_RECIPES = ("datamodules", "lightning_modules")
OPTIONAL_PACKAGES = ("flash_attn", "ray", "bitsandbytes", "liger_kernel", "lm_eval", "sentencepiece")
DYNAMIC_IMPORTS = ("importlib.import_module", "import_module", "__import__")
KNOW_TARGET = ("recipes/build.py", "recipes/validate.py", "recipes/compose.py")
SMALLEST_NUM_FILES = {"conf": 1, "recipes": 3, "datamodules": 15, "lightning_modules": 20, "tests": 15}


class Import(NamedTuple):
    name: str
    line: int
    runs_on_load: bool  # executed when the module is imported: neither in a function nor under TYPE_CHECKING


def imports(node: ast.AST, package: str, runs_on_load: bool = True) -> Iterator[Import]:
    """Every import below `node`; `from a.b import c` is `a.b.c`, relative ones are resolved in `package`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        runs_on_load = False
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from imports(child, package, runs_on_load=False)
        for child in node.orelse:
            yield from imports(child, package, runs_on_load)
        return

    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, runs_on_load)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        for alias in node.names:
            name = ".".join([*parents, *filter(None, [node.module]), alias.name])
            yield Import(name, node.lineno, runs_on_load)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in DYNAMIC_IMPORTS:
        match node.args:
            case [ast.Constant(value=str(name)), *_]:
                yield Import(name, node.lineno, runs_on_load)

    for child in ast.iter_child_nodes(node):
        yield from imports(child, package, runs_on_load)


def is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def faults(path: str, source: str) -> list[str]:
    """What is wrong with one file; `path` is relative to the repository root."""
    layer = path.split("/")[0]
    package = ".".join(path.split("/")[:-1])
    found = []
    for name, line, runs_on_load in imports(ast.parse(source), package):
        if is_within(name, tuple(MAY_IMPORT)) and not is_within(name, MAY_IMPORT[layer]):
            found.append(f"{path}:{line}: {layer} must not import {name}")
        if layer in BELOW_RECIPES and is_within(name, CONFIG_LIBRARIES):
            found.append(f"{path}:{line}: nothing below recipes reads the config object, yet it imports {name}")
        if runs_on_load and is_within(name, OPTIONAL_PACKAGES):
            found.append(f"{path}:{line}: {name} is optional; import it in the function that uses it")
    if layer == "conf" and not path.endswith("/__init__.py"):
        found.append(f"{path}: conf holds no Python")
    if layer != "tests" and path not in KNOW_TARGET and re.search(r"\b_target_\b", source):
        found.append(f"{path}: only conf knows _target_")
    return found


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = python_files(package)
    assert len(files) >= SMALLEST_NUM_FILES.get(package, 0)
    found = [fault for path in files for fault in faults(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("datamodules/a.py", "import recipes.build", "datamodules must not import recipes.build"),
        ("datamodules/a.py", "from lightning_modules.rope import patch", "not import lightning_modules.rope.patch"),
        ("datamodules/a.py", "import conf", "must not import conf"),
        ("datamodules/packing/a.py", "from ...recipes import build", "must not import recipes.build"),
        ("lightning_modules/a.py", "def f():\n    from recipes import build", ":2: lightning_modules must not import"),
        ("lightning_modules/a.py", "from datamodules import mixture", "must not import datamodules.mixture"),
        ("lightning_modules/a.py", "from datamodules.batches import x", "must not import datamodules.batches.x"),
        ("lightning_modules/a.py", "import importlib\nimportlib.import_module('recipes')", "must not import recipes"),
        ("lightning_modules/a.py", "if TYPE_CHECKING:\n    import recipes", "must not import recipes"),
        ("recipes/a.py", "import conf", "recipes must not import conf"),
        ("recipes/a.py", "from tests import conftest", "recipes must not import tests.conftest"),
        ("recipes/a.py", "import benchmarks.loss", "recipes must not import benchmarks.loss"),
        ("datamodules/a.py", "from omegaconf import DictConfig", "nothing below recipes reads the config object"),
        ("lightning_modules/a.py", "import hydra.utils", "nothing below recipes reads the config object"),
        ("recipes/a.py", "import ray.data", "ray.data is optional"),
        ("lightning_modules/a.py", "try:\n    import flash_attn\nfinally:\n    pass", "flash_attn is optional"),
        ("lightning_modules/a.py", "class A:\n    import bitsandbytes", "bitsandbytes is optional"),
        ("recipes/a.py", "key = '_target_'", "only conf knows _target_"),
        ("conf/a.py", "", "conf holds no Python"),
    ],
)
def test_wrong_file_is_reported(path: str, source: str, fault: str) -> None:
    (found,) = faults(path, source)
    assert fault in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lightning_modules/a.py", "from datamodules.batch import Batch"),
        ("lightning_modules/a.py", "from datamodules import batch"),
        ("lightning_modules/a.py", "def f():\n    import flash_attn"),
        ("lightning_modules/a.py", "if TYPE_CHECKING:\n    import flash_attn"),
        ("datamodules/packing/a.py", "from .plan import Segment"),
        ("datamodules/a.py", "import datasets, raydium\nnum_target_tokens = 1"),
        ("recipes/build.py", "from hydra.utils import get_class\nfrom datamodules import mixture\nkey = '_target_'"),
        ("tests/a.py", "from tests.lightning_modules import tiny_models\nkey = '_target_'"),
    ],
)
def test_right_file_is_accepted(path: str, source: str) -> None:
    assert faults(path, source) == []
