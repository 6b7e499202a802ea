"""Write a finished run as a Hugging Face folder that plain transformers loads."""

from __future__ import annotations

from omegaconf import DictConfig

from recipes.cli import main


def export(config: DictConfig) -> None:
    """Export the run that `checkpoint` names (default: the recipe's newest finished one)."""
    from recipes.build import quiet
    from recipes.exporting.run import export_run
    from recipes.run_folder import find_run

    quiet()
    print(f"exported: {export_run(config, find_run(config))}")


if __name__ == "__main__":
    main("export", export, doc=__doc__ or "")
