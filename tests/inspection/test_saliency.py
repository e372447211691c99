"""SaliencyDisplay against gradients taken by hand, layer by layer."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import SaliencyDisplay
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, GlobalAvgPool, MaxPool

plt = pytest.importorskip("matplotlib.pyplot")

LAYERS = [
    ("conv", Conv(6, 3, padding="same")),
    ("norm", BatchNorm()),
    ("pool", MaxPool(2)),
    ("late", Conv(8, 3, padding="same", activation="silu")),
    ("drop", Dropout(0.5)),
    ("mean", GlobalAvgPool()),
]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300].reshape(-1, 8, 8), y[:300] % 5


@pytest.fixture(scope="module")
def net(digits):
    return ConvNetClassifier(LAYERS, max_epochs=3, random_state=0).fit(*digits)


def run(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def by_hand(network, image, score, behind=None):
    """Return activation and gradient of ``score``, a function of what the body puts out.

    Behind the layer ``behind`` of a sequence of layers; None: pixels, and gradient by them.
    """
    pixels = torch.tensor(image, dtype=torch.float32, requires_grad=True)
    names = [name for name, _ in network.body.named_children()]
    layers = list(network.body.eval())
    cut = 0 if behind is None else names.index(behind) + 1
    taken = run(layers[:cut], network.prepare(pixels))
    taken.retain_grad()
    value = score(run(layers[cut:], taken.clone()))
    value.backward()
    found = pixels if behind is None else taken
    return found.detach().numpy()[0], found.grad.numpy()[0]


def naive_cam(maps, gradient):
    return np.maximum(sum(g.mean() * m for m, g in zip(maps, gradient, strict=True)), 0)


@pytest.mark.parametrize("target", [0, 4])
@pytest.mark.parametrize("layer", ["conv", "norm", "pool", "late", None])
def test_grad_cam_of_a_network(net, digits, layer, target):
    X, _ = digits
    display = SaliencyDisplay.from_estimator(net, X[0], layer=layer, target=target)
    expected = naive_cam(
        *by_hand(net.module_, X[:1, None], lambda out: out[0, target], layer or "drop")
    )
    assert display.layer == (layer or "drop")
    assert display.saliency.shape == expected.shape
    np.testing.assert_allclose(display.saliency, expected, atol=1e-5 * max(1, expected.max()))


def test_gradient_x_input_of_a_network(net, digits):
    X, _ = digits
    display = SaliencyDisplay.from_estimator(net, X[3], method="gradient_x_input", target=2)
    pixels, gradient = by_hand(net.module_, X[3:4, None], lambda out: out[0, 2])
    expected = (pixels * gradient).sum(0)
    np.testing.assert_allclose(display.saliency, expected, atol=1e-5 * np.abs(expected).max())
    assert (display.saliency[X[3] == 0] == 0).all()


def test_the_predicted_class_is_the_target(net, digits):
    X, _ = digits
    display = SaliencyDisplay.from_estimator(net, X[7])
    assert display.target == net.predict(X[7:8])[0]
    expected = SaliencyDisplay.from_estimator(net, X[7], target=display.target)
    np.testing.assert_array_equal(display.saliency, expected.saliency)


HEADS = {
    "logistic": lambda: [LogisticRegression(max_iter=2000)],
    "linear svc": lambda: [LinearSVC()],
    "ridge": lambda: [RidgeClassifier()],
    "sgd": lambda: [SGDClassifier(random_state=0)],
    "lda": lambda: [LinearDiscriminantAnalysis()],
    "one vs rest": lambda: [OneVsRestClassifier(LinearSVC())],
    "linear steps": lambda: [
        *(StandardScaler(), SelectKBest(k=6), PCA(4, whiten=True)),
        LogisticRegression(max_iter=2000),
    ],
}


@pytest.mark.parametrize("method", ["grad_cam", "gradient_x_input"])
@pytest.mark.parametrize("head", HEADS)
def test_through_linear_heads(net, digits, head, method):
    X, y = digits
    steps = HEADS[head]()
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="late", pool="avg")
    model = make_pipeline(extractor, *steps).fit(X, y)
    display = SaliencyDisplay.from_estimator(model, X[5], method=method, target=1)

    # The slopes of the head, by differences of its own scores around the very features.
    features = extractor.transform(X[5:6]).astype(np.float64)
    tail, step = make_pipeline(*steps), 1e-3
    there = features + step * np.eye(features.shape[1])
    back = features - step * np.eye(features.shape[1])
    slopes = tail.decision_function(there)[:, 1] - tail.decision_function(back)[:, 1]
    coefficients = torch.from_numpy(slopes / (2 * step)).float()

    def score(maps):
        return maps.mean((2, 3))[0] @ coefficients

    body = nn.Sequential(*list(net.module_.body.children())[:4])
    network = nn.Module()
    network.body, network.prepare = body, net.module_.prepare
    behind = None if method == "gradient_x_input" else "3"
    found, gradient = by_hand(network, X[5:6, None], score, behind)
    expected = (found * gradient).sum(0) if behind is None else naive_cam(found, gradient)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(display.saliency, expected, atol=1e-5 * scale)


def test_the_coefficients_of_logistic_regression(net, digits):
    X, y = digits
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="conv", pool="flatten")
    model = make_pipeline(extractor, LogisticRegression(max_iter=50, tol=0.1)).fit(X, y)
    display = SaliencyDisplay.from_estimator(model, X[0], target=3)
    assert display.layer == "conv"  # the last that the head sees
    slopes = model[-1].coef_[3].reshape(6, 8, 8)
    maps = extractor.transform(X[:1]).reshape(6, 8, 8)
    np.testing.assert_allclose(display.saliency, naive_cam(maps, slopes), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not follow from the maps of layer='late', but fr"):
        SaliencyDisplay.from_estimator(model, X[0], layer="late")


@pytest.mark.parametrize("target", [0, 3])
def test_a_linear_svm_is_the_sum_of_its_pairs(net, digits, target):
    X, y = digits
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="late", pool="flatten")
    svm = SVC(kernel="linear")
    model = make_pipeline(extractor, svm).fit(X, y)
    display = SaliencyDisplay.from_estimator(model, X[0], target=target)
    slopes = np.zeros(svm.coef_.shape[1])
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    for (i, j), coefficients in zip(pairs, svm.coef_, strict=True):
        slopes += coefficients * ((i == target) - (j == target))
    maps = extractor.transform(X[:1]).reshape(8, 4, 4)
    expected = naive_cam(maps, slopes.reshape(8, 4, 4))
    np.testing.assert_allclose(display.saliency, expected, rtol=1e-4, atol=1e-5)


WRAPPED = {
    "pipeline": lambda head: make_pipeline(StandardScaler(), head),
    "search": lambda head: GridSearchCV(head, {"C": [1.0]}, cv=2),
    "search of a pipeline": lambda head: GridSearchCV(
        make_pipeline(None, StandardScaler(), head), {"standardscaler__with_mean": [True]}, cv=2
    ),
    "frozen": lambda head: FrozenEstimator(head),
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("head", [SVC(kernel="linear"), LinearSVC()], ids=["svc", "linear svc"])
def test_heads_inside_of_others(net, digits, wrapped, head):
    X, y = digits
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="mean").fit(X)
    if wrapped == "frozen":
        head = clone(head).fit(extractor.transform(X), y)
    steps = [StandardScaler(), head] if "pipeline" in wrapped else [head]
    plain = make_pipeline(extractor, *steps)
    plain = plain if wrapped == "frozen" else plain.fit(X, y)
    inner = WRAPPED[wrapped](clone(head) if wrapped != "frozen" else head)
    model = make_pipeline(extractor, inner).fit(X, y)
    expected = SaliencyDisplay.from_estimator(plain, X[0], target=1).saliency
    came = SaliencyDisplay.from_estimator(model, X[0], target=1).saliency
    np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-6)
    assert expected.max() > 0


@pytest.mark.parametrize("target", ["no", "yes"])
def test_of_two_classes(digits, target):
    X, y = digits
    labels = np.where(y > 2, "yes", "no")
    net = ConvNetClassifier(LAYERS, max_epochs=1, random_state=0).fit(X, labels)
    params = {"method": "gradient_x_input", "target": target}
    display = SaliencyDisplay.from_estimator(net, X[0], **params)
    column = ["no", "yes"].index(target)
    pixels, gradient = by_hand(net.module_, X[:1, None], lambda out: out[0, column])
    expected = (pixels * gradient)[0]
    np.testing.assert_allclose(display.saliency, expected, atol=1e-5 * np.abs(expected).max())
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="mean")
    model = make_pipeline(extractor, LinearSVC()).fit(X, labels)
    both = [
        SaliencyDisplay.from_estimator(model, X[0], method="gradient_x_input", target=label)
        for label in ("no", "yes")
    ]
    np.testing.assert_allclose(both[0].saliency, -both[1].saliency, atol=1e-6)


@pytest.mark.parametrize(
    "steps", [[SVC()], [Normalizer(), LogisticRegression()], [GaussianNB()]], ids=str
)
def test_what_is_not_linear_is_an_error(net, digits, steps):
    X, y = digits
    model = make_pipeline(ConvFeatureExtractor(FrozenEstimator(net), layer="mean"), *steps)
    with pytest.raises(ValueError, match=r"is not linear\. OcclusionDisplay would do"):
        SaliencyDisplay.from_estimator(model.fit(X, y), X[0])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"method": "gradcam"}, "method='gradcam' is neither.*Did you mean 'grad_cam'"),
        ({"method": "gradient_x_input", "layer": "conv"}, "only method='grad_cam' looks at a l"),
        ({"layer": "mean"}, "layer='mean' is not one layer that puts out feature maps; these are"),
        ({"layer": "conf"}, "not a layer of this network.*Did you mean 'conv'"),
        ({"target": 7}, r"target=7 is none of the classes: \[0, 1, 2, 3, 4\]"),
    ],
)
def test_what_can_not_be_is_an_error(net, digits, params, words):
    with pytest.raises(ValueError, match=words):
        SaliencyDisplay.from_estimator(net, digits[0][0], **params)


# The network is left as it was -----------------------------------------------------------------


class Foreign(nn.Module):
    """Works in place, runs a layer twice, and has dropout and batch-norm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.again(self.again(x).mul_(2))
        x.add_(1)
        return self.head(self.drop(x.mean((2, 3))))


