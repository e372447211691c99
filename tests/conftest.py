"""What all tests share: the environment, seeds and threads, and real data."""

import os

# Set before torch, numpy and scipy are imported, and inherited by joblib's worker processes: sums
# are formed in the same order everywhere, and scikit-learn's array-API checks are switched on.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("SCIPY_ARRAY_API", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib
import importlib.util
import random

import numpy as np
import pytest
import torch

from sklconv.datasets import load_mnist

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """Start each test from the same global random states, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist():
    """``X_train, X_test, y_train, y_test``; an error if SKLCONV_DATA is set and holds no MNIST."""
    if not os.environ.get("SKLCONV_DATA"):
        pytest.skip("SKLCONV_DATA is not set: it names the folder that holds mnist/")
    return load_mnist()


@pytest.fixture(scope="session")
def torchvision():
    """The module, or a skip."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip('torchvision is not installed: pip install "sklconv[torchvision]"')
    operators = None
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # One that is built for CUDA does not import beside a torch without it until these of its
        # operators are declared, for as long as the Library lives.
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield importlib.import_module("torchvision")
    del operators


@pytest.fixture(scope="session")
def timm(request):
    """The module, or a skip."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip('timm is not installed: pip install "sklconv[timm]"')
    request.getfixturevalue("torchvision")
    return importlib.import_module("timm")
