"""
R2: filters, drawn at random, made by hand and learnt
=====================================================

After "Introduction to convolutional neural networks", 2017, written with Keras 2. What does a
filter do to a digit, if its weights are random, if somebody thought of them, and if they were
learnt? And how sure is a network when it is wrong?
"""

# %%
# The network
# -----------
#
# One convolution, one pool, two dropouts in a row: 54,410 parameters, nearly all of them in the
# last layer. The author trains with Adam for six epochs, on the first 20,000 images, and reaches
# an accuracy of .9685 on the test set.

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, Dropout, MaxPool

network = [
    ("conv", Conv(32, 3, kernel_init="glorot_uniform")),
    ("pool", MaxPool(2)),
    ("drop1", Dropout(0.25)),
    ("drop2", Dropout(0.5)),
    ("output", Dense("n_classes", activation=None, kernel_init="glorot_uniform")),
]
recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "adam",
    "optimizer_params": {"eps": 1e-7},  # Keras' default; torch's is 1e-8
    "lr": 0.001,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 128,
    "max_epochs": 6,
}
author = {"n_parameters": 54_410, "accuracy": 0.9685, "n_images": 10_000, "seconds": 15}

# %%
# The images
# ----------
#
# The author takes the first 20,000 training images; here it is the first 5,000, so that the script
# takes about half a minute. ``python -m benchmarks.reference r2`` takes all 20,000.

from sklconv.datasets import load_mnist

X, X_test, y, y_test = load_mnist()
X_train, y_train = X[:5_000], y[:5_000]
digit = X_test[0]

# %%
# What a filter does
# ------------------
#
# A filter moves over the image; where its weights fit what is under it, the result is large. Ten
# filters drawn at random, and one made by hand, whose result is 0 wherever the image is even: it
# finds edges. Each filter stands over what it makes of the digit, blue below 0 and red above.

import matplotlib.pyplot as plt
import numpy as np
from scipy.signal import correlate2d

kernels = [*np.random.default_rng(0).normal(size=(10, 3, 3)), np.full((3, 3), -1.0)]
kernels[-1][1, 1] = 8
names = [*(f"random {i}" for i in range(1, 11)), "edges"]

fig, axes = plt.subplots(2, 11, figsize=(13, 2.8), layout="constrained")
for (above, below), kernel, name in zip(axes.T, kernels, names, strict=True):
    for ax, values in (above, kernel), (below, correlate2d(digit / 255, kernel, mode="valid")):
        most = abs(values).max()
        ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
        ax.set(xticks=[], yticks=[])
    above.set_title(name, fontsize=10)
plt.show()

# %%
# Training
# --------
#
# Learnt filters are made by neither chance nor hand. The test images serve for validation, as the
# author has it: their accuracy by epoch is shown, but decides on nothing.

clf = ConvNetClassifier(network, **recipe, random_state=0, verbose=1)
clf.fit(X_train, y_train, X_val=X_test, y_val=y_test)

n_parameters = clf.layer_table_["n_parameters"].sum()
print(f"{n_parameters:,} parameters, the author's {author['n_parameters']:,}")

# %%
# The learnt filters
# ------------------
#
# All 32 of them, on one colour scale.

from sklconv.inspection import FeatureMapsDisplay, FiltersDisplay

FiltersDisplay.from_estimator(clf)
plt.show()

# %%
# And what they make of the digit: edges in several directions, strokes, the ground. ReLU has set
# everything below 0 to 0.

FeatureMapsDisplay.from_estimator(clf, digit, layer="conv")
plt.show()

# %%
# One digit and its probabilities
# -------------------------------

from sklconv.inspection import ActivationsDisplay

ActivationsDisplay.from_estimator(clf, digit)
plt.show()

# %%
# One that it labels wrongly
# --------------------------
#
# Its probabilities say that it was in doubt, or not.

wrong = np.flatnonzero(clf.predict(X_test) != y_test)
print(f"{len(wrong)} of {len(X_test):,} test images; this is a {y_test[wrong[0]]}")
ActivationsDisplay.from_estimator(clf, X_test[wrong[0]])
plt.show()

# %%
# How sure is it when it is wrong?
# --------------------------------
#
# The highest probability of each test image. Most of those that are labelled rightly are near 1;
# the wrong ones are spread, so that a threshold would find many of them.

from sklconv.inspection import ConfidenceDisplay

ConfidenceDisplay.from_estimator(clf, X_test, y_test)
plt.show()

# %%
# Further remedies against overfitting
# ------------------------------------
#
# The author names penalties, early stopping and batch normalisation. Here they are
# ``weight_decay``, which is an L2 penalty for Adam, ``early_stopping=True``, and a
# :class:`~sklconv.layers.BatchNorm` in the list.
#
# Side by side
# ------------
#
# The same network by the package's own default parameters, in a third of the epochs.
# In this script those are few steps, on few images: compare them with the author's recipe in the
# rows on all images.

from side_by_side import print_side_by_side

defaults = ConvNetClassifier(network, max_epochs=2, random_state=0).fit(X_train, y_train)
here = [(model, model.score(X_test, y_test)) for model in (clf, defaults)]
print_side_by_side("r2", author, recipe, here)
