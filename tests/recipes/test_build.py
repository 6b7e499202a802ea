from __future__ import annotations

from omegaconf import OmegaConf

from datamodules.corpora.recall import RecallCorpus
from recipes.build import build
from recipes.compose import compose


def test_building_a_node_leaves_the_configuration_unresolved() -> None:
    """A resolved `${bundled:…}` would put this machine's path into the record of the run and forbid its resumption."""
    config = compose(["recipe=demo/base"]).config
    before = OmegaConf.to_container(config, resolve=False)
    assert isinstance(build(config.corpus.sources.recall), RecallCorpus)  # its haystack is a reference
    assert OmegaConf.to_container(config, resolve=False) == before
