"""LayerProbeDisplay: what it draws."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.utils import Bunch

from sklconv.inspection import LayerProbeDisplay

plt = pytest.importorskip("matplotlib.pyplot")


def probe_of(layers, pools, means, stds=None, own=()):
    """A probe of two folds with these means and standard deviations."""
    means = np.asarray(means, dtype=float)
    stds = np.full(len(means), 0.01) if stds is None else np.asarray(stds)
    return Bunch(
        layers=list(layers),
        pools=list(pools),
        accuracies=np.stack([means - stds, means + stds], axis=1),
        accuracies_mean=means,
        accuracies_std=stds,
        own=np.array([i in own for i in range(len(means))]),
    )


LAYERS, POOLS = ["a", "a", "b", "b", "c"], ["flatten", "avg", "flatten", "avg", "auto"]
PROBE = probe_of(LAYERS, POOLS, [0.5, 0.4, 0.9, 0.6, 0.7], [0.1, 0.02, 0.03, 0.04, 0.05], {4})


def points(container):
    """Each mean with the ends of its bar, and its height."""
    line, _, (bars,) = container
    ends = [(left[0], right[0]) for left, right in bars.get_segments()]
    return list(zip(line.get_xdata(), ends, line.get_ydata(), strict=True))


def test_a_container_each_pooling_with_its_means_and_standard_deviations():
    display = LayerProbeDisplay(PROBE).plot()
    labels = [container.get_label() for container in display.errorbars_]
    assert labels == ["mean of each map", "all values", "vector"]
    for container, chosen in zip(display.errorbars_, ([1, 3], [0, 2], [4]), strict=True):
        for i, (mean, ends, height) in zip(chosen, points(container), strict=True):
            assert mean == PROBE.accuracies_mean[i]
            std = PROBE.accuracies_std[i]
            assert_allclose(ends, (mean - std, mean + std))
            # Within the row of its layer.
            assert round(height) == "abc".index(LAYERS[i])
    colours = {container[0].get_color() for container in display.errorbars_}
    markers = {container[0].get_marker() for container in display.errorbars_}
    assert len(colours) == len(markers) == 3


def test_the_first_layer_is_on_top():
    ax = LayerProbeDisplay(PROBE).plot().ax_
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert list(ax.get_yticks()) == [0, 1, 2]
    assert ax.get_ylim() == (2.5, -0.5)
    assert "accuracy" in ax.get_xlabel()


def test_the_best_and_the_models_own_are_marked():
    display = LayerProbeDisplay(PROBE).plot()
    assert display.best_.get_xdata() == [0.9]
    assert round(display.best_.get_ydata()[0]) == 1
    assert display.best_.get_label() == "best: b, all values, 0.900 ± 0.030"
    assert_allclose([display.own_.get_xdata(), display.own_.get_ydata()], [[0.7], [2]])
    assert display.own_.get_label() == "the model's own: c, vector, 0.700 ± 0.050"
    shown = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert {display.best_.get_label(), display.own_.get_label(), "vector"} < set(shown)


def test_of_equals_the_deepest_is_the_best():
    display = LayerProbeDisplay(probe_of("abc", ["avg"] * 3, [0.8, 0.8, 0.7])).plot()
    assert display.best_.get_ydata() == [1]
    assert display.own_ is None
    several = LayerProbeDisplay(probe_of("abc", ["avg"] * 3, [0.8, 0.8, 0.7], own={0, 2})).plot()
    assert list(several.own_.get_ydata()) == [0, 2]
    assert several.own_.get_label() == "the model's own"


def test_layers_without_an_accuracy_leave_their_rows_empty():
    display = LayerProbeDisplay(probe_of("abc", ["avg"] * 3, [np.nan, 0.8, 0.7])).plot()
    assert display.best_.get_ydata() == [1]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["a", "b", "c"]


def first(activation):
    return activation[:, 0]


def test_callables_are_called_by_their_names():
    probe = probe_of("ab", [first, "max"], [0.8, 0.7])
    labels = [c.get_label() for c in LayerProbeDisplay(probe).plot().errorbars_]
    assert labels == ["maximum of each map", "first"]


def many():
    layers = [f"layer{i // 15}.{i % 15}.conv2" for i in range(60) for _ in range(2)]
    means = np.linspace(0.3, 0.95, 120)
    return probe_of(layers, ["flatten", "avg"] * 60, means, own={119})


def boxes(display, artists):
    display.figure_.canvas.draw()
    return [artist.get_window_extent() for artist in artists]


@pytest.mark.parametrize("probe", [PROBE, many()], ids=["3 layers", "60 layers"])
def test_nothing_is_cut_off_or_overlaps(probe):
    display = LayerProbeDisplay(probe).plot()
    ax, figure = display.ax_, display.figure_
    names = boxes(display, ax.get_yticklabels())
    assert len(names) == len(set(probe.layers))
    whole = figure.bbox
    for box in [*names, *boxes(display, [ax.get_legend(), ax.xaxis.label])]:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    for upper, lower in pairwise(names):
        assert upper.y0 >= lower.y1
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1
    assert min(label.get_size() for label in ax.get_yticklabels()) >= 8


def test_in_low_axes_only_some_rows_are_named():
    ax = plt.figure(figsize=(8, 4)).subplots()
    display = LayerProbeDisplay(many()).plot(ax)
    assert display.ax_ is ax
    names = boxes(display, ax.get_yticklabels())
    assert 20 <= len(names) < 60
    for upper, lower in pairwise(names):
        assert upper.y0 >= lower.y1 - 1  # pixel
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "layer0.2.conv2"


def test_no_accuracy_is_beyond_1():
    probe = probe_of("abc", ["avg"] * 3, [0.8, 0.98, 1.0], [0.1, 0.1, 0.1])
    display = LayerProbeDisplay(probe).plot()
    ends = [ends for _, ends, _ in points(display.errorbars_[0])]
    assert_allclose(ends, [(0.7, 0.9), (0.88, 1), (0.9, 1)])
    # The ring around an accuracy of 1 is whole, and nothing else has room behind it.
    display.figure_.canvas.draw()
    ax = display.ax_
    behind = ax.get_window_extent().x1 - ax.transData.transform((1, 0))[0]
    ring = 12 * display.figure_.dpi / 72
    assert ring / 2 <= behind <= 1.6 * ring
    assert max(tick for tick in ax.get_xticks() if tick <= ax.get_xlim()[1]) <= 1
    low = LayerProbeDisplay(probe_of("a", ["avg"], [0.02], [0.1])).plot()
    assert_allclose(points(low.errorbars_[0])[0][1], (0, 0.12))


@pytest.mark.parametrize("probe", [PROBE, many()], ids=["3 layers", "60 layers"])
@pytest.mark.parametrize("layout", [None, "constrained"])
def test_in_a_grid_the_legend_covers_no_row(probe, layout):
    ax = plt.subplots(2, 2, layout=layout)[1][0, 1]
    display = LayerProbeDisplay(probe).plot(ax)
    (legend,) = boxes(display, [ax.get_legend()])
    place = ax.get_window_extent()
    assert place.x0 <= legend.x0 < legend.x1 <= place.x1
    assert legend.y1 <= place.y1
    first = ax.transData.transform((0, -0.5))[1]
    assert first <= legend.y0 + 1  # pixel
    assert display.best_.get_label() in ("best: 0.900 ± 0.030", "best: 0.950 ± 0.010")
    assert all(len(label.get_text()) <= 10 for label in ax.get_yticklabels())


def test_long_names_are_shortened():
    layers = [f"features.{i}.with_a_rather_long_name.conv{i}" for i in range(8)]
    display = LayerProbeDisplay(probe_of(layers, ["flatten"] * 8, np.linspace(0.5, 0.9, 8))).plot()
    ax, whole = display.ax_, display.figure_.bbox
    for box in boxes(display, [*ax.get_yticklabels(), ax.get_legend(), ax.xaxis.label]):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert [name[-1] for name in names] == [*"01234567"]
    assert all("…" in name for name in names)


def test_keywords_go_to_matplotlib():
    display = LayerProbeDisplay(PROBE).plot(color="black", capsize=3)
    assert {container[0].get_color() for container in display.errorbars_} == {"black"}
