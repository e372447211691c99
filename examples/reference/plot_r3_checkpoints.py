"""
R3: a network saved at each epoch, restored and exported
========================================================

After a textbook chapter on convolutional networks, written with TensorFlow 1. A network with
batch normalisation and leaky ReLU is saved after each epoch, comes back from its last
checkpoint, and from a file that needs no Python: each time with exactly the same accuracy.
"""

# %%
# The network
# -----------
#
# 6,642,462 parameters, nearly all of them in the dense layer. TensorFlow's momentum of batch
# normalisation is the weight of the old statistics, torch's that of the new batch: 0 there is 1
# here. The outputs are normalised as well, and go through a leaky ReLU.
#
# The author trains with Adam for ten epochs, on 60,000 of the 70,000 images, drawn at random, and
# reaches an accuracy of .991693 on the other 10,000.

from sklconv import ConvNetClassifier
from sklconv.layers import Activation, BatchNorm, Conv, Dense, Dropout, MaxPool

glorot = {"activation": None, "kernel_init": "glorot_uniform"}
network = [
    ("conv1", Conv(64, 5, padding="same", **glorot)),
    ("leaky1", Activation("leaky_relu", negative_slope=0.2)),
    ("pool1", MaxPool(2)),
    ("conv2", Conv(128, 5, padding="same", **glorot)),
    ("leaky2", Activation("leaky_relu", negative_slope=0.2)),
    ("pool2", MaxPool(2)),
    ("dense", Dense(1024, **glorot)),
    ("norm3", BatchNorm(momentum=1.0, eps=1e-8)),
    ("leaky3", Activation("leaky_relu", negative_slope=0.2)),
    ("drop", Dropout(0.1)),
    ("output", Dense("n_classes", **glorot)),
    ("norm4", BatchNorm(momentum=1.0, eps=1e-8)),
    ("leaky4", Activation("leaky_relu", negative_slope=0.2)),
]
recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "adam",
    "optimizer_params": {"betas": (0.5, 0.999)},
    "lr": 0.0002,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 128,
    "max_epochs": 10,
}
author = {"n_parameters": 6_642_462, "accuracy": 0.991693, "n_images": 10_000}
