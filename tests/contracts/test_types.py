"""What a type checker sees of the package, which ships py.typed."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import sklconv
from sklconv import datasets, inspection, layers

PACKAGE = Path(sklconv.__file__).parent


def own_callables(cls):
    """Constructor, public methods and properties, also of base classes in this package."""
    for base in cls.__mro__:
        if not base.__module__.startswith("sklconv"):
            continue
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else member
            if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
                yield f"{base.__name__}.{name}", function


def public_callables():
    found = {}
    for module in (sklconv, layers, datasets, inspection):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value):
                found |= own_callables(value)
            elif inspect.isfunction(value):
                found[name] = value
    return found


PUBLIC = public_callables()


def test_what_is_found_to_be_public():
    assert {
        "Backbone.size",
        "ConvFeatureExtractor.transform",
        "ConvNetClassifier.__init__",
        "ConvNetClassifier.fit",
        "Layer.build",
        "SuggestingEstimator.set_params",
        "load_images",
    } <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures_are_fully_annotated(name):
    signature = inspect.signature(PUBLIC[name])
    bare = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.name != "self" and parameter.annotation is parameter.empty
    ]
    assert not bare, bare
    assert signature.return_annotation is not signature.empty
    assert "return" in get_type_hints(PUBLIC[name])  # raises NameError for an unknown name


# An error that is ignored, but does not occur, is itself one to mypy.
PROGRAM = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.datasets import load_images, load_mnist
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, MaxPool, SpatialDropout

X_train, X_test, y_train, y_test = load_mnist(Path("mnist"))
steps = [
    ("conv1", Conv(32, (3, 3), padding="same", kernel_init=("normal", 0.1))),
    ("norm", BatchNorm(momentum=0.01)),
    ("drop1", SpatialDropout(0.1)),
    ("pool1", MaxPool("auto")),
    ("drop2", Dropout(0.5)),
    ("dense", Dense("n_classes", activation=None)),
]
weights = {0: 1, 1: 2}
clf = ConvNetClassifier(
    steps,
    batch_size=64,
    optimizer=torch.optim.SGD,
    class_weight=weights,
    augment=lambda x: x.flip(-1),
    random_state=np.random.RandomState(0),
)
assert_type(clf.fit(X_train, y_train, X_val=X_test, y_val=y_test), ConvNetClassifier)
assert_type(clf.partial_fit(torch.zeros(2, 8, 8), ["cat", "dog"]), ConvNetClassifier)
assert_type(clf.set_params(conv1__filters=16), ConvNetClassifier)
assert_type(clf.get_params(), dict[str, Any])
assert_type(clf.predict([Path("1.png"), b"PNG"]), NDArray[Any])
assert_type(clf.predict_proba(X_test), NDArray[np.float32])
assert_type(clf.history_, list[dict[str, Any]])
assert_type(clf.classes_, NDArray[Any])
network: nn.Module = clf.module_

ConvNetClassifier(TorchModule(nn.LazyLinear, out_features=2), device="cpu")
backbone = Backbone("timm/resnet18", mean=np.zeros(3), std=[1, 1, 1], image_size=64)
ConvNetClassifier(backbone, freeze="backbone", batch_size="auto")
extractor = ConvFeatureExtractor(backbone, layer=["layer3", -1], pool=lambda x: x.mean((2, 3)))
assert_type(extractor.fit(X_train), ConvFeatureExtractor)
assert_type(extractor.transform(X_test), NDArray[np.float32])
assert_type(extractor.transform_batches(X_test), Iterator[NDArray[np.float32]])
assert_type(load_images(["1.png"], (8, 8)), NDArray[Any])

ConvNetClassifier(lr="fast")  # type: ignore[arg-type]
ConvNetClassifier(batch_size="large")  # type: ignore[arg-type]
ConvNetClassifier(learning_rate=0.1)  # type: ignore[call-arg]
Conv(32, 3, padding="some")  # type: ignore[arg-type]
clf.fit(X_train)  # type: ignore[call-arg]
"""


def test_a_program_passes_mypy_strict(tmp_path, pytestconfig):
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = ["--strict", "--follow-imports=silent", "--config-file="]
    if hasattr(pytestconfig, "cache"):  # else torch is read anew each time: most of half a minute
        arguments.append(f"--cache-dir={pytestconfig.cache.mkdir('mypy')}")
    environment = dict(os.environ)
    if "site-packages" not in PACKAGE.parts:  # there it is found, and may not be named
        environment["MYPYPATH"] = str(PACKAGE.parent)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, "program.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
