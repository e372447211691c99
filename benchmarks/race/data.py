"""What is trained on and predicted: MNIST, or random images of any side and number of classes."""

import numpy as np


def save_mnist(folder, n_images):
    """Write the first ``n_images`` of MNIST to ``folder``; random images if it is not there.

    Returns what a task needs: the two files and what they hold.
    """
    from sklconv.datasets import load_mnist

    try:
        X, X_test, y, y_test = load_mnist()
    except (OSError, ValueError) as error:
        print(f"MNIST is left out ({error}): random images in its place")
        return save_random(folder, n_images)
    X, y = np.concatenate([X, X_test]), np.concatenate([y, y_test])
    return _save(folder, "mnist", X[:n_images], y[:n_images].astype(np.int64))


def save_random(folder, n_images, side=28, n_classes=10, channels=None):
    """Write random uint8 images, grey or of ``channels``, to ``folder``; return a task's needs."""
    rng = np.random.default_rng(0)
    shape = (side, side) if channels is None else (channels, side, side)
    X = rng.integers(0, 256, (n_images, *shape), dtype=np.uint8)
    y = np.arange(n_images, dtype=np.int64) % n_classes
    return _save(folder, f"random_{side}_{n_classes}_{channels}", X, y)


def save_photos(folder, n_images, width, height):
    """Write JPEGs of scikit-learn's photographs, in this size; return what a task needs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image) for image in load_sample_images().images]
    files = [str(folder / f"{width}_{i}.jpg") for i in range(n_images)]
    for i, file in enumerate(files):
        photos[i % 2].rotate(i).resize((width, height)).save(file, quality=90)
    return {"files": files}


def _save(folder, name, X, y):
    images, labels = folder / f"{name}_{len(X)}_X.npy", folder / f"{name}_{len(X)}_y.npy"
    np.save(images, X)
    np.save(labels, y)
    return {
        "images": str(images),
        "labels": str(labels),
        "side": X.shape[-1],
        "n_classes": int(y.max()) + 1,
    }


def read(task):
    """Return X, uint8 of shape (n, side, side) or (n, channels, side, side), and y of a task."""
    n = task["n_images"]
    return np.load(task["images"])[:n], np.load(task["labels"])[:n]


def read_float(task):
    """Return `read`'s images as float32 in [0, 1], and y."""
    X, y = read(task)
    return X.astype(np.float32) / 255, y
