"""Curves of training."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import TrainingHistoryDisplay

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:100], y[:100]


@pytest.fixture(scope="module")
def net(digits):
    X, y = digits
    net = ConvNetClassifier(max_epochs=3, random_state=0)
    return net.fit(X[:80], y[:80], X_val=X[80:], y_val=y[80:])


@pytest.fixture(scope="module")
def unvalidated(digits):
    return ConvNetClassifier(max_epochs=2, random_state=0).fit(*digits)


def column(model, name):
    return [row[name] for row in model.history_]


def test_loss_and_accuracy_of_both_parts(net):
    display = TrainingHistoryDisplay.from_estimator(net)
    names = ["train_loss", "valid_loss", "train_accuracy", "valid_accuracy"]
    for line, name in zip(display.lines_, names, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(line.get_ydata(), column(net, name))
        assert line.get_label() == name.partition("_")[0]
    assert [line.get_linestyle() for line in display.lines_] == ["--", "-"] * 2
    assert [line.axes for line in display.lines_] == [display.axes_[i] for i in (0, 0, 1, 1)]
    assert [ax.get_ylabel() for ax in display.axes_] == ["Loss", "Accuracy"]
    assert [ax.get_xlabel() for ax in display.axes_] == ["Epoch", "Epoch"]
    assert all(float(tick).is_integer() for tick in display.axes_[0].get_xticks())


def test_the_legend_of_a_figure_of_its_own_touches_no_curve():
    epochs = np.arange(1, 51)
    curves = {
        "train_loss": 2 * np.exp(-epochs / 15),
        "valid_loss": 2 * np.exp(-epochs / 5) + 0.6 + 0.03 * epochs,
        "train_accuracy": 1 - 0.7 * np.exp(-epochs / 15),
        "valid_accuracy": 0.75 - 0.4 * np.exp(-epochs / 4),
    }
    history = [
        {"epoch": epoch, **{name: curve[epoch - 1] for name, curve in curves.items()}}
        for epoch in epochs.tolist()
    ]
    for name in (None, "convolutional network"):
        display = TrainingHistoryDisplay(history, name=name).plot()
        display.figure_.canvas.draw()
        boxes = [ax.get_legend().get_window_extent() for ax in display.axes_]
        assert not boxes[0].overlaps(boxes[1])
        for ax, box in zip(display.axes_, boxes, strict=True):
            assert not box.overlaps(ax.get_window_extent())
            assert box.y1 <= display.figure_.bbox.y1


def test_the_error_on_a_logarithmic_axis(net):
    display = TrainingHistoryDisplay.from_estimator(net, metric="accuracy", scale="log")
    (ax,) = display.axes_
    assert (ax.get_ylabel(), ax.get_yscale()) == ("Error", "log")
    for line, name in zip(display.lines_, ["train_accuracy", "valid_accuracy"], strict=True):
        np.testing.assert_allclose(line.get_ydata(), 1 - np.array(column(net, name)))
    loss = TrainingHistoryDisplay.from_estimator(net, metric="loss", scale="log")
    assert loss.axes_[0].get_ylabel() == "Loss"
    np.testing.assert_array_equal(loss.lines_[0].get_ydata(), column(net, "train_loss"))


def of_errors(train, valid):
    """A history with these errors, and losses of the same values."""
    return [
        {"epoch": i, "train_loss": a, "valid_loss": b}
        | {"train_accuracy": 1 - a, "valid_accuracy": None if b is None else 1 - b}
        for i, (a, b) in enumerate(zip(train, valid, strict=True), start=1)
    ]


def test_of_one_epoch_there_are_two_points_to_tell_apart():
    display = TrainingHistoryDisplay(of_errors([0.25], [0.5])).plot()
    display.figure_.canvas.draw()
    assert [line.get_marker() for line in display.lines_] == ["o"] * 4
    assert [line.get_markevery() for line in display.lines_] == [[0]] * 4
    train, valid = display.lines_[:2]
    assert train.get_markerfacecolor() == "none" != valid.get_markerfacecolor()
    for ax in display.axes_:
        left, right = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if left <= tick <= right] == [1]


def test_only_points_without_neighbours_have_markers():
    display = TrainingHistoryDisplay(
        of_errors([0.5] * 7, [None, 0.4, None, 0.3, 0.2, None, 0.1])
    ).plot()
    train, valid = display.lines_[:2]
    assert train.get_marker() == "None"
    assert (valid.get_marker(), valid.get_markevery()) == ("o", [1, 6])
    squares = TrainingHistoryDisplay(of_errors([0.5], [0.4])).plot(marker="s")
    assert [line.get_marker() for line in squares.lines_] == ["s"] * 4


def test_errors_of_zero_stand_at_the_bottom_of_a_logarithmic_axis():
    history = of_errors([0.5, 0.25, 0.0, 0.0], [0.5, 0.25, 0.125, 0.0])
    display = TrainingHistoryDisplay(history).plot(scale="log", metric="accuracy")
    (ax,) = display.axes_
    display.figure_.canvas.draw()
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), [0.5, 0.25, np.nan, np.nan])
    assert [line.get_xdata().tolist() for line in display.zeros_] == [[3, 4], [4]]
    for line in display.zeros_:
        heights = line.get_transform().transform(line.get_xydata())[:, 1]
        np.testing.assert_allclose(heights, ax.get_window_extent().y0)
        assert not line.get_clip_on()
    assert 0.05 < ax.get_ylim()[0] < 0.125
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["train", "valid", "zero"]
    linear = TrainingHistoryDisplay(history).plot(metric="accuracy")
    assert linear.zeros_ == []
    assert linear.lines_[0].get_ydata()[-1] == 1


def test_errors_that_are_all_zero():
    _, ax = plt.subplots()
    display = TrainingHistoryDisplay(of_errors([0.0, 0.0], [0.0, 0.0])).plot(ax, scale="log")
    display.figure_.canvas.draw()
    assert ax.get_ylim() == (1e-3, 1)
    assert [len(line.get_xdata()) for line in display.zeros_] == [2, 2]
    TrainingHistoryDisplay(of_errors([0.2, 0.1], [0.3, 0.2])).plot(ax, scale="log")
    display.figure_.canvas.draw()
    assert 0.05 < ax.get_ylim()[0] < 0.1  # by what there is now
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["train", "valid", "zero", "train", "valid"]


def test_several_models_on_one_axes_differ_in_colour(net, unvalidated):
    _, ax = plt.subplots()
    first = TrainingHistoryDisplay.from_estimator(net, name="A", ax=ax, scale="log")
    second = TrainingHistoryDisplay.from_estimator(unvalidated, name="B", ax=ax, scale="log")
    third = TrainingHistoryDisplay(net.history_, name="C").plot(ax, name="D", scale="log")
    assert ax.lines[:] == [*first.lines_, *second.lines_, *third.lines_]
    assert ax.get_ylabel() == "Error"
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["A, train", "A, valid", "B, train", "D, train", "D, valid"]
    colours = [line.get_color() for line in ax.lines]
    assert colours[0] == colours[1]
    assert colours[3] == colours[4]
    assert len(set(colours)) == 3
    both = TrainingHistoryDisplay.from_estimator(net)
    beside = TrainingHistoryDisplay.from_estimator(unvalidated, ax=both.axes_)
    assert [ax.lines[-1] for ax in both.axes_] == beside.lines_


def test_without_validation_data(unvalidated):
    display = TrainingHistoryDisplay.from_estimator(unvalidated)
    assert [line.get_label() for line in display.lines_] == ["train", "train"]
    for split in ("both", "valid"):
        with pytest.raises(ValueError, match=f"split='{split}': there were no data .* Pass X_val"):
            TrainingHistoryDisplay.from_estimator(unvalidated, split=split)


def test_epochs_without_validation_leave_a_gap(digits):
    X, y = digits
    net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X, y, X_val=X[:9], y_val=y[:9])
    net.partial_fit(X, y)
    display = TrainingHistoryDisplay.from_estimator(net, metric="loss", split="valid")
    (line,) = display.lines_
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), [False, False, True])


def test_the_network_of_an_extractor_in_a_pipeline(net, digits):
    pipeline = make_pipeline(ConvFeatureExtractor(FrozenEstimator(net)), SVC()).fit(*digits)
    display = TrainingHistoryDisplay.from_estimator(pipeline, color="black")
    assert display.history == net.history_
    assert display.lines_[0].get_color() == "black"


def test_a_network_that_was_not_trained_has_no_history():
    module = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    extractor = ConvFeatureExtractor(module, layer=-1).fit(np.zeros((2, 5, 5)))
    with pytest.raises(ValueError, match=r"trained no network, .* pass a ConvNetClassifier"):
        TrainingHistoryDisplay.from_estimator(extractor)


def test_wrong_words_are_refused(net):
    for params in ({"metric": "acc"}, {"scale": "logarithmic"}, {"split": "test"}):
        (name,) = params
        with pytest.raises(ValueError, match=f"The '{name}' parameter of Training"):
            TrainingHistoryDisplay.from_estimator(net, **params)
