"""The front door: `python -m recipes.<verb> key=value …`, and what a user sees when something is wrong.

A mistake of the user's is one clear sentence on standard error and exit status 2, never a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from omegaconf import DictConfig

HELP = """usage: python -m recipes.{verb} recipe=<name> [key=value …]

{doc}

  recipe=demo/extend            a preset; `python -m recipes.list` shows them all
  scale=toy                     the preset's mechanism on the bundled model and text
  rope=linear, packing=…        another option of a group: a one-word ablation
  optimizer.lr=1e-4             any single key; `python -m recipes.show recipe=…` prints them
"""


def main(verb: str, action: Callable[[DictConfig], None], *, doc: str, validated: bool = True) -> None:
    """Compose the configuration of the command line, validate it, and act on it."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(HELP.format(verb=verb, doc=doc.strip()))
        return
    sys.exit(run(words, action, validated=validated))


def run(words: list[str], action: Callable[[DictConfig], None], *, validated: bool = True) -> int:
    """Compose, validate, act; returns the exit status."""
    from recipes.compose import compose

    try:
        config = compose(words)
        if validated:
            from recipes.validate import validate

            validate(config, words)
        action(config)
    except (ValueError, FloatingPointError) as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
