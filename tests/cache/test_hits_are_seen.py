"""With ``verbose``, `ConvFeatureExtractor(memory=...)` says what it had."""

import re

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier

X, y = load_digits(return_X_y=True)
X, y = X[:60], y[:60]


def said(capsys):
    """Numbers of images whose features were taken and computed, of each line of that kind."""
    pattern = (
        r"^ConvFeatureExtractor: features of ([\d,]+) of [\d,]+ images .* ([\d,]+) are computed$"
    )
    out, err = capsys.readouterr()
    assert err == ""
    return [tuple(map(int, pair)) for pair in re.findall(pattern, out, re.MULTILINE)]


def frozen(memory, **params):
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    with_seed = {"image_shape": (8, 8), "layer": "2", "memory": memory, "verbose": 1}
    for number, parameter in enumerate(module.parameters()):
        nn.init.constant_(parameter, 0.1 + number)
    return ConvFeatureExtractor(module, **{**with_seed, **params}).fit(X)


def test_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", 0)
    extractor = frozen(tmp_path)
    extractor.transform(X[:40])
    extractor.transform(X[20:])
    extractor.transform(X)
    frozen(tmp_path, layer=["2", "0"]).transform(X)  # of one of two layers all are there
    assert said(capsys) == [(0, 40), (20, 20), (60, 0), (0, 60)]


def test_whole_arrays(tmp_path, capsys):
    for rows in (X, X, X[:40]):
        frozen(tmp_path).transform(rows)
    assert said(capsys) == [(0, 60), (60, 0), (0, 40)]


def test_of_a_trained_network(tmp_path, capsys):
    net = ConvNetClassifier(max_epochs=1, random_state=0, verbose=1)
    for taken in ([0, 60], [60, 0]):
        features = ConvFeatureExtractor(net, memory=tmp_path).fit(X, y).transform(X)
        assert features.shape == (60, 256)
        assert said(capsys) == [tuple(taken)]


@pytest.mark.parametrize("worth_a_row", [0, np.inf])
def test_silent_otherwise(tmp_path, capsys, monkeypatch, worth_a_row):
    monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", worth_a_row)
    for _ in range(2):
        frozen(tmp_path, verbose=0).transform(X)
        frozen(tmp_path, verbose=None).transform(X)
    assert capsys.readouterr() == ("", "")
