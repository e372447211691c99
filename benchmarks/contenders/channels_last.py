"""The training loop of tutorials in channels-last layout, on ready float32 tensors in memory.

What is first advised for convolutions on CPUs, and costs two calls.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..race import data, networks, photo_networks

LAYOUT = torch.channels_last


def prepare_fit(task):
    """Return a function that trains a small network from random weights."""
    X, y = data.read_float(task)
    network = networks.plain(task["network"], task["side"], task["n_classes"])
    return _training(task, network, torch.from_numpy(networks.maps(X)), y, lr=3e-3)


def prepare_fine_tune(task):
    """Return a function that trains all of a pretrained network with a new head."""
    X, y = data.read_float(task)
    network = photo_networks.complete(task["network"])
    network._fc = torch.nn.Linear(network._fc.in_features, task["n_classes"])
    colours = np.repeat(2 * X[:, None] - 1, 3, axis=1)
    return _training(task, network, torch.from_numpy(colours), y % task["n_classes"], lr=1e-4)


def _training(task, network, X, y, lr):
    X, y = X.contiguous(memory_format=LAYOUT), torch.from_numpy(y)
    network.to(memory_format=LAYOUT)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)

    def fit():
        network.train()
        for _ in range(task["epochs"]):
            for rows in torch.randperm(len(X)).split(task["batch_size"]):
                loss = F.cross_entropy(network(X[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return fit
