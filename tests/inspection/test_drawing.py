"""Images as they are drawn, grids, and colour scales."""

import numpy as np
import pytest

from sklconv.inspection._drawing import (
    colour_scale,
    draw_grid,
    drawable,
    grid_shape,
    grid_size,
    new_row_of_axes,
)

plt = pytest.importorskip("matplotlib.pyplot")


def test_bytes_and_fractions_keep_their_range():
    dark = np.array([0, 51, 102], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(drawable(dark), [[[0, 0.2, 0.4]]])
    np.testing.assert_allclose(drawable(dark / 255), [[[0, 0.2, 0.4]]])


def test_other_numbers_go_from_the_smallest_to_the_largest_of_all():
    images = np.array([[-2.0, 0.0], [6.0, 2.0]]).reshape(2, 1, 1, 2)
    np.testing.assert_allclose(drawable(images), [[[0, 0.25]], [[1, 0.5]]])
    assert drawable(np.full((1, 1, 2, 2), 7)).tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_channels_become_colour_or_grey(channels):
    images = np.random.default_rng(0).random((2, channels, 3, 5))
    drawn = drawable(images)
    if channels in (3, 4):
        np.testing.assert_array_equal(drawn, images[:, :3].transpose(0, 2, 3, 1))
    else:
        np.testing.assert_allclose(drawn, images.mean(1))


def test_colour_scales():
    symmetric = colour_scale(np.array([-3.0, 1.0]))
    assert (symmetric["vmin"], symmetric["vmax"]) == (-3, 3)
    assert colour_scale(np.array([1.0, 2.0]), symmetric=True)["vmin"] == -2
    above = colour_scale(np.array([1.0, 2.0, np.nan]))
    assert (above["vmin"], above["vmax"]) == (0, 2)
    assert above["cmap"] != symmetric["cmap"]
    for nothing in (colour_scale(np.zeros(3)), colour_scale(np.zeros(3), symmetric=True)):
        assert nothing["vmin"] < nothing["vmax"]


@pytest.mark.parametrize(
    ("n", "shape"),
    [(1, (1, 1)), (2, (1, 2)), (7, (3, 3)), (9, (3, 3)), (10, (2, 5)), (32, (4, 8))],
)
def test_grids_are_about_square_and_full_where_they_can_be(n, shape):
    assert grid_shape(n) == shape
    assert grid_shape(n, 4) == (-(-n // 4), min(n, 4))


def test_a_figure_of_many_images_has_a_limit():
    width, height = grid_size(2048, (7, 7))
    assert width <= 11
    assert height < width


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("n_columns", [None, 2])
def test_each_image_of_a_grid_is_in_its_place(colour, n_columns):
    images = np.random.default_rng(0).random((5, 4, 6) + ((3,) if colour else ()))
    _, ax = plt.subplots()
    labels = [f"image {i}" for i in range(5)]
    im, texts = draw_grid(ax, images, n_columns=n_columns, labels=labels)
    drawn, (left, right, bottom, top) = im.get_array(), im.get_extent()
    assert [text.get_text() for text in texts] == labels
    for image, text in zip(images, texts, strict=True):
        # Below the middle of its text; small images are drawn twice as large.
        x, y = text.get_position()
        column, row = round(x - 6 - left), round(y + 4 / 10 * 2 - top)
        part = drawn[row : row + 8 : 2, column : column + 12 : 2]
        np.testing.assert_array_equal(part[..., :3] if colour else part, image)
        if colour:
            assert (part[..., 3] == 1).all()
    shown = (drawn[..., 3] > 0) if colour else ~np.ma.getmaskarray(drawn)
    assert shown.sum() == 5 * 4 * 6 * 4
    assert (right - left, bottom - top) == (drawn.shape[1], drawn.shape[0])


def test_texts_above_images_do_not_overlap():
    images = np.zeros((10, 28, 28))
    labels = ["a label of some length"] * 10
    figure, ax = plt.subplots(figsize=(15, 6), layout="constrained")
    _, texts = draw_grid(ax, images, n_columns=5, labels=labels)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[i + 1 :])
    assert texts[0].get_size() >= 5


def test_axes_that_are_too_few_are_refused():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="ax must be 2 axes here, not 1"):
        new_row_of_axes(ax, 2, (4, 2))
