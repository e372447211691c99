"""sklconv from its first call on: ``python -m benchmarks.contenders.first_calls JOB ENGINE``.

Prints the seconds of a job through frozen EfficientNet-Lite0 in a new process, all that an engine
makes ready included; what both engines import is not timed.
"""

import sys
import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklconv import Backbone, ConvFeatureExtractor

from ..race.photo_networks import make_lite0

SIDE = 224
LAYERS = [f"_blocks.{number}" for number in (3, 5, 8, 11, 15)]


def transform(extractor, n_images):
    """Fit the extractor, compute features of so many images."""
    X = _images(n_images)
    return lambda: extractor.fit(X).transform(X)


def search(extractor, n_images):
    """Search five layers in front of a logistic regression, in three folds."""
    X, y = _images(n_images), np.arange(n_images) % 2
    model = make_pipeline(extractor, LogisticRegression(max_iter=20))
    grid = {"convfeatureextractor__layer": LAYERS}
    return lambda: GridSearchCV(model, grid, cv=3, refit=False).fit(X, y)


JOBS = {
    "1,000 images": (transform, 1000),
    "10 images": (transform, 10),
    "search, 5 layers, 100 images": (search, 100),
}


def _images(n):
    return np.random.default_rng(0).integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)


def main(job, engine):
    prepare, n_images = JOBS[job]
    backbone = Backbone(make_lite0(), mean=[0.5] * 3, std=[0.5] * 3)
    run = prepare(ConvFeatureExtractor(backbone, engine=engine), n_images)
    started = time.perf_counter()
    run()
    print(time.perf_counter() - started)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")  # a regression of 20 iterations
    main(*sys.argv[1:])
