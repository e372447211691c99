"""
R4: from a dense network to a convolutional one, and to a pretrained one
========================================================================

After K. Dillon's lecture "Convolutional Neural Networks", 2019, written with Keras. Two networks
learn the same digits; their curves tell which of them learns them by heart. Then a network is
loaded, not trained.
"""

# %%
# The networks
# ------------
#
# A dense layer between pixels and classes, 101,770 parameters: the author's test accuracy is .9782
# after five epochs. Two convolutions and a dense layer, 515,146 parameters: .99060 after twenty,
# on two thirds of the test images, while the other third serves for validation.

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, MaxPool

glorot = {"kernel_init": "glorot_uniform"}
dense_network = [
    ("dense", Dense(128, **glorot)),
    ("output", Dense("n_classes", activation=None, **glorot)),
]
cnn_network = [
    ("conv1", Conv(32, 3, **glorot)),
    ("pool", MaxPool(2)),
    ("conv2", Conv(64, 3, **glorot)),
    ("dense", Dense(64, **glorot)),
    ("output", Dense("n_classes", activation=None, **glorot)),
]
dense_recipe = {
    "standardize": False,  # pixels are divided by 255
    "optimizer": "adam",
    "optimizer_params": {"eps": 1e-7},  # Keras' default; torch's is 1e-8
    "lr": 0.001,
    "lr_schedule": None,
    "weight_decay": 0,
    "batch_size": 32,
    "max_epochs": 5,
}
cnn_recipe = {**dense_recipe, "max_epochs": 20}
dense_author = {"n_parameters": 101_770, "accuracy": 0.9782, "n_images": 10_000}
cnn_author = {"n_parameters": 515_146, "accuracy": 0.99060, "n_images": 6_700, "seconds": 40}
