"""Print the certificate of a checkpoint, anybody's: which RoPE readers compute, and whether packed documents leak."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.cli import exit_status

USAGE = """usage: python -m recipes.verify checkpoint=<folder>

{doc}

  checkpoint=<folder>           a Hugging Face folder, a LoRA adapter's folder, or the folder of a run that was exported

Looks at what config.json says, what the loaded model computes, what a fresh process reloads, what readers of older keys
compute, and whether one of three packed documents sees another under each attention. Exit status 0: clean, with or
without warnings; 1: a violation; 2: a mistake in the words, or something is not on this disk."""


def verify(words: Sequence[str]) -> None:
    """Print the certificate.

    Raises:
        SystemExit: With status 1, if there is a violation.
        ValueError: The words are not one checkpoint.
    """
    folder = checkpoint_of(words)  # before an import of seconds
    from recipes.build import quiet
    from recipes.verifying.certify import certify

    quiet()
    certificate = certify(folder)
    print(certificate.text())
    if not certificate.clean:
        raise SystemExit(1)


def checkpoint_of(words: Sequence[str]) -> Path:
    """The folder that the command line names.

    Raises:
        ValueError: It names none, several, or something else.
    """
    for word in words:
        if not word.startswith("checkpoint="):
            raise ValueError(f"'{word}' is not understood; give checkpoint=<folder> and nothing else")
    if len(words) != 1 or not words[0].removeprefix("checkpoint="):
        raise ValueError("give one checkpoint=<folder>: a Hugging Face folder, an adapter's, or a run's")
    return Path(words[0].removeprefix("checkpoint=")).expanduser()


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE.format(doc=(__doc__ or "").strip()))
    else:
        sys.exit(exit_status(lambda: verify(sys.argv[1:])))
