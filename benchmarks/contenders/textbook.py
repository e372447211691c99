"""The training loop of PyTorch's tutorials, on ready float32 tensors in memory.

There are two of it: batches from a `DataLoader`, and batches by a permutation's indices, which
is usually the faster one. The module also holds the plain inference loop and the plain call for
one image.
"""

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ..race import data, networks


def prepare_fit(task):
    """Return a function that trains by permuted indices."""
    X, y, model, optimizer = _ready(task)

    def fit():
        model.train()
        for _ in range(task["epochs"]):
            order = torch.randperm(len(X))
            for start in range(0, len(X), task["batch_size"]):
                rows = order[start : start + task["batch_size"]]
                _step(model, optimizer, X[rows], y[rows])

    return fit


def prepare_fit_loader(task):
    """Return a function that trains by a `DataLoader`."""
    X, y, model, optimizer = _ready(task)
    loader = DataLoader(TensorDataset(X, y), batch_size=task["batch_size"], shuffle=True)

    def fit():
        model.train()
        for _ in range(task["epochs"]):
            for images, labels in loader:
                _step(model, optimizer, images, labels)

    return fit


def prepare_predict(task):
    """Return a function that computes all class probabilities, 128 images at a time."""
    X, _, model, _ = _ready(task)
    model.eval()

    def predict():
        with torch.no_grad():
            return torch.cat([model(images).softmax(1) for images in X.split(128)])

    return predict


def prepare_one_image(task):
    """Return the plain call: the network alone, one ready float32 image, inference mode."""
    X, _, model, _ = _ready(task | {"n_images": 1})
    model.eval()

    def call():
        with torch.inference_mode():
            return model(X)

    return call


def _ready(task):
    X, y = data.read_float(task)
    model = networks.plain(task["network"], task["side"], task["n_classes"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    return torch.from_numpy(networks.maps(X)), torch.from_numpy(y), model, optimizer


def _step(model, optimizer, images, labels):
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
