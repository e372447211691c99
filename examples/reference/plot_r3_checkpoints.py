"""
R3: a network saved at each epoch, restored and exported
========================================================

After a textbook chapter on convolutional networks, written with TensorFlow 1. A network with
batch normalisation and leaky ReLU is saved after each epoch, comes back from its last
checkpoint, and from a file that needs no Python: each time with exactly the same accuracy. The
export takes ``python -m pip install ".[onnx]"``.
"""

# %%
# The network
# -----------
#
# 6,642,462 parameters, nearly all of them in the dense layer. TensorFlow's momentum of batch
# normalisation is the weight of the old statistics, torch's that of the new batch: 0 there is 1
# here. The outputs are normalised as well, and go through a leaky ReLU.
#
# The author trains with Adam for ten epochs, on 60,000 of the 70,000 images, drawn at random, and
# reaches an accuracy of .991693 on the other 10,000.

from sklconv import ConvNetClassifier
from sklconv.layers import Activation, BatchNorm, Conv, Dense, Dropout, MaxPool

glorot = {"activation": None, "kernel_init": "glorot_uniform"}
network = [
    ("conv1", Conv(64, 5, padding="same", **glorot)),
    ("leaky1", Activation("leaky_relu", negative_slope=0.2)),
    ("pool1", MaxPool(2)),
    ("conv2", Conv(128, 5, padding="same", **glorot)),
    ("leaky2", Activation("leaky_relu", negative_slope=0.2)),
    ("pool2", MaxPool(2)),
    ("dense", Dense(1024, **glorot)),
    ("norm3", BatchNorm(momentum=1.0, eps=1e-8)),
    ("leaky3", Activation("leaky_relu", negative_slope=0.2)),
    ("drop", Dropout(0.1)),
    ("output", Dense("n_classes", **glorot)),
    ("norm4", BatchNorm(momentum=1.0, eps=1e-8)),
    ("leaky4", Activation("leaky_relu", negative_slope=0.2)),
]
recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "adam",
    "optimizer_params": {"betas": (0.5, 0.999)},
    "lr": 0.0002,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 128,
    "max_epochs": 10,
}
author = {"n_parameters": 6_642_462, "accuracy": 0.991693, "n_images": 10_000}

# %%
# The images
# ----------
#
# Such a network takes minutes an epoch on a laptop's processor. Here it sees 600 images, three
# times, so that the script takes about half a minute; ``python -m benchmarks.reference r3``
# takes all of them.

import numpy as np
from sklearn.model_selection import train_test_split

from sklconv.datasets import load_mnist

X, X_test, y, y_test = load_mnist()
X_train, X_test, y_train, y_test = train_test_split(
    np.concatenate([X, X_test]),
    np.concatenate([y, y_test]),
    train_size=600,
    test_size=400,
    random_state=0,
)

# %%
# Training, with a checkpoint each epoch
# --------------------------------------
#
# skorch's ``Checkpoint`` saves weights and optimizer when an epoch is over; without a
# ``monitor``, it does so each time. The files have the number of their epoch in their names.

import tempfile
from pathlib import Path

from skorch.callbacks import Checkpoint

folder = tempfile.TemporaryDirectory()
checkpoint = Checkpoint(
    dirname=folder.name,
    monitor=None,
    f_params="params_{last_epoch[epoch]}.pt",
    f_optimizer="optimizer_{last_epoch[epoch]}.pt",
)
clf = ConvNetClassifier(
    network, **(recipe | {"max_epochs": 3}), callbacks=[checkpoint], random_state=0, verbose=1
)
clf.fit(X_train, y_train, X_val=X_test, y_val=y_test)

n_parameters = clf.layer_table_["n_parameters"].sum()
print(f"{n_parameters:,} parameters, the author's {author['n_parameters']:,}")
print(*sorted(path.name for path in Path(folder.name).iterdir()), sep="\n")

# %%
# Errors by epoch
# ---------------
#
# On a logarithmic axis one sees that the last epochs still halve the training error.

import matplotlib.pyplot as plt

from sklconv.inspection import PredictionsDisplay, TrainingHistoryDisplay

TrainingHistoryDisplay.from_estimator(clf, metric="accuracy", scale="log")
plt.show()

# %%
# The first ten predictions
# -------------------------

PredictionsDisplay.from_estimator(clf, X_test, y_test, n_images=10)
plt.show()

# %%
# Back from a checkpoint
# ----------------------
#
# The file holds torch's ``state_dict``: values by name, which need a network to go into. A few
# images make one, and what it has learnt of them is overwritten.

import torch

restored = ConvNetClassifier(network, **(recipe | {"max_epochs": 1}))
restored.fit(X_train[:100], y_train[:100])
restored.module_.load_state_dict(torch.load(Path(folder.name, "params_3.pt")))

# %%
# Back from an export
# -------------------
#
# An ONNX graph needs neither this package nor torch: it holds the preparation of the pixels, the
# layers and the labels. ONNX Runtime computes it, here from uint8 images as they are.

import onnxruntime

from sklconv.onnx import to_onnx

path = Path(folder.name, "digits.onnx")
to_onnx(clf, path, X=X_train[:1])
session = onnxruntime.InferenceSession(path)

for name, predict in {
    "the network": clf.predict,
    "from the checkpoint": restored.predict,
    "from the export": lambda X: session.run(["label"], {"X": X})[0],
}.items():
    accuracies = [np.mean(predict(X) == y) for X, y in [(X_train, y_train), (X_test, y_test)]]
    print(f"{name:24} train {accuracies[0]:.6f}  test {accuracies[1]:.6f}")

# %%
# Side by side
# ------------
#
# The same network by the package's own default parameters, in a third of the epochs.
# In this script those are few steps, on few images: compare them with the author's recipe in the
# rows on all images.

from side_by_side import print_side_by_side

defaults = ConvNetClassifier(network, max_epochs=1, random_state=0).fit(X_train, y_train)
here = [(model, model.score(X_test, y_test)) for model in (clf, defaults)]
print_side_by_side("r3", author, recipe, here)
folder.cleanup()
