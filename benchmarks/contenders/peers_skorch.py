"""skorch's `NeuralNetClassifier` with its defaults, on the plain networks and float32 images.

Two settings are no defaults: nothing is held out (by default it trains on four fifths and
validates on the rest, which is less work), and nothing is printed.
"""

import torch
from skorch import NeuralNet, NeuralNetClassifier

from ..race import data, networks


def prepare_fit(task):
    """Return a function that fits a net."""
    X, y = _read(task)
    net = _net(task)
    return lambda: net.fit(X, y)


def prepare_predict(task):
    """Return a function that computes all class probabilities."""
    X, _ = _read(task)
    net = _net(task).initialize()
    return lambda: net.predict_proba(X)


def prepare_transform(task):
    """Return a function that computes the features in front of the last layer."""
    X, _ = _read(task)
    network = networks.plain(task["network"], task["side"], task["n_classes"])
    net = NeuralNet(
        network[:-1],
        criterion=torch.nn.CrossEntropyLoss,
        predict_nonlinearity=None,
        batch_size=128,
    ).initialize()
    return lambda: net.predict_proba(X)


def prepare_one_image(task):
    """Return the call for one image through ``predict_proba``."""
    return prepare_predict(task | {"n_images": 1})


def _read(task):
    X, y = data.read_float(task)
    return X[:, None], y


def _net(task):
    return NeuralNetClassifier(
        networks.plain(task["network"], task["side"], task["n_classes"]),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=3e-3,
        optimizer__weight_decay=0.01,
        max_epochs=task["epochs"],
        batch_size=task["batch_size"],
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
