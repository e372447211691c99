"""Features of photographs from EfficientNet-Lite0: sklconv's, and those of the usual script."""

import numpy as np
import torch

from sklconv import ConvFeatureExtractor

from ..race import photo_networks
from .lite0 import MEAN, STD, backbone


def prepare_sklconv(task):
    """Return a function that computes all features."""
    X = np.load(task["images"])
    extractor = ConvFeatureExtractor(backbone(224), batch_size=task["batch_size"]).fit(X[:1])
    return lambda: extractor.transform(X)


def prepare_script(task):
    """Return a function that computes all features."""
    X, size = np.load(task["images"]), task["batch_size"]
    model = photo_networks.headless("EfficientNet-Lite0")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    @torch.no_grad()
    def run():
        features = []
        for start in range(0, len(X), size):
            # (N, H, W, C) -> (N, C, H, W), float32
            batch = torch.from_numpy(X[start : start + size]).permute(0, 3, 1, 2).contiguous()
            features.append(model((batch / 255 - mean) / std).numpy())
        return np.concatenate(features)

    return run