def foreign_by_hand(body, x, layer):
    first = body.norm(body.conv(x))
    last = body.again(body.again(torch.relu(first)) * 2)
    taken = first if layer == "norm" else last
    taken.retain_grad()
    body.head((last + 1).mean((2, 3)))[0, 1].backward()
    return taken.detach().numpy()[0], taken.grad.numpy()[0]


@pytest.fixture
def foreign(digits):
    torch.manual_seed(0)
    X, y = digits
    clf = ConvNetClassifier(Foreign(), max_epochs=1, random_state=0)
    return clf.fit((X / 16).astype(np.float32), y)


@pytest.mark.parametrize("layer", ["norm", "again"])
def test_layers_that_later_ones_write_into(foreign, digits, layer):
    image = (digits[0][:1] / 16).astype(np.float32)
    display = SaliencyDisplay.from_estimator(foreign, image, layer=layer, target=1)
    body = foreign.module_.body
    expected = naive_cam(*foreign_by_hand(body, torch.from_numpy(image[:, None]), layer))
    assert expected.max() > 0
    np.testing.assert_allclose(display.saliency, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["grad_cam", "gradient_x_input"])
def test_frozen_networks_inference_mode_and_gradients_of_others(foreign, digits, method):
    image = (digits[0][:1] / 16).astype(np.float32)
    expected = SaliencyDisplay.from_estimator(foreign, image, method=method, target=0).saliency
    module = foreign.module_
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    with torch.inference_mode():
        came = SaliencyDisplay.from_estimator(foreign, image, method=method, target=0).saliency
    np.testing.assert_allclose(came, expected, atol=1e-6)
    assert all((parameter.grad == 3).all() for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.requires_grad_(False)
    came = SaliencyDisplay.from_estimator(foreign, image, method=method, target=0).saliency
    np.testing.assert_allclose(came, expected, atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        came = SaliencyDisplay.from_estimator(foreign, image, method=method, target=0).saliency
    np.testing.assert_allclose(came, expected, atol=1e-6)
    assert not any(layer._forward_hooks for layer in module.modules())


# What is drawn ---------------------------------------------------------------------------------


def test_what_is_drawn(net, digits):
    X, _ = digits
    figure, ax = plt.subplots()
    display = SaliencyDisplay.from_estimator(net, X[0], layer="late", target=0, ax=ax)
    assert display.figure_ is figure
    np.testing.assert_allclose(display.im_.get_array(), display.saliency)
    assert display.im_.get_clim() == (0, display.saliency.max())
    assert list(display.im_.get_extent()) == [-0.5, 7.5, 7.5, -0.5]  # 4×4 maps over 8×8 pixels
    assert ax.get_xlim() == (-0.5, 7.5)
    assert ax.get_title() == "class 0, late"
    assert display.colorbar_.ax.get_ylabel() == "Grad-CAM"
    display = SaliencyDisplay.from_estimator(net, X[0], method="gradient_x_input", target=0)
    low, high = display.im_.get_clim()
    assert -low == high == np.abs(display.saliency).max()
    assert display.ax_.get_title() == "class 0"
    assert display.colorbar_.ax.get_ylabel() == "gradient × input"


def test_maps_lie_on_the_part_of_the_image_that_the_network_sees(digits):
    torch.manual_seed(0)
    X = np.random.default_rng(0).integers(0, 256, (20, 40, 20), dtype=np.uint8)
    y = np.arange(20) % 2
    backbone = Backbone(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        image_size=10, mean=(0.5,), std=(0.5,), crop_pct=1.0, crop_mode="center",
    )  # fmt: skip
    model = make_pipeline(ConvFeatureExtractor(backbone, layer=-1), LinearSVC()).fit(X, y)
    # The shorter side becomes 10 pixels, of the longer one the middle half is seen.
    display = SaliencyDisplay.from_estimator(model, X[0], target=1)
    assert list(display.im_.get_extent()) == [-0.5, 19.5, 29.5, 9.5]
    assert list(display.image_.get_extent()) == [-0.5, 19.5, 39.5, -0.5]
    assert display.ax_.get_ylim() == (39.5, -0.5)
    slopes = SaliencyDisplay.from_estimator(model, X[0], method="gradient_x_input", target=1)
    assert slopes.saliency.shape == (40, 20)
    seen = np.abs(slopes.saliency).sum(1) > 0
    assert seen[12:28].any()
    assert not seen[:8].any()
    assert not seen[32:].any()


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_every_form_of_a_colour_image(kind):
    X = np.random.default_rng(0).integers(0, 256, (40, 6, 9, 3)).astype(kind)
    layers = [("conv", Conv(4, 3)), ("mean", GlobalAvgPool()), ("dense", Dense(8))]
    net = ConvNetClassifier(layers, max_epochs=1, random_state=0).fit(X, np.arange(40) % 3)
    image = X[0]
    forms = [image, image[None], image.transpose(2, 0, 1), image.ravel(), image.tolist()]
    for method in ("grad_cam", "gradient_x_input"):
        came = [
            SaliencyDisplay.from_estimator(net, form, method=method, target=0).saliency
            for form in forms
        ]
        assert came[0].shape == ((4, 7) if method == "grad_cam" else (6, 9))
        for other in came[1:]:
            np.testing.assert_allclose(other, came[0], atol=1e-6)
