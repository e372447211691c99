"""Small networks that are exported to ONNX, or can't be."""

import torch
from torch import nn


class Branches(nn.Module):
    """A layer called twice, work in place, and a batch norm."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = x + self.again(self.relu(self.again(x)))
        return self.fc(x.mean((2, 3)))


class Branching(Branches):
    """What it computes depends on its input's values."""

    def forward(self, x):
        return super().forward(x) * (1 if x.mean() > 0.4 else -1)


class ScaledByTheirNumber(Branches):
    """What the quick exporter takes for a constant."""

    def forward(self, x):
        return super().forward(x * len(x))
