"""What all tests share: the environment, seeds, signals, and real data."""

import os

# Set before torch, scipy and matplotlib are imported, and inherited by joblib's worker processes.
# How many threads there are is for the environment to say: OMP_NUM_THREADS, or torch's own choice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # pytest -n 2 has more of them than cores
os.environ.setdefault("SCIPY_ARRAY_API", "1")  # scikit-learn's array-API checks
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib
import importlib.util
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from sklconv.datasets import load_mnist

# The same examples on every machine, and none that fails because the machine is slow.
settings.register_profile(
    "sklconv",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sklconv")


@pytest.fixture(autouse=True)
def _seed():
    """Start each test from the same global random states, in whatever order tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """Have SIGINT raise KeyboardInterrupt here, and end processes that a test starts.

    In the background of a shell, under nohup or cron it is ignored, and so by children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
