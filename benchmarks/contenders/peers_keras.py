"""Keras 3 on TensorFlow, in an environment of its own (requirements-keras.txt).

``fit`` and ``predict`` are timed once their graphs are traced: a second or so that each model's
first call takes is left out.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers

from ..race import data


def prepare_fit(task):
    """Return a function that fits a compiled model."""
    X, y = _read(task)
    model = _model(task)
    epochs, batch_size = task["epochs"], task["batch_size"]
    return lambda: model.fit(X, y, batch_size=batch_size, epochs=epochs, verbose=0)


def prepare_predict(task):
    """Return a function that computes all class probabilities."""
    X, _ = _read(task)
    model = _model(task)
    return lambda: model.predict(X, batch_size=128, verbose=0)


def prepare_one_image(task):
    """Return the call for one image through ``predict``."""
    return prepare_predict(task | {"n_images": 1})


def _read(task):
    X, y = data.read_float(task)
    return X[..., None], y


def _model(task):
    body = {"R1": _r1, "R2": _r2, "linear": _linear}[task["network"]]()
    side, n_classes = task["side"], task["n_classes"]
    model = keras.Sequential([keras.Input((side, side, 1)), *body, layers.Dense(n_classes)])
    model.compile(
        optimizer=keras.optimizers.AdamW(3e-3, weight_decay=0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _r1():
    return [
        layers.Conv2D(32, 5, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(32, 5, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.Dense(256, activation="relu"),
        layers.Dropout(0.5),
    ]


def _r2():
    return [
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.25),
        layers.Flatten(),
        layers.Dropout(0.5),
    ]


def _linear():
    return [layers.Flatten()]
