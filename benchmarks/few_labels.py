"""MNIST with 10 labelled images a class, by way of ImageNet: ``python -m benchmarks.few_labels``.

EfficientNet-Lite0 at 112 × 112 pixels is frozen; a logistic regression stands behind it. Which
layer it sees, and how its feature maps are pooled, GridSearchCV chooses by cross-validation on
those 100 images. The 10,000 test images are looked at once, by what was chosen. Beside it: the
raw pixels, and the penultimate layer, which is what most tools for pretrained features return.

A search over the extractor's own `layer` and `pool` finds the same. It computes an image's
activations once for each candidate and fold; since a frozen network's do not depend on the other
images, they are computed once here and the search picks among them.
"""

import argparse
from itertools import product

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sklconv import ConvFeatureExtractor
from sklconv.datasets import load_mnist

from .contenders.lite0 import backbone

LAYERS = [f"_blocks.{block}" for block in range(5, 16)]
POOLS = ["avg", "max", "flatten"]
PENULTIMATE = ("penultimate", "flatten")  # a vector already: any pool leaves it as it is


def main():
    options = _parse_arguments()
    X_train, X_test, y_train, y_test = load_mnist()
    X_test, y_test = X_test[: options.n_test], y_test[: options.n_test]
    models, raw, titles = [], [], []
    for seed in options.draws:
        rows = draw_rows(y_train, seed)
        X, y = X_train[rows], y_train[rows]
        search = search_layer(X, y, seed)
        chosen = search.best_params_["functiontransformer__kw_args"]
        models.append((*chosen.values(), search.best_estimator_[1:]))
        table = compute_features(X, ["penultimate"], "flatten")
        models.append((*PENULTIMATE, classifier().fit(table[PENULTIMATE], y)))
        raw.append(
            classifier()
            .fit(X.reshape(len(X), -1), y)
            .score(X_test.reshape(len(X_test), -1), y_test)
        )
        titles.append(f"{', '.join(chosen.values()):20}{search.best_score_:8.1%}")
        print(f"draw {seed} chose {titles[-1]} in cross-validation", flush=True)
    scores = score_all(models, X_test, y_test)
    show(options.draws, titles, np.column_stack([scores[::2], scores[1::2], raw]))


def draw_rows(y, seed, per_class=10):
    """Return the rows of ``per_class`` images of each class, drawn at random."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.choice(np.flatnonzero(y == label), per_class, False) for label in np.unique(y)]
    )


def search_layer(X, y, seed):
    """Return the search, fitted on the numbers of the rows of ``X``."""
    table = {}
    for pool in POOLS:
        table |= compute_features(X, LAYERS, pool)

    def look_up(rows, layer, pool):
        return table[layer, pool][rows]

    candidates = [{"layer": layer, "pool": pool} for layer, pool in product(LAYERS, POOLS)]
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(look_up), *classifier()),
        {"functiontransformer__kw_args": candidates},
        cv=StratifiedKFold(5, shuffle=True, random_state=seed),
        error_score="raise",
    )
    return search.fit(np.arange(len(X)), y)


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def extractor(layer, pool):
    return ConvFeatureExtractor(backbone(112), layer=layer, pool=pool)


def compute_features(X, layers, pool):
    """Return a dict: layer and pool to the features of ``X``, from one pass."""
    features = extractor(layers, pool).fit(X).transform(X)
    parts = np.split(features, _ends(layers, pool, X), axis=1)
    return {(layer, pool): part for layer, part in zip(layers, parts, strict=True)}


def _ends(layers, pool, X):
    """Where the features of one layer end and those of the next one begin."""
    widths = [len(extractor(name, pool).fit(X[:1]).get_feature_names_out()) for name in layers]
    return np.cumsum(widths)[:-1]


def score_all(models, X, y):
    """Return the accuracy of each of ``models``, (layer, pool, classifier), batch by batch."""
    scores = np.zeros(len(models))
    for pool in {pool for _, pool, _ in models}:
        members = [i for i, model in enumerate(models) if model[1] == pool]
        layers = sorted({models[i][0] for i in members})
        ends, start = _ends(layers, pool, X), 0
        for rows in extractor(layers, pool).fit(X[:1]).transform_batches(X):
            parts = dict(zip(layers, np.split(rows, ends, axis=1), strict=True))
            labels = y[start : start + len(rows)]
            for i in members:
                scores[i] += np.sum(models[i][2].predict(parts[models[i][0]]) == labels)
            start += len(rows)
    return scores / len(X)


def show(draws, titles, scores):
    print(f"\ndraw  {'chosen':20}{'cv':>8}{'test':>8}{'penultimate':>13}{'raw pixels':>12}")
    for draw, title, (chosen, penultimate, raw) in zip(draws, titles, scores, strict=True):
        print(f"{draw:4}  {title}{chosen:8.2%}{penultimate:13.2%}{raw:12.2%}")
    chosen, penultimate, raw = scores.mean(axis=0)
    print(f"mean  {'':28}{chosen:8.2%}{penultimate:13.2%}{raw:12.2%}")


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.few_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(5)), metavar="SEED")
    parser.add_argument("--n-test", type=int, metavar="N", help="the first N test images only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
