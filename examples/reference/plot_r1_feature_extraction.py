"""
R1: features from a network, for logistic regression and an SVM
===============================================================

After C. S. Perone, "Convolutional neural networks and feature extraction with Python", 2015,
written with nolearn and Lasagne. A network with two convolutions learns to read digits, is
looked into, and serves in the end as what it was trained for: its 256 dense activations are
features for other classifiers.
"""

# %%
# The network
# -----------
#
# 160,362 parameters. The author trains with Nesterov's momentum at a constant rate, in ten epochs,
# and reaches an accuracy of .98526 on 10,000 images held out from the first 50,000.

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, Dropout, MaxPool

network = [
    ("conv1", Conv(32, 5, kernel_init="glorot_uniform")),
    ("pool1", MaxPool(2)),
    ("conv2", Conv(32, 5, kernel_init="glorot_uniform")),
    ("pool2", MaxPool(2)),
    ("drop1", Dropout(0.5)),
    ("dense", Dense(256, kernel_init="glorot_uniform")),
    ("drop2", Dropout(0.5)),
    ("output", Dense("n_classes", activation=None, kernel_init="glorot_uniform")),
]
recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "sgd",
    "optimizer_params": {"momentum": 0.9, "nesterov": True},
    "lr": 0.01,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 128,
    "max_epochs": 10,
}
author = {"n_parameters": 160_362, "accuracy": 0.98526, "n_images": 10_000, "seconds": 33}

# %%
# The images
# ----------
#
# The author trains on the first 50,000 images of MNIST, of which a stratified fifth is held out to
# validate on. Here it is the first 5,000, so that the script takes about half a minute;
# ``python -m benchmarks.reference r1`` takes all of them.

import matplotlib.pyplot as plt
from sklearn.model_selection import StratifiedKFold

from sklconv.datasets import load_mnist

X, X_test, y, y_test = load_mnist()
X, y = X[:5_000], y[:5_000]
rows, held_out = next(StratifiedKFold(5).split(X, y))
X_train, X_val, y_train, y_val = X[rows], X[held_out], y[rows], y[held_out]

fig, ax = plt.subplots(figsize=(3, 3), layout="constrained")
ax.imshow(X_train[0], cmap="gray_r")
ax.set(title=f"the first digit, a {y_train[0]}", xticks=[], yticks=[])
plt.show()

# %%
# Training
# --------
#
# With ``verbose=1`` the layers are printed with their output shapes and parameters, then a line an
# epoch: train and validation loss, validation accuracy, seconds.

clf = ConvNetClassifier(network, **recipe, random_state=0, verbose=1)
clf.fit(X_train, y_train, X_val=X_val, y_val=y_val)

n_parameters = clf.layer_table_["n_parameters"].sum()
print(f"{n_parameters:,} parameters, the author's {author['n_parameters']:,}")

# %%
# The losses of both parts by epoch. Dropout makes the training loss the higher one of the two.

from sklconv.inspection import TrainingHistoryDisplay

TrainingHistoryDisplay.from_estimator(clf)
plt.show()

# %%
# Which digits are confused
# -------------------------
#
# A confusion matrix is scikit-learn's own.

from sklearn.metrics import ConfusionMatrixDisplay

fig, ax = plt.subplots(figsize=(6, 5.5), layout="constrained")
ConfusionMatrixDisplay.from_estimator(clf, X_test, y_test, ax=ax, cmap="Blues")
ax.set_title("Test images")
plt.show()

# %%
# The filters of the first layer
# ------------------------------
#
# 32 kernels of 5 × 5 weights on one colour scale, on which white is 0.

from sklconv.inspection import FiltersDisplay

FiltersDisplay.from_estimator(clf, layer="conv1")
plt.show()

# %%
# What an image becomes
# ---------------------
#
# Ten probabilities, and before them 256 activations of the dense layer. Dropout is off.

from sklearn.frozen import FrozenEstimator

from sklconv import ConvFeatureExtractor
from sklconv.inspection import ActivationsDisplay

ActivationsDisplay.from_estimator(clf, X_test[0])
ActivationsDisplay.from_estimator(clf, X_test[0], layer="dense")
plt.show()

# %%
# The author compiles a function from the image to the dense layer; one image takes it 858 µs. Here
# that function is ``transform``.

from statistics import median
from time import perf_counter

extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer="dense").fit(X_train)
seconds = []
for image in X_test[:500, None]:
    started = perf_counter()
    extractor.transform(image)
    seconds.append(perf_counter() - started)
print(f"one image to the dense layer: {1e6 * median(seconds):.0f} µs")

# %%
# Features for other classifiers
# ------------------------------
#
# What the author proposes in the end: the activations as features of a logistic regression or an
# SVM. The network is frozen; without ``FrozenEstimator``, the Pipeline would train one of its own.

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

print(f"{'the network itself':32}{clf.score(X_test, y_test):.4f}")
for name, head in {"logistic regression": LogisticRegression(max_iter=1000), "SVM": SVC()}.items():
    model = make_pipeline(extractor, head).fit(X_train, y_train)
    print(f"{name + ' behind it':32}{model.score(X_test, y_test):.4f}")

# %%
# Side by side
# ------------
#
# The same network by the package's own default parameters, in a third of the epochs.
# In this script those are few steps, on few images: compare them with the author's recipe in the
# rows on all images.

from side_by_side import print_side_by_side

defaults = ConvNetClassifier(network, max_epochs=3, random_state=0).fit(X_train, y_train)
here = [(model, model.score(X_val, y_val)) for model in (clf, defaults)]
print_side_by_side("r1", author, recipe, here)
