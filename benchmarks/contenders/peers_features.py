"""img2vec_pytorch and embetter, in an environment of their own (requirements-features.txt).

Their networks get random weights, which take as long as others and need no download. img2vec has
no EfficientNet-Lite0: EfficientNet-B0 is the nearest that it has. Both take PIL images only.
"""

import numpy as np
from PIL import Image

from ..race.photo_networks import load_torchvision

load_torchvision()


def prepare_img2vec(task):
    """Return a function that computes all features."""
    from img2vec_pytorch import Img2Vec, img_to_vec

    create = img_to_vec.efficientnet_b0
    img_to_vec.efficientnet_b0 = lambda weights: create(weights=None)
    model, photos = Img2Vec(model="efficientnet_b0"), _photos(task)
    size = task["batch_size"]
    return lambda: [model.get_vec(photos[i : i + size]) for i in range(0, len(photos), size)]


def prepare_embetter(task):
    """Return a function that computes all features."""
    import timm

    create = timm.create_model
    timm.create_model = lambda name, pretrained, **params: create(name, **params)
    from embetter.vision import TimmEncoder

    encoder, photos = TimmEncoder("efficientnet_lite0"), _photos(task)
    return lambda: encoder.transform(photos)


def _photos(task):
    return [Image.fromarray(image) for image in np.load(task["images"])]
