"""Batches of large images go through declarative networks in pieces, with the same results."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sklconv import ConvNetClassifier
from sklconv._networks.building import build_network, trace_network
from sklconv._training import net, pieces
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, GlobalAvgPool, MaxPool, SpatialDropout

SIDE, N_IMAGES, N_CLASSES = 12, 50, 3


def make_images():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    return X, rng.permutation(np.arange(N_IMAGES) % N_CLASSES)


def make_layers(*front):
    """Dropouts of every kind: of maps, of values on their own, joined with a dense layer's."""
    return [
        ("conv1", Conv(8, 3, padding="same")),
        ("pool1", MaxPool(2)),
        *front,
        ("maps", SpatialDropout(0.25)),
        ("conv2", Conv(8, 3)),
        ("drop", Dropout(0.1)),
        ("mean", GlobalAvgPool()),
        ("dense", Dense(16)),
        ("first", Dropout(0.25)),
        ("second", Dropout(0.001)),  # drawn value by value
        ("third", Dropout(0.5)),
    ]


@pytest.fixture
def sizes(monkeypatch):
    """Make pieces as small as if images were large; list the sizes of those that are run."""
    sizes = []

    def run(network, criterion, cuts, *batch):
        sizes.append([cut.stop - cut.start for cut in cuts])
        return pieces.backward_in_pieces(network, criterion, cuts, *batch)

    monkeypatch.setattr(net, "backward_in_pieces", run)
    # About 5 images: the layers put out 2,180 values, of which the first convolution 1,152.
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5 * 2_180 * 4)
    monkeypatch.setattr(pieces, "PIECE_BYTES_A_WEIGHT_BYTE", 0)
    return sizes


def fit(module=None, sample_weight=None, **parameters):
    X, y = make_images()
    # Plain steps: AdamW's first ones are signs, which rounding may turn.
    parameters = {"optimizer": "sgd", "lr": 0.1, "batch_size": 20} | parameters
    classifier = ConvNetClassifier(
        module or make_layers(), max_epochs=2, random_state=0, device="cpu", **parameters
    )
    return classifier.fit(X, y, sample_weight=sample_weight)


def fit_whole(monkeypatch, *args, **parameters):
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", 2**40)
        return fit(*args, **parameters)


def assert_same_training(one, other, tolerance=1e-5):
    for name in ("train_loss", "train_accuracy"):
        losses = [[row[name] for row in c.history_] for c in (one, other)]
        np.testing.assert_allclose(*losses, rtol=tolerance)
    for a, b in zip(one.module_.parameters(), other.module_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


CASES = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "class_weight": {"class_weight": {0: 1, 1: 2, 2: 5}},
    "sample_weight": {"sample_weight": np.linspace(0, 2, N_IMAGES)},
    "smoothing": {"net_params": {"criterion__label_smoothing": 0.2}},
    "weight of 0": {"net_params": {"criterion__weight": torch.tensor([0.0, 1.0, 3.0])}},
    "weights twice": {
        "net_params": {
            "criterion__weight": torch.tensor([1.0, 0.1, 3.0]),
            "criterion__label_smoothing": 0.2,
        },
        "class_weight": {0: 3, 1: 1, 2: 1},
    },
    "no reduction": {"net_params": {"criterion__reduction": "none"}},
    "margin": {"net_params": {"criterion": torch.nn.MultiMarginLoss}},
    "augment": {"augment": lambda x: x + torch.randn_like(x)},
    "frozen": {"freeze": "conv1"},
}


@pytest.mark.parametrize("parameters", CASES.values(), ids=CASES)
def test_pieces_give_what_the_whole_batch_gives(sizes, monkeypatch, parameters):
    in_pieces = fit(**parameters)
    # A last smaller batch is cut as well: 20, 20 and 10 images.
    assert {len(cut) for cut in sizes} == {2, 4}
    assert {sum(cut) for cut in sizes} == {10, 20}
    n_steps = len(sizes)
    whole = fit_whole(monkeypatch, **parameters)
    assert len(sizes) == n_steps
    assert_same_training(in_pieces, whole, 1e-4 if "optimizer" in parameters else 1e-5)


@pytest.mark.parametrize("n_images", [3, 20])  # in torch's own tensors, and in oneDNN's
def test_masks_are_those_of_the_whole_batch(n_images):
    X, y = make_images()
    network = fit().module_
    network.zero_grad()
    x, y = torch.from_numpy(X[:n_images]).permute(0, 3, 1, 2), torch.from_numpy(y[:n_images])

    def masks_of(run):
        masks = []
        layers = [getattr(network.body, name) for name in ("maps", "drop", "first")]
        for layer in layers:
            layer.draw = lambda x, draw, own=layer.draw: masks.append(own(x, draw)) or masks[-1]
        with network.train().seeded(0):
            run()
        for layer in layers:
            del layer.draw
            assert layer.pieces is None
        return masks

    criterion, cuts = torch.nn.CrossEntropyLoss(), [slice(0, 1), slice(1, n_images)]
    whole = masks_of(lambda: network(x))
    parts = masks_of(lambda: pieces.backward_in_pieces(network, criterion, cuts, x, y, None))
    assert len(whole) == 3
    for mask, first, rest in zip(whole, parts[:3], parts[3:], strict=True):
        assert torch.equal(mask, torch.cat([first, rest]))


