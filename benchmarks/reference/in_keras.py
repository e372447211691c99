"""Two recipes in Keras itself: ``python -m benchmarks.reference.in_keras [r2 r4_dense]``.

What the framework of the authors of R2 and R4 makes of their recipes with the seeds of this
benchmark, beside the one run that each of them printed. It takes Keras with PyTorch behind it,
which is set here; benchmarks/requirements-keras.txt names its version. The figures come into
docs/reference_results.rst.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"  # read by Keras at import

import keras

from .results import RESULTS, SEEDS, add
from .systems import SYSTEMS


def layers_of(name):
    """Return the layers in front of the outputs."""
    if name == "r2":
        return [
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Dropout(0.25),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
        ]
    return [keras.layers.Flatten(), keras.layers.Dense(128, activation="relu")]


def accuracy(name, seed):
    """Train with one seed; return the accuracy on the test images after the last epoch."""
    system = SYSTEMS[name]
    parts = system.split(seed)
    (X, y), (X_test, y_test) = (
        ((images[..., None] / 255).astype("float32"), labels)
        for images, labels in (parts.train, parts.watched)
    )
    keras.utils.set_random_seed(seed)
    outputs = keras.layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers_of(name), outputs])
    if model.count_params() != system.author["n_parameters"]:
        raise AssertionError(f"{name} has {model.count_params():,} parameters")
    model.compile(
        optimizer=keras.optimizers.Adam(system.recipe["lr"]),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    sizes = {"batch_size": system.recipe["batch_size"], "epochs": system.recipe["max_epochs"]}
    model.fit(X, y, verbose=0, **sizes)
    return model.evaluate(X_test, y_test, verbose=0)[1]


def main():
    for name in sys.argv[1:] or ("r2", "r4_dense"):
        accuracies = [accuracy(name, seed) for seed in SEEDS]
        print(f"{name}: {accuracies}; the author's {SYSTEMS[name].author['accuracy']}", flush=True)
        found = {"version": keras.__version__, "accuracies": accuracies}
        add(RESULTS, "in_keras", name, found)


if __name__ == "__main__":
    main()
