"""Draws the picture in README.md: python docs/readme_picture.py (a minute or two, on MNIST)."""

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from sklconv import ConvNetClassifier
from sklconv.datasets import load_mnist
from sklconv.inspection import (
    FeatureMapsDisplay,
    FiltersDisplay,
    PredictionsDisplay,
    TrainingHistoryDisplay,
)
from sklconv.layers import Conv, Dense, MaxPool

N_TRAIN = 10_000

X_train, X_test, y_train, y_test = load_mnist()
layers = [
    ("conv1", Conv(36, 5)),
    ("pool1", MaxPool(2)),
    ("conv2", Conv(64, 5)),
    ("pool2", MaxPool(2)),
    ("dense", Dense(256)),
]
net = ConvNetClassifier(layers, max_epochs=5, random_state=0)
net.fit(X_train[:N_TRAIN], y_train[:N_TRAIN], X_val=X_test, y_val=y_test)

plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
figure = plt.figure(figsize=(9, 5.4), layout="constrained")
above, below = figure.subfigures(2, height_ratios=[1.1, 1])
history, filters, maps = above.subplots(1, 3, width_ratios=[1.2, 1, 1])
TrainingHistoryDisplay.from_estimator(net, scale="log", ax=history)
history.set_title("Learning: error by epoch")
display = FiltersDisplay.from_estimator(net, ax=filters)
display.colorbar_.remove()
filters.set_title("What it looks for: filters")
display = FeatureMapsDisplay.from_estimator(net, X_test[0], layer="conv1", ax=maps)
display.colorbar_.remove()
maps.set_title("What it sees in a 7")
predictions = below.subplots()
PredictionsDisplay.from_estimator(
    net, X_test, y_test, which="worst", n_images=16, n_columns=8, ax=predictions
)
predictions.set_title("Its worst mistakes: label → prediction, and how sure it was")

with BytesIO() as buffer:
    figure.savefig(buffer, dpi=120)
    picture = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
picture.save(Path(__file__).parent / "readme_picture.png", optimize=True)