class OwnLoss(torch.nn.CrossEntropyLoss):
    """A user's, of which nothing is known."""


@pytest.mark.parametrize(
    "parameters",
    [
        {"module": make_layers(("norm", BatchNorm()))},
        {"module": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE**2, 3))},
        {"net_params": {"criterion": OwnLoss}},
        {"net_params": {"criterion__ignore_index": 1}},
        {"net_params": {"criterion__reduction": "sum"}, "lr": 1e-3},
    ],
    ids=str,
)
def test_whole_where_a_batch_is_more_than_its_images(sizes, parameters):
    fit(**parameters)
    assert sizes == []


class Watcher(Callback):
    """Notes what callbacks see of batches, and clips gradients."""

    def __init__(self):
        self.seen_ = []

    def on_grad_computed(self, net, named_parameters, **kwargs):
        parameters = [parameter for _, parameter in named_parameters]
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        self.seen_.append(float(norm))

    def on_batch_end(self, net, batch, y_pred, loss, **kwargs):
        self.seen_ += [len(batch[0]), len(y_pred), loss.item()]


def test_callbacks_see_one_batch(sizes, monkeypatch):
    def seen(fitted):
        return fitted.net_.callbacks_[0][1].seen_

    in_pieces = fit(callbacks=[Watcher()])
    n_batches = len(sizes)
    assert n_batches == 6
    whole = fit_whole(monkeypatch, callbacks=[Watcher()])
    assert_same_training(in_pieces, whole)
    np.testing.assert_allclose(seen(in_pieces), seen(whole), rtol=1e-5)
    assert len(seen(in_pieces)) == 4 * n_batches


def test_lbfgs_and_partial_fit_go_in_pieces(sizes, monkeypatch):
    X, y = make_images()

    def train():
        parameters = {"optimizer": "lbfgs", "lr": 0.1, "optimizer_params": {"max_iter": 2}}
        layers = [("conv", Conv(8, 3)), ("pool", MaxPool(2))]
        classifier = ConvNetClassifier(layers, batch_size=N_IMAGES, random_state=0, **parameters)
        return classifier.partial_fit(X, y, classes=range(N_CLASSES))

    in_pieces = train()
    assert len(sizes) == 2
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**40)
    assert_same_training(in_pieces, train(), 1e-4)


def test_an_interrupt_between_pieces_leaves_nothing_behind(sizes, monkeypatch):
    def interrupt(*args):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return own(*args)

    X, y = make_images()
    classifier = ConvNetClassifier(make_layers(), batch_size=20, random_state=0, device="cpu")
    own = torch.nn.CrossEntropyLoss.forward
    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(X, y)
    assert all(getattr(layer, "pieces", None) is None for layer in classifier.module_.body)
    assert classifier.predict(X).shape == y.shape


@pytest.mark.parametrize(
    ("side", "n_images", "expected"),
    [
        # Small images stay whole.
        ((28, 28), 128, [128]),
        ((32, 32, 3), 128, [128]),
        ((128, 128, 3), 64, [13, 13, 13, 13, 12]),
        # An image alone is the smallest piece.
        ((512, 512), 3, [1, 1, 1]),
    ],
    ids=str,
)
def test_the_size_of_a_piece_follows_from_activations(side, n_images, expected):
    convolutions = [
        ("conv1", Conv(32, 3, padding="same")),
        ("pool1", MaxPool(2)),
        ("conv2", Conv(64, 3, padding="same")),
        ("pool2", MaxPool(2)),
        ("conv3", Conv(64, 3, padding="same")),
        ("mean", GlobalAvgPool()),
        ("dense", Dense(128)),
    ]
    shape = (1, *side) if len(side) == 2 else (side[2], *side[:2])
    network = build_network(convolutions, shape, 10, statistics=None, seed=0)
    size = pieces.images_a_piece(
        network, torch.nn.CrossEntropyLoss(), trace_network(network, shape).calls
    )
    cuts = pieces.cut_in_pieces(n_images, size)
    assert [cut.stop - cut.start for cut in cuts] == expected


def test_pieces_are_worth_reading_the_weights(sizes, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES_A_WEIGHT_BYTE", 8)
    # Some 9,000 weights: eight times as much is more than the activations of a batch.
    fit([("conv", Conv(8, 3)), ("pool", MaxPool(2)), ("dense", Dense(40))], batch_size=20)
    assert sizes == []
