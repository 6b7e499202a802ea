"""The front door: `python -m recipes.<verb> key=value …`, and what a user sees when something is wrong.

A mistake of the user's is one clear sentence on standard error and exit status 2, never a traceback.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Sequence

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

HELP = """usage: python -m recipes.{verb} {first} [key=value …]

{doc}

  recipe=<name>                 one of:
{presets}
  scale=toy                     the recipe's mechanism on the bundled model and text, in minutes on a laptop
  scale=single_gpu              the same on SmolLM2-360M and the recipe's own corpus, up to 32K and 1000 steps
  corpus=local corpus.folder=…  the recipe's sources from your own folders of their names
  variant=<name>                a baseline or ablation of the recipe's paper, such as utk/cip_2; recipes.list names them
  rope=linear, packing=…        another option of a group, a one-word ablation; groups and options:
{groups}
  optimizer.lr=1e-4             any single key; python -m recipes.show recipe=… prints them all
  trainer.devices=4 strategy=fsdp   more devices; trainer.accelerator=cpu|gpu

  output_dir=outputs            where runs go: <output_dir>/<recipe>/<time>, newest under …/latest
  run_folder=outputs/mine       where this one goes instead
  resume=auto                   auto goes on with an unfinished run of the same settings; never; or a run folder
  checkpoint=<run>              of evaluate and export: which run, instead of the newest finished one
  debug=two_steps               two optimizer steps: does everything hold together?

Words of the command line win over the scale, and the scale over the recipe. Exit status 2: a mistake in the words or
the data, said in one sentence; 130: interrupted."""


def main(verb: str, action: Callable[[DictConfig], None], *, doc: str) -> None:
    """Compose the configuration of the command line, validate it, act on it, and leave with the exit status."""
    words = sys.argv[1:]
    if not help_printed(verb, words, doc=doc):
        sys.exit(run(words, action))


def run(words: Sequence[str], action: Callable[[DictConfig], None]) -> int:
    """Compose, validate, act; returns the exit status."""

    def act() -> None:
        from recipes.compose import compose
        from recipes.validate import validate

        composed = compose(words)
        validate(composed)
        action(composed.config)

    return exit_status(act)


def exit_status(act: Callable[[], None]) -> int:
    """Act, and turn what a user can mend into a sentence: 0 done, 2 a mistake, 130 interrupted."""
    try:
        act()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OmegaConfBaseException as error:  # before ValueError, which some of them are too
        from recipes.compose import one_sentence

        return _refuse(one_sentence(error))
    except (ValueError, FloatingPointError) as error:
        return _refuse(str(error) or type(error).__name__)
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; set output_dir or cache_dir if it lies in one of these")
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def help_printed(verb: str, words: Sequence[str], *, doc: str) -> bool:
    """Print the help if the words ask for it."""
    if not {"-h", "--help"} & set(words):
        return False
    from recipes.compose import OVERLAYS, READ_ELSEWHERE, groups_on_disk, options, presets

    reads = next((group for group, reader in READ_ELSEWHERE.items() if reader.endswith(f".{verb}")), None)
    first = f"{reads}=<name> [recipe=<name>]" if reads else "recipe=<name>"
    first = "recipe=<name>|pipeline=<name>" if reads == "pipeline" else first
    first = "recipe=<name> hardware=<name>" if reads == "hardware" else first
    if reads:
        doc = f"{doc.strip()}\n\n  {f'{reads}=<name>':<30}one of:\n{_wrapped(options(reads))}"
    groups = (f"    {group:<17}{', '.join(options(group))}" for group in groups_on_disk() if group not in OVERLAYS)
    print(HELP.format(verb=verb, first=first, doc=doc.strip(), presets=_wrapped(presets()), groups="\n".join(groups)))
    return True


def _wrapped(names: Sequence[str]) -> str:
    return textwrap.fill(", ".join(names), 120, initial_indent=" " * 4, subsequent_indent=" " * 4)


def _refuse(sentences: str) -> int:
    for sentence in filter(None, sentences.splitlines()):
        print(f"error: {sentence}", file=sys.stderr)
    return 2
