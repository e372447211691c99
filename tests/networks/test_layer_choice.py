"""``layer="auto"``: leave-one-out scores, the rows looked at, the layers chosen."""

from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sklconv._activations.tap_set import TapSet
from sklconv._networks import layer_choice
from sklconv._networks.layer_choice import choose_layers, leave_one_out_score, sample_rows


def naive_score(features, targets, weights):
    """R² of the best ridge, fitted once for each row that is left out."""
    shares = weights / weights.sum()
    centred = features - shares @ features
    spread = np.sqrt(shares @ centred**2)
    rows = centred / np.where(spread > 1e-12, spread, 1) / np.sqrt(features.shape[1])
    best = -np.inf
    for strength in layer_choice.STRENGTHS:
        error = 0
        for i in range(len(rows)):
            others = np.delete(np.arange(len(rows)), i)
            # Against weights that sum to 1, the penalty is that of one row in the mean.
            ridge = Ridge(strength / len(rows), solver="cholesky")
            ridge.fit(rows[others], targets[others], shares[others])
            prediction = ridge.predict(rows[[i]]).reshape(1, -1)
            error += shares[i] * np.sum((targets[[i]] - prediction) ** 2)
        best = max(best, 1 - error / np.sum(shares @ (targets - shares @ targets) ** 2))
    return best


