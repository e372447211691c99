"""
Quickstart: a network, its features, and a search over both
===========================================================

A small convolutional network learns scikit-learn's handwritten digits. Its dense activations
then serve as features for a support vector machine and a logistic regression, and a grid search
tunes the network and the machine behind it together. Everything runs on a laptop's processor in
less than a minute.
"""

# %%
# The data
# --------
#
# 1,797 digits of 8 × 8 grey pixels. A quarter of them is kept for the test at the end; nothing is
# fitted or chosen on that part.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
X_train, X_test, y_train, y_test = train_test_split(
    digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
)
print(f"{len(X_train)} training and {len(X_test)} test images of shape {X_train.shape[1:]}")

# %%
# A convolutional network is a classifier
# ---------------------------------------
#
# The network is a list of named layers, as a Pipeline is a list of named steps. Shapes are
# inferred, and the output layer is added. With ``verbose=1``, the fit prints the layers with
# their output shapes and parameter counts, then one line an epoch.

from sklconv import ConvNetClassifier
from sklconv.layers import Conv, Dense, MaxPool

net = ConvNetClassifier(
    module=[
        ("conv1", Conv(32, 3, padding="same")),
        ("pool1", MaxPool(2)),
        ("conv2", Conv(64, 3, padding="same")),
        ("pool2", MaxPool(2)),
        ("dense", Dense(128)),
    ],
    random_state=0,
    verbose=1,
)
net.fit(X_train, y_train)
accuracy = {"the network itself": net.score(X_test, y_test)}

# %%
# Its activations are features
# ----------------------------
#
# ``FrozenEstimator`` says that the trained network is to be used as it is. Without it, the
# extractor would train a network of its own, as any step of a Pipeline is fitted.

from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor

extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="dense")
for name, head in {
    "SVM on its dense activations": SVC(),
    "logistic regression on them": LogisticRegression(max_iter=1000),
}.items():
    accuracy[name] = make_pipeline(extractor, head).fit(X_train, y_train).score(X_test, y_test)
accuracy["SVM on the pixels"] = (
    SVC()
    .fit(X_train.reshape(len(X_train), -1), y_train)
    .score(X_test.reshape(len(X_test), -1), y_test)
)

print("Accuracy on the test images")
for name, value in accuracy.items():
    print(f"  {name:30} {value:.3f}")

# %%
# One search over both stages
# ---------------------------
#
# Which layer, how many filters, and which ``C``: all are parameters of one Pipeline. The network
# is not frozen here, so each fold trains its own and is tested on images that neither stage has
# seen.

import pandas as pd
from sklearn.model_selection import GridSearchCV

model = make_pipeline(ConvFeatureExtractor(net, verbose=0), SVC())
search = GridSearchCV(
    model,
    {
        "convfeatureextractor__layer": ["dense", "conv2"],
        "convfeatureextractor__estimator__conv1__filters": [8, 32],
        "svc__C": [1, 10],
    },
    cv=3,
    n_jobs=2,
)
search.fit(X_train, y_train)

table = pd.DataFrame(search.cv_results_).sort_values("rank_test_score")
columns = {
    "param_convfeatureextractor__layer": "layer",
    "param_convfeatureextractor__estimator__conv1__filters": "filters of conv1",
    "param_svc__C": "C",
    "mean_test_score": "mean accuracy",
    "std_test_score": "std",
    "rank_test_score": "rank",
}
table = table[list(columns)].rename(columns=columns)
print(table.to_string(index=False, float_format="{:.4f}".format))
print(f"\nThe best one on the test images: {search.score(X_test, y_test):.3f}")

# %%
# What the SVM sees
# -----------------
#
# The dense activations of the test images, projected onto their first two principal components.
# Two of 128 dimensions already tell many digits apart. Circles mark the images that the
# network labels wrongly, with the label that it gives them.

import matplotlib.pyplot as plt
from sklearn.decomposition import PCA

features = extractor.fit(X_train).transform(X_test)
points = PCA(n_components=2, random_state=0).fit_transform(features)
predicted = net.predict(X_test)
wrong = predicted != y_test

fig, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
ax.scatter(*points.T, c=y_test, cmap="tab10", vmin=-0.5, vmax=9.5, s=14)
ax.scatter(*points[wrong].T, facecolors="none", edgecolors="black", s=90)
for point, label in zip(points[wrong], predicted[wrong], strict=True):
    ax.annotate(f"→ {label}", point, xytext=(5, 5), textcoords="offset points")
fig.colorbar(ax.collections[0], ticks=range(10), label="digit")
ax.set(
    title=f"Dense activations of {len(X_test)} test digits (→ the label given by mistake)",
    xlabel="first principal component",
    ylabel="second principal component",
)
plt.show()

# %%
# What to take from it
# --------------------
#
# The network and the two classifiers on its activations are close to each other on data as easy
# as these: the network has done the work already. The extractor pays off where the head has
# something of its own to offer, where the classes change but the network stays, or where another
# layer than the last serves better, which the search finds out. Differences of a few thousandths
# between rows of its table are within their standard deviation.
