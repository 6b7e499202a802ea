"""Print one preset: its header, and the whole configuration that it composes to."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from recipes.cli import main


def show(config: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig  # noqa: F401  (documents where choices come from)

    print(OmegaConf.to_yaml(config).rstrip())


if __name__ == "__main__":
    main("show", show, doc=__doc__ or "", validated=False)
