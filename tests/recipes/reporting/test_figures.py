import subprocess
import sys

import numpy as np
import pytest

from lightning_modules.evaluation.scoring import NeedleResult
from recipes.reporting import figures
from recipes.reporting.figures import plot_needles, plot_perplexity, short_length

PPL = {"base": {512: 40.0, 1024: 90.0, 4096: 4000.0}, "after training": {512: 39.0, 1024: 37.5, 4096: 36.0}}


def make_result(fill: float | None = None) -> NeedleResult:
    recall = np.arange(6).reshape(2, 3) / 6 if fill is None else np.full((2, 3), fill)
    return NeedleResult((512, 4096), (0.0, 0.5, 1.0), recall, recall * 2)


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were before they went to disk."""
    kept = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def test_perplexity_lines_carry_the_numbers_and_the_original_context(tmp_path, drawn):
    path = plot_perplexity(PPL, trained_length=512, path=tmp_path / "deep" / "ppl.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    for name, points in PPL.items():
        assert dict(zip(*lines[name].get_data(), strict=True)) == points
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == [512, 512]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(PPL)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "1K", "4K"]


def test_perplexity_axis_is_linear_unless_a_variant_breaks_down(tmp_path, drawn):
    plot_perplexity(PPL, trained_length=512, path=tmp_path / "a.png")
    plot_perplexity({"after training": PPL["after training"]}, trained_length=512, path=tmp_path / "b.png")
    assert [figure.axes[0].get_yscale() for figure in drawn] == ["log", "linear"]


def test_needle_map_has_depth_downwards_length_across_and_the_mean_beneath(tmp_path, drawn):
    result = make_result()
    plot_needles({"base": result, "after": make_result(1.0)}, original_length=512, path=tmp_path / "needles.png")
    maps, means = drawn[0].axes[:2]
    np.testing.assert_allclose(maps.images[0].get_array(), result.recall.T)
    assert maps.yaxis_inverted(), "depth 0 is not at the top"
    assert maps.images[0].get_clim() == means.images[0].get_clim() == (0, 1)
    np.testing.assert_allclose(means.images[0].get_array(), result.recall.mean(1)[None])
    printed = {text.get_position(): text.get_text() for text in maps.texts}
    assert printed[(1, 2)] == f"{result.recall[1, 2]:.2f}"
    assert len(printed) == 6
    assert [label.get_text() for label in means.get_xticklabels()] == ["512", "4K"]
    assert [axes.get_title() for axes in drawn[0].axes[::2]] == ["base", "after"]
    assert maps.lines[0].get_xdata()[0] == 0.5, "the original context is not between 512 and 4K"


def test_needle_colours_run_from_red_to_green(tmp_path, drawn):
    from matplotlib.colors import to_hex

    plot_needles({"base": make_result()}, original_length=512, path=tmp_path / "needles.png")
    cmap = drawn[0].axes[0].images[0].get_cmap()
    assert [to_hex(cmap(value)).upper() for value in (0.0, 1.0)] == ["#F0496E", "#0CD79F"]
    np.testing.assert_allclose(cmap(0.5), (0xEB / 255, 0xB8 / 255, 0x39 / 255, 1), atol=0.01)


def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "ppl.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(figures.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        plot_perplexity(PPL, trained_length=512, path=path)
    assert path.read_bytes() == b"old"


def test_lengths_read_as_in_papers():
    assert [short_length(n) for n in (512, 1000, 1024, 1536, 32768)] == ["512", "1000", "1K", "1.5K", "32K"]


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, recipes.reporting.figures; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
