"""
R5: from the nearest image to a convolutional network
=====================================================

After "Introduction to Deep Learning", Machine Learning for Security Informatics, 2016, and A.
Radford's tutorials, written with Theano. Five models, each of which sees a little more than the
one before: how far does each of them get?
"""

# %%
# The networks
# ------------
#
# No layer has a bias, and all weights are drawn from N(0, .01²). Pools round up: their last
# windows may reach over the edge.

import torch

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, Dropout, MaxPool

plain = {"bias": False, "kernel_init": ("normal", 0.01)}
output = ("output", Dense("n_classes", activation=None, **plain))

softmax_network = [output]
hidden_network = [("hidden", Dense(625, activation="sigmoid", **plain)), output]
two_hidden_network = [
    ("drop0", Dropout(0.2)),
    ("hidden1", Dense(625, **plain)),
    ("drop1", Dropout(0.5)),
    ("hidden2", Dense(625, **plain)),
    ("drop2", Dropout(0.5)),
    output,
]
convnet_network = [
    ("conv1", Conv(32, 3, padding="full", **plain)),
    ("pool1", MaxPool(2, ceil_mode=True)),
    ("drop1", Dropout(0.2)),
    ("conv2", Conv(64, 3, **plain)),
    ("pool2", MaxPool(2, ceil_mode=True)),
    ("drop2", Dropout(0.2)),
    ("conv3", Conv(128, 3, **plain)),
    ("pool3", MaxPool(2, ceil_mode=True)),
    ("drop3", Dropout(0.2)),
    ("hidden", Dense(625, **plain)),
    ("drop4", Dropout(0.5)),
    output,
]


class RMSprop(torch.optim.Optimizer):
    """The author's RMSprop: ε is added under the root, by torch's own behind it."""

    def __init__(self, params, lr=0.001, rho=0.9, eps=1e-6):
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps})

    @torch.no_grad()
    def step(self, closure):
        """Take one step."""
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if "square" not in self.state[weight]:
                    self.state[weight]["square"] = torch.zeros_like(weight)
                square, gradient = self.state[weight]["square"], weight.grad
                square.mul_(group["rho"]).addcmul_(gradient, gradient, value=1 - group["rho"])
                weight.addcdiv_(gradient, (square + group["eps"]).sqrt_(), value=-group["lr"])
        return loss


softmax_recipe = hidden_recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "sgd",
    "lr": 0.05,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 128,
    "max_epochs": 100,
}
two_hidden_recipe = {**softmax_recipe, "optimizer": RMSprop, "lr": 0.001}
convnet_recipe = {**two_hidden_recipe, "max_epochs": 21}
softmax_author = {"n_parameters": 7_840, "accuracy": 1 - 0.0753, "n_images": 10_000}
hidden_author = {"n_parameters": 496_250, "accuracy": 1 - 0.0428, "n_images": 10_000}
two_hidden_author = {"n_parameters": 886_875, "accuracy": 1 - 0.0117, "n_images": 10_000}
convnet_author = {
    "n_parameters": 818_698,
    "accuracy": 1 - 0.0070,
    "n_images": 10_000,
    "seconds": 151,
}
