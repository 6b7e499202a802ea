"""Which stage of its paper a preset is."""

from __future__ import annotations

from recipes.showing.stages import Stage, in_order, stages


def test_chain_that_branches_counts_to_its_longest_end() -> None:
    found = stages({"p/qa": "p/few", "p/pre": None, "p/few": "p/pre", "q/alone": None, "p/early": "p/pre"})
    assert found == {
        "p/pre": Stage(1, 3),
        "p/few": Stage(2, 3),
        "p/early": Stage(2, 3),
        "p/qa": Stage(3, 3),
        "q/alone": Stage(1, 1),
    }
    assert in_order(found) == ["p/pre", "p/early", "p/few", "p/qa", "q/alone"]


def test_lost_and_circular_chains_end() -> None:
    assert stages({"a": "gone"}) == {"a": Stage(1, 1)}
    assert stages({"a": "a"}) == {"a": Stage(1, 1)}
    assert {stage.number for stage in stages({"a": "b", "b": "a"}).values()} == {2}
