"""The networks that are measured, as plain torch modules and as lists of sklconv's layers.

``R1`` is two 5×5 convolutions, two pools and two dense layers (160,362 parameters at 28×28);
``R2`` one 3×3 convolution, a pool and a dense layer (54,410); ``linear`` one dense layer on the
pixels (7,850). ``C3`` is for larger images, three channels of them: three 3×3 convolutions, two
pools, the mean of each map and a dense layer. ``R1 apart`` is R1 with the convolutions' ReLUs as
layers of their own.
"""

from torch import nn

NAMES = ("R1", "R2", "linear")

# What feeds the last layer: the features that are extracted.
FEATURE_LAYERS = {"R1": "dense", "R1 apart": "dense", "R2": "pool1"}


def plain(name, side=28, n_classes=10):
    """Return network ``name`` for grey images as an `nn.Sequential`."""
    return {"R1": _r1, "R2": _r2, "linear": _linear, "C3": _c3}[name](side, n_classes)


def maps(X):
    """Return images (n, side, side), or (n, channels, side, side), with an axis of channels."""
    return X.reshape(len(X), -1, *X.shape[-2:])


def n_flat(name, side=28):
    """Number of values that enter the first dense layer."""
    if name == "R1":
        return 32 * (((side - 4) // 2 - 4) // 2) ** 2
    if name == "R2":
        return 32 * ((side - 2) // 2) ** 2
    return side**2


def _r1(side, n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(n_flat("R1", side), 256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, n_classes),
    )


def _r2(side, n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(n_flat("R2", side), n_classes),
    )


def _c3(side, n_classes):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, n_classes),
    )


def _linear(side, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(side**2, n_classes))


def declarative(name):
    """Return network ``name`` as a list for `sklconv.ConvNetClassifier`'s ``module``."""
    # Imported here: the hand-tuned loops import this file and nothing of sklconv.
    from sklconv.layers import Activation, Conv, Dense, Dropout, GlobalAvgPool, MaxPool

    if name == "R1 apart":
        return [
            ("conv1", Conv(32, 5, activation=None)),
            ("relu1", Activation("relu")),
            ("pool1", MaxPool(2)),
            ("conv2", Conv(32, 5, activation=None)),
            ("relu2", Activation("relu")),
            *declarative("R1")[3:],
        ]
    if name == "R1":
        return [
            ("conv1", Conv(32, 5)),
            ("pool1", MaxPool(2)),
            ("conv2", Conv(32, 5)),
            ("pool2", MaxPool(2)),
            ("drop1", Dropout(0.5)),
            ("dense", Dense(256)),
            ("drop2", Dropout(0.5)),
        ]
    if name == "R2":
        return [
            ("conv1", Conv(32, 3)),
            ("pool1", MaxPool(2)),
            ("drop1", Dropout(0.25)),
            ("drop2", Dropout(0.5)),
        ]
    if name == "C3":
        return [
            ("conv1", Conv(32, 3, padding="same")),
            ("pool1", MaxPool(2)),
            ("conv2", Conv(64, 3, padding="same")),
            ("pool2", MaxPool(2)),
            ("conv3", Conv(64, 3, padding="same")),
            ("mean", GlobalAvgPool()),
            ("dense", Dense(128)),
        ]
    return [("output", Dense("n_classes", activation=None))]
