import subprocess
import sys

import numpy as np
import pytest

from recipes.reporting import ablation_figures
from recipes.reporting.ablation_figures import Axis, Mark, Panels, Place, plot_grid_lines, plot_grid_maps

THETA, LENGTH = Axis("rope_theta"), Axis("context length (tokens)", is_length=True)
BY_LENGTH: dict[Place, dict[Place, float]] = {
    512.0: {10000.0: 40.0, 85550.0: 44.0},
    4096.0: {85550.0: 50.0, 10000.0: 90.0},
}
MARKS = [Mark("base's", 10000.0, 512.0), Mark("chosen", 85550.0, 4096.0), Mark("not here", 7.0, 9.0)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were before they went to disk."""
    kept = []
    save = ablation_figures.save
    monkeypatch.setattr(ablation_figures, "save", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def test_lines_carry_the_numbers_on_a_log_axis_in_panels_of_one_scale(tmp_path, drawn):
    panels: Panels = {
        "untrained": BY_LENGTH,
        "trained": {512.0: {10000.0: 39.0}, 4096.0: {10000.0: 41.0, 85550.0: 40.5}},
    }
    path = plot_grid_lines(panels, x=THETA, series=LENGTH, value="perplexity", marks=MARKS[:2], path=tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    left, right = drawn[0].axes
    assert [axes.get_title() for axes in (left, right)] == ["untrained", "trained"]
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xscale() == "log"
    for axes, lines in ((left, panels["untrained"]), (right, panels["trained"])):
        found = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}
        assert found["512"] == lines[512.0]
        assert found["4K"] == lines[4096.0]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["4K", "512"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["10,000", "85,550"]


def test_marks_are_dashed_lines_and_rings_at_their_place(tmp_path, drawn):
    plot_grid_lines(
        {"untrained": BY_LENGTH}, x=THETA, series=LENGTH, value="perplexity", marks=MARKS, path=tmp_path / "a.png"
    )
    (axes,) = drawn[0].axes
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed[:2] == [10000.0, 85550.0]
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert rings == [(10000.0, 40.0), (85550.0, 50.0)]
    assert {"base's", "chosen"} <= {text.get_text() for text in axes.texts}


def test_named_series_have_colours_of_their_own_beside_a_grey_reference(tmp_path, drawn):
    panels: Panels = {"trained": {"masked": {512.0: 0.9, 4096.0: 0.5}, "one document": {512.0: 0.8}}}
    points: dict[Place, float] = {512.0: 1.0, 4096.0: 0.1}
    reference = ("base as it is", points)
    shown = {"x": LENGTH, "series": Axis("cell"), "value": "needle recall", "is_share": True}
    plot_grid_lines(panels, **shown, reference=reference, path=tmp_path / "a.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert dict(zip(*lines["base as it is"].get_data(), strict=True)) == reference[1]
    assert dict(zip(*lines["masked"].get_data(), strict=True)) == panels["trained"]["masked"]
    assert len({line.get_color() for line in lines.values()}) == 3
    assert len({line.get_marker() for line in lines.values()}) == 3
    assert axes.get_ylim() == (-0.03, 1.03)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(lines)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "4K"]


def test_labels_that_would_touch_are_slanted(tmp_path, drawn):
    for bases in ((10000.0, 85550.0), (10000.0, 85550.0, 160000.0, 1000000.0)):
        panels: Panels = {"trained": {512.0: {base: 40.0 + base for base in bases}}}
        plot_grid_lines(panels, x=THETA, series=LENGTH, value="perplexity", path=tmp_path / "a.png")
    labels = [figure.axes[0].get_xticklabels() for figure in drawn]
    assert [{label.get_rotation() for label in own} for own in labels] == [{0.0}, {40.0}]
    assert [label.get_text() for label in labels[1]] == ["10,000", "85,550", "160,000", "1,000,000"]


def test_names_along_x_stand_at_equal_distances(tmp_path, drawn):
    panels: Panels = {"trained": {512.0: {"masked": 40.0, "one document": 41.0}}}
    plot_grid_lines(panels, x=Axis("packing"), series=LENGTH, value="perplexity", path=tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_xdata()) == [0.0, 1.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["masked", "one document"]


def test_a_breakdown_makes_the_value_axis_logarithmic(tmp_path, drawn):
    for worst in (90.0, 4000.0):
        panels: Panels = {"trained": {512.0: {1.0: 40.0, 2.0: worst}}}
        plot_grid_lines(panels, x=THETA, series=LENGTH, value="perplexity", path=tmp_path / "a.png")
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["linear", "log"]


def test_map_has_length_across_base_upwards_and_gaps_where_nothing_is(tmp_path, drawn):
    panels: Panels = {
        "untrained": {10000.0: {512.0: 40.0, 4096.0: 90.0}, 85550.0: {512.0: 44.0, 4096.0: 50.0}},
        "trained": {10000.0: {512.0: 39.0, 4096.0: 60.0}},
    }
    marks = [Mark("base's", 512.0, 10000.0), Mark("chosen", 4096.0, 85550.0), Mark("not here", 7.0, 9.0)]
    plot_grid_maps(panels, x=LENGTH, y=THETA, value="perplexity", marks=marks, path=tmp_path / "a.png")
    left, right, bar = drawn[0].axes
    np.testing.assert_array_equal(left.images[0].get_array(), [[40.0, 90.0], [44.0, 50.0]])
    np.testing.assert_array_equal(right.images[0].get_array().mask, [[False, False], [True, True]])
    assert not left.yaxis_inverted()
    assert left.images[0].get_clim() == right.images[0].get_clim() == (39.0, 90.0)
    assert {text.get_position(): text.get_text() for text in left.texts} == {
        (0, 0): "40.00",
        (1, 0): "90.00",
        (0, 1): "44.00",
        (1, 1): "50.00",
    }
    boxes = [patch.get_xy() for patch in left.patches]
    np.testing.assert_allclose(boxes, [(-0.46, -0.46)] * 2 + [(0.54, 0.54)] * 2)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["base's", "chosen"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["10,000", "85,550"]
    assert bar.get_ylabel() == "perplexity"


@pytest.mark.parametrize("is_share", [True, False])
def test_bright_is_good(tmp_path, drawn, is_share):
    panels: Panels = {"trained": {1.0: {512.0: 0.1, 4096.0: 0.9}}}
    plot_grid_maps(panels, x=LENGTH, y=THETA, value="v", is_share=is_share, path=tmp_path / "a.png")
    image = drawn[0].axes[0].images[0]
    low, high = (float(sum(image.cmap(image.norm(value))[:3])) for value in (0.1, 0.9))
    assert (high > low) is is_share
    assert image.get_clim() == ((0.0, 1.0) if is_share else (0.1, 0.9))


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, recipes.reporting.ablation_figures; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
