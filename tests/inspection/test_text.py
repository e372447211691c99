"""Names and titles as they are drawn."""

import numpy as np
import pytest
from sklearn.utils import Bunch

from sklconv.inspection import (
    ActivationsDisplay,
    EmbeddingDisplay,
    FeatureMapsDisplay,
    FiltersDisplay,
    LayerProbeDisplay,
    OcclusionDisplay,
    SaliencyDisplay,
    TrainingHistoryDisplay,
)
from sklconv.inspection._drawing import draw_title, shortened

plt = pytest.importorskip("matplotlib.pyplot")
is_math_text = pytest.importorskip("matplotlib.cbook").is_math_text

HISTORY = [
    {"epoch": i, "train_loss": 1.0, "valid_loss": None, "train_accuracy": 0.5}
    | {"valid_accuracy": None}
    for i in (1, 2)
]
HARD = ["cost_$5_and_$6", r"$\frac$", "$x", "_run1", r"a\$b$"]


def drawn(text):
    """What is drawn of a text; "mathematics" if it would be typeset as that."""
    text.figure.canvas.draw()
    if not text.get_parse_math():
        return text.get_text()
    is_math = is_math_text(text.get_text())
    return "mathematics" if is_math else text.get_text().replace(r"\$", "$")


@pytest.mark.parametrize("name", HARD)
def test_names_of_models_stand_in_the_legend(name):
    display = TrainingHistoryDisplay(HISTORY, name=name).plot()
    for ax in display.axes_:
        (text,) = ax.get_legend().get_texts()
        assert drawn(text).strip() == f"{name}, train"
        ax.legend()  # another one, by the user
        assert drawn(ax.get_legend().get_texts()[0]).strip() == f"{name}, train"


@pytest.mark.parametrize("layer", HARD)
def test_names_of_layers_stand_in_titles(layer):
    titles = [
        FeatureMapsDisplay(np.ones((2, 3, 3)), layer=layer).plot().ax_.title,
        FiltersDisplay(np.ones((2, 1, 3, 3)), layer=layer).plot().ax_.title,
        ActivationsDisplay(np.ones(3), layer=layer).plot().axes_[0].title,
        EmbeddingDisplay(np.eye(2), layer=layer).plot().ax_.title,
        SaliencyDisplay(np.ones((1, 3, 3)), np.ones((3, 3)), layer=layer).plot().ax_.title,
    ]
    for title in titles:
        assert drawn(title).startswith(layer)


@pytest.mark.parametrize("layer", HARD)
def test_names_of_layers_stand_at_the_rows_of_a_probe(layer):
    means = {"accuracies_mean": np.array([0.5, 0.6]), "accuracies_std": np.full(2, 0.1)}
    probe = Bunch(layers=["a", layer], pools=["avg"] * 2, own=np.array([False, True]), **means)
    display = LayerProbeDisplay(probe).plot()
    assert [drawn(label) for label in display.ax_.get_yticklabels()] == ["a", layer]
    texts = [drawn(text) for text in display.ax_.get_legend().get_texts()]
    assert f"best: {layer}, mean of each map, 0.600 ± 0.100" in texts


@pytest.mark.parametrize("label", HARD)
def test_names_of_classes_stand_in_the_legend(label):
    display = EmbeddingDisplay(np.eye(2), [label, "b"]).plot()
    texts = {drawn(text).strip() for text in display.legend_.get_texts()}
    assert texts == {label, "b"}


def test_the_middle_of_long_names_is_left_out():
    assert shortened("short", 5) == "short"
    assert shortened("features.17.conv2", 9) == "feat…onv2"
    assert shortened("features.17.conv2", 8) == "feat…nv2"
    assert [len(shortened("features.17.conv2", n)) for n in range(1, 20)] == [
        min(n, 17) for n in range(1, 20)
    ]


def in_place(ax, text):
    """Whether a text is within the figure and, by half a pixel, as wide as the axes' place."""
    ax.figure.canvas.draw()
    box, figure = text.get_window_extent(), ax.figure.bbox
    place = ax.get_position(original=True).transformed(ax.figure.transFigure)
    assert figure.x0 <= box.x0 < box.x1 <= figure.x1
    assert figure.y0 <= box.y0 < box.y1 <= figure.y1
    assert box.width <= place.width + 3
    return True


@pytest.mark.parametrize("layout", [None, "constrained"])
@pytest.mark.parametrize("n", [3, 25, 90])
def test_titles_are_as_wide_as_the_place_of_their_axes(layout, n):
    _, axes = plt.subplots(2, 2, layout=layout)
    for ax in axes.ravel():
        draw_title(ax, ["W" * n, "layer"])
    for ax in axes.ravel():
        assert in_place(ax, ax.title)
        assert ax.title.get_size() >= 8
    title = axes[0, 0].get_title()
    assert title.endswith("layer")
    assert ("\n" in title) == (n > 3)
    assert ("…" in title) == (n > 3)


CLASSES = {0: "class 0", "class_053": "class_053", "no. 5 of some long-haired breeds": None}


@pytest.mark.parametrize("target", CLASSES)
@pytest.mark.parametrize("alone", [True, False])
def test_titles_and_scales_over_an_image_are_not_cut_off(target, alone):
    image, values = np.ones((1, 8, 8)), np.eye(8)
    layer = "features.denseblock4.denselayer16.conv2"
    patch = {"patch_size": (1, 1), "stride": (1, 1), "response_method": "decision_function"}
    displays = [
        SaliencyDisplay(image, values, target=target, layer=layer),
        SaliencyDisplay(image, values, target=target),
        OcclusionDisplay(image, values, target=target, **patch),
    ]
    axes = [None] * 3 if alone else plt.subplots(2, 2)[1].ravel()[[0, 1, 3]]
    for display, ax in zip(displays, axes, strict=True):
        display.plot(ax)
    for display in displays:
        assert in_place(display.ax_, display.ax_.title)
        label = display.colorbar_.ax.yaxis.label.get_window_extent()
        assert label.height <= display.ax_.get_window_extent().height + 3
    if CLASSES[target]:
        assert [display.ax_.get_title() for display in displays[1:]] == [CLASSES[target]] * 2
