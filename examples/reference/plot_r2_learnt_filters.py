"""
R2: filters, drawn at random, made by hand and learnt
=====================================================

After "Introduction to convolutional neural networks", 2017, written with Keras 2. What does a
filter do to a digit, if its weights are random, if somebody thought of them, and if they were
learnt? And how sure is a network when it is wrong?
"""

# %%
# The network
# -----------
#
# One convolution, one pool, two dropouts in a row: 54,410 parameters, nearly all of them in the
# last layer. The author trains with Adam for six epochs, on the first 20,000 images, and reaches
# an accuracy of .9685 on the test set.

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, Dropout, MaxPool

network = [
    ("conv", Conv(32, 3, kernel_init="glorot_uniform")),
    ("pool", MaxPool(2)),
    ("drop1", Dropout(0.25)),
    ("drop2", Dropout(0.5)),
    ("output", Dense("n_classes", activation=None, kernel_init="glorot_uniform")),
]
recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "adam",
    "optimizer_params": {"eps": 1e-7},  # Keras' default; torch's is 1e-8
    "lr": 0.001,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 128,
    "max_epochs": 6,
}
author = {"n_parameters": 54_410, "accuracy": 0.9685, "n_images": 10_000, "seconds": 15}
