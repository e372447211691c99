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

# %%
# The images
# ----------
#
# The author takes all 60,000 training images, a hundred times. Here it is the first 2,000, a few
# times, so that the script takes about half a minute, and in batches of 16, not of 128, so that
# there are steps enough. ``python -m benchmarks.reference r5`` does all of it.

from sklconv.datasets import load_mnist

X, X_test, y, y_test = load_mnist()
X_train, y_train = X[:2_000], y[:2_000]
X_test, y_test = X_test[:2_000], y_test[:2_000]

# %%
# The nearest image
# -----------------
#
# The author's first model: of a hundred images, the one whose pixels are nearest. It is
# scikit-learn's.

from sklearn.neighbors import KNeighborsClassifier

nearest = KNeighborsClassifier(n_neighbors=1).fit(X[:100].reshape(100, -1), y[:100])
score = nearest.score(X_test.reshape(len(X_test), -1), y_test)
print(f"nearest of 100 images: test error {1 - score:.4f}")

# %%
# Four networks
# -------------

systems = {
    "r5_softmax": (softmax_network, softmax_recipe, softmax_author, 10),
    "r5_hidden": (hidden_network, hidden_recipe, hidden_author, 10),
    "r5_two_hidden": (two_hidden_network, two_hidden_recipe, two_hidden_author, 6),
    "r5_convnet": (convnet_network, convnet_recipe, convnet_author, 6),
}
models = {}
for name, (network, recipe, author, max_epochs) in systems.items():
    shortened = recipe | {"max_epochs": max_epochs, "batch_size": 16}
    clf = ConvNetClassifier(network, **shortened, random_state=0)
    models[name] = clf.fit(X_train, y_train, X_val=X_test, y_val=y_test)
    n_parameters = clf.layer_table_["n_parameters"].sum()
    print(f"{name}: {n_parameters:,} parameters, the author's {author['n_parameters']:,}")

# %%
# Their errors by epoch
# ---------------------
#
# The training error is that of the network with dropout, while the weights are changing: at first
# it is the higher one.

import matplotlib.pyplot as plt

from sklconv.inspection import PredictionsDisplay, TrainingHistoryDisplay

titles = ["softmax regression", "one hidden layer", "two hidden layers", "ConvNet"]
fig, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
for ax, clf, title in zip(axes.flat, models.values(), titles, strict=True):
    TrainingHistoryDisplay.from_estimator(clf, scale="log", ax=ax)
    ax.set_title(title)
plt.show()

# %%
# Single digits
# -------------
#
# Label and prediction of the convolutional network.

PredictionsDisplay.from_estimator(models["r5_convnet"], X_test, y_test, n_images=10)
plt.show()

# %%
# Side by side
# ------------
#
# The same networks by the package's own default parameters, in a third of the epochs.
# In this script those are few steps, on few images: compare them with the author's recipe in the
# rows on all images.

from side_by_side import print_side_by_side

for name, (network, recipe, author, max_epochs) in systems.items():
    defaults = ConvNetClassifier(network, max_epochs=max_epochs // 3, random_state=0)
    defaults.fit(X_train, y_train)
    print(f"\n{name}")
    here = [(clf, clf.score(X_test, y_test)) for clf in (models[name], defaults)]
    print_side_by_side(name, author, recipe, here)