@pytest.mark.parametrize("n_features", [3, 12, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_closed_form_is_leaving_each_row_out(n_features, weighted):
    rng = np.random.default_rng(0)
    targets = np.eye(3)[rng.integers(0, 3, 12)]
    features = rng.normal(size=(12, n_features)) + targets @ rng.normal(size=(3, n_features))
    weights = rng.uniform(0.1, 3, 12) if weighted else np.ones(12)
    expected = naive_score(features, targets, weights)
    assert leave_one_out_score(features, targets, weights) == pytest.approx(expected, abs=1e-6)
    in_float32 = leave_one_out_score(features.astype(np.float32), targets, weights)
    assert in_float32 == pytest.approx(expected, abs=1e-3)


def test_scores_of_features_that_say_all_or_nothing():
    rng = np.random.default_rng(0)
    classes = np.arange(60) % 3
    targets, weights = np.eye(3)[classes], np.ones(60)
    assert leave_one_out_score(targets.copy(), targets, weights) > 0.99
    assert leave_one_out_score(rng.normal(size=(60, 5)), targets, weights) < 0.1
    constant = leave_one_out_score(np.full((60, 4), 0.1, np.float32), targets, weights)
    assert constant == pytest.approx(1 - (60 / 59) ** 2)  # each row against the others' mean
    holes = np.full((60, 4), 1.0)
    holes[7, 2] = np.nan
    assert leave_one_out_score(holes, targets, weights) == -np.inf


def test_scores_do_not_depend_on_scales_or_offsets_of_features():
    rng = np.random.default_rng(0)
    classes = np.arange(40) % 2
    features = rng.normal(size=(40, 7)) + classes[:, None]
    args = np.eye(2)[classes], np.ones(40)
    changed = features * rng.uniform(0.01, 100, 7) + rng.normal(size=7) * 50
    assert leave_one_out_score(changed, *args) == pytest.approx(
        leave_one_out_score(features, *args), abs=1e-9
    )


def test_rows_without_weight_are_no_rows():
    rng = np.random.default_rng(0)
    targets = np.eye(2)[np.arange(30) % 2]
    features = rng.normal(size=(30, 50)) + targets[:, :1]
    weights = np.ones(30)
    weights[20:] = 0
    # The penalty is a share of the number of rows.
    with_rows = leave_one_out_score(features, targets, weights)
    without = leave_one_out_score(features[:20], targets[:20], weights[:20])
    assert with_rows == pytest.approx(without, abs=0.05)
    assert list(sample_rows(np.arange(30) % 2, weights, FakeTapSet([50]))) == list(range(20))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("duplicates", [False, True])
def test_two_or_three_rows_have_a_score(n, duplicates):
    features = np.random.default_rng(0).normal(size=(n, 6))
    if duplicates:
        features[:] = features[0]
    score = leave_one_out_score(features, np.eye(2)[np.arange(n) % 2], np.ones(n))
    assert np.isfinite(score)


# Rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeLayer:
    tap: str
    n_features: int
    pool: str = "avg"


class FakeTapSet:
    """Layers of these numbers of features, of which each is another's unless named alike."""

    def __init__(self, widths, names=None):
        names = names or [f"layer{i}" for i in range(len(widths))]
        self.tapped = [FakeLayer(FakeTap(n), w) for n, w in zip(names, widths, strict=True)]
        self.taps = [layer.tap for layer in self.tapped]
        self.n_features = sum(widths)

    split = TapSet.split


@dataclass(frozen=True)
class FakeTap:
    name: str


@pytest.mark.parametrize("widths", [[100], [16_384] * 3, [100_000, 50], [20_000_000, 1000]])
def test_what_is_looked_at_stays_within_its_bounds(widths):
    classes = np.arange(10_000) % 7
    candidates = FakeTapSet(widths)
    rows = sample_rows(classes, np.ones(10_000), candidates)
    assert 4 * candidates.n_features * len(rows) < 512 * 2**20
    assert 2 <= len(rows) <= layer_choice.MAX_ROWS
    assert len(np.unique(classes[rows])) == min(7, len(rows))
    assert list(rows) == sorted(set(rows))
    assert np.array_equal(rows, sample_rows(classes, np.ones(10_000), candidates))


def test_the_rows_looked_at_are_the_same_part_of_each_class(monkeypatch):
    monkeypatch.setattr(layer_choice, "MAX_ROWS", 100)
    classes = np.repeat([0, 1, 2, 3], [700, 200, 99, 1])
    rows = sample_rows(classes, np.ones(1000), FakeTapSet([10]))
    assert len(rows) == 100
    counts = np.bincount(classes[rows])
    assert counts[3] == 1
    assert np.abs(counts[:3] - [70, 20, 10]).max() <= 1
    assert rows.std() > 100  # not the first ones of each class
    everything = sample_rows(classes[:90], np.ones(90), FakeTapSet([10]))
    assert np.array_equal(everything, np.arange(90))


# The choice -------------------------------------------------------------------------------------


def blocks_of(noises, width=20, n=60):
    """Return features of one layer a noise, the less the better, and their classes."""
    rng = np.random.default_rng(0)
    classes = np.arange(n) % 3
    centres = rng.normal(size=(3, width))
    return [centres[classes] + noise * rng.normal(size=(n, width)) for noise in noises], classes


def choose(blocks, classes, n_best, names=None):
    candidates = FakeTapSet([block.shape[1] for block in blocks], names)
    features = np.concatenate(blocks, axis=1)
    best, rows = choose_layers(candidates, features, classes, np.ones(len(classes)), n_best)
    return [layer.tap.name for layer in best], rows


def test_the_best_layers_are_chosen_in_the_order_in_which_they_run():
    blocks, classes = blocks_of([9, 2, 1, 3, 8, 1.5, 7])
    best, rows = choose(blocks, classes, 4)
    assert best == ["layer1", "layer2", "layer3", "layer5"]
    assert [row["layer"] for row in rows][:4] == ["layer2", "layer5", "layer1", "layer3"]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == leave_one_out_score(blocks[2], np.eye(3)[classes], np.ones(60))
    assert set(rows[0]) == {"layer", "pool", "score", "features"}
    assert choose(blocks, classes, 1)[0] == ["layer2"]


def test_the_chosen_layers_are_different_ones():
    blocks, classes = blocks_of([1, 1.2, 3, 4])
    assert choose(blocks, classes, 3, ["a", "a", "b", "c"])[0] == ["a", "b", "c"]
    # A layer that hands on what it gets is no other layer.
    best, rows = choose([blocks[0], blocks[0], blocks[2]], classes, 2)
    assert best == ["layer1", "layer2"]
    assert len(rows) == 3
    # Nor is one that hands on the means of another one's maps, of which all values are better.
    both = [blocks[0], blocks[2], blocks[2], blocks[3]]
    assert choose(both, classes, 2, ["maps", "maps", "means", "other"])[0] == ["maps", "other"]
    assert choose(blocks[:1], classes, 4)[0] == ["layer0"]


def test_of_equals_the_deeper_layer_is_chosen():
    blocks, classes = blocks_of([1, 5])
    almost = blocks[0] + 1e-3 * np.random.default_rng(1).normal(size=blocks[0].shape)
    assert choose([blocks[0], almost, blocks[1]], classes, 1)[0] == ["layer1"]
    assert choose([almost, blocks[0], blocks[1]], classes, 1)[0] == ["layer1"]


def test_layers_that_overflow_are_never_chosen():
    blocks, classes = blocks_of([1, 5])
    blocks[0][3, 3] = np.inf
    best, rows = choose(blocks, classes, 2)
    assert best == ["layer1"]
    assert rows[-1]["score"] == -np.inf
    with pytest.raises(ValueError, match="infinite or NaN"):
        choose(blocks[:1], classes, 1)
