"""``layer="auto"`` beside the penultimate layer: ``python -m benchmarks.auto_layer``.

Test accuracy of a StandardScaler and a logistic regression behind a `ConvFeatureExtractor` that
chooses its layers, behind the penultimate layer, and behind the single layer that scored best.
Four parts, each of which can be asked for alone:

- digits: MNIST, 10 labelled images a class, in front of EfficientNet-Lite0 at 112 × 112 pixels;
- trained: a network that is trained on the same rows, of scikit-learn's digits and of MNIST;
- photos: faces and textures of scikit-image, 10 labelled images a class, that network. They need
  pip install -c constraints.txt -r benchmarks/requirements-photos.txt
- time: of `fit` on the digits, beside `fit_transform` of the network's deepest layer.
"""

import argparse
from functools import partial
from time import perf_counter

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.datasets import load_mnist

from .contenders.lite0 import backbone
from .few_labels import PENULTIMATE, classifier, compute_features, draw_rows

PATCH = 64  # pixels a side
N_TRAINED = 5000


def main():
    options = _parse_arguments()
    for part in options.parts:
        PARTS[part](options)


def digits(options):
    X_train, X_test, y_train, y_test = load_mnist()
    X_test, y_test = X_test[: options.n_test], y_test[: options.n_test]
    drawn = [draw_rows(y_train, draw) for draw in options.draws]
    X, y = np.concatenate([X_test, *X_train[drawn]]), np.concatenate([y_test, *y_train[drawn]])
    n_test, n = len(y_test), len(drawn[0])
    splits = [
        (np.arange(start, start + n), np.arange(n_test)) for start in range(n_test, len(y), n)
    ]
    compare_frozen("MNIST, 10 labels a class, Lite0", options.draws, X, y, splits)


def photos(options):
    for title, (X, y) in (("faces", _faces()), ("textures", _textures())):
        drawn = [draw_rows(y, draw) for draw in options.draws]
        splits = [(rows, np.setdiff1d(np.arange(len(y)), rows)) for rows in drawn]
        compare_frozen(f"{title}, 10 labels a class, Lite0", options.draws, X, y, splits)


def trained(options):
    X, y = load_digits(return_X_y=True)
    tables = [train_test_split(X, y, stratify=y, random_state=seed) for seed in options.draws]
    compare_trained("digits, trained on the same rows", options.draws, tables)
    X_train, X_test, y_train, y_test = load_mnist()
    tables = []
    for seed in options.draws:
        rows = draw_rows(y_train, seed, N_TRAINED // 10)
        tables.append((X_train[rows], X_test, y_train[rows], y_test))
    compare_trained("MNIST, trained on the same 5,000 rows", options.draws, tables)


def time(options):
    X, _, y, _ = load_mnist()
    rows = draw_rows(y, 0)
    auto = ConvFeatureExtractor(backbone(112), layer="auto", engine="torch")
    last = ConvFeatureExtractor(backbone(112), engine="torch")
    last.fit_transform(X[rows])  # the first pass of all
    seconds = [_seconds(partial(auto.fit, X[rows], y[rows])) for _ in range(3)]
    deepest = [_seconds(partial(last.fit_transform, X[rows])) for _ in range(3)]
    print(f"\nfit, layer='auto': {min(seconds):.1f} s; deepest layer: {min(deepest):.1f} s")


PARTS = {part.__name__: part for part in (digits, trained, photos, time)}


def compare_frozen(title, draws, X, y, splits):
    """Print the test accuracy behind each choice of layers, a line for each draw of labels.

    A frozen network's features do not depend on other images: after each choice, they are
    computed once for all of ``X``.
    """
    models = []
    for rows, _ in splits:
        auto = ConvFeatureExtractor(backbone(112), layer="auto").fit(X[rows], y[rows])
        models.append([_chosen(auto), [PENULTIMATE], [_best(auto)]])
    pairs = {pair for choices in models for choice in choices for pair in choice}
    table = {}
    for pool in {pool for _, pool in pairs}:
        table |= compute_features(X, sorted(layer for layer, p in pairs if p == pool), pool)
    _print_header(title)
    accuracies = []
    for draw, (rows, rest), choices in zip(draws, splits, models, strict=True):
        blocks = [np.concatenate([table[pair] for pair in choice], axis=1) for choice in choices]
        heads = [classifier().fit(block[rows], y[rows]) for block in blocks]
        scores = [
            head.score(block[rest], y[rest]) for head, block in zip(heads, blocks, strict=True)
        ]
        accuracies.append(scores)
        _print_row(draw, scores, choices[0])
    _print_row("mean", np.mean(accuracies, axis=0), [])


def compare_trained(title, seeds, tables):
    """Print the same of networks that are trained with each choice, on the rows of the choice."""
    _print_header(title)
    accuracies = []
    for seed, (X_train, X_test, y_train, y_test) in zip(seeds, tables, strict=True):

        def fit(layer, pool, seed=seed, X=X_train, y=y_train):
            net = ConvNetClassifier(random_state=seed)
            extractor = ConvFeatureExtractor(net, layer=layer, pool=pool)
            return make_pipeline(extractor, *classifier()).fit(X, y)

        auto = fit("auto", "auto")
        models = [auto, fit(*PENULTIMATE), fit(*_best(auto[0]))]
        accuracies.append([model.score(X_test, y_test) for model in models])
        _print_row(seed, accuracies[-1], _chosen(auto[0]))
    _print_row("mean", np.mean(accuracies, axis=0), [])


def _chosen(extractor):
    return list(zip(extractor.layers_, extractor.pools_, strict=True))


def _best(extractor):
    best = extractor.layer_scores_.iloc[0]
    return best["layer"], best["pool"]


def _print_header(title):
    print(f"\n{title}\n\ndraw     auto  penultimate  best single  chosen", flush=True)


def _print_row(title, accuracies, chosen):
    auto, penultimate, best = accuracies
    layers = ", ".join(map(" ".join, chosen))
    print(f"{title!s:4}{auto:9.2%}{penultimate:13.2%}{best:13.2%}  {layers}", flush=True)


def _faces():
    from skimage.data import lfw_subset

    X = np.round(lfw_subset() * 255).astype(np.uint8)
    return X, np.repeat(["face", "other"], len(X) // 2)


def _textures():
    from skimage import data

    names, X = ["brick", "grass", "gravel"], []
    for name in names:
        photo = getattr(data, name)()
        n_rows, n_columns = (side // PATCH for side in photo.shape)
        patches = photo.reshape(n_rows, PATCH, n_columns, PATCH).swapaxes(1, 2)
        X.append(patches.reshape(-1, PATCH, PATCH))
    return np.concatenate(X), np.repeat(names, [len(patches) for patches in X])


def _seconds(function):
    start = perf_counter()
    function()
    return perf_counter() - start


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.auto_layer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(5)), metavar="SEED")
    parser.add_argument("--n-test", type=int, metavar="N", help="MNIST's first N test images only")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
