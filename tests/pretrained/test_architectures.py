"""Architectures of today as backbones, convolutional and not, against the networks themselves.

``python tests/search_networks.py`` does the same for all of timm's.
"""

import pytest
from search_networks import (
    Case,
    check_fine_tuning,
    check_layers,
    check_penultimate,
    check_pixels,
    without_warnings,
)

# Network: side of its images, as small as it bears.
SIDES = {
    "timm/resnet18": 32,
    "timm/resnet50d": 32,
    "timm/resnetv2_50x1_bit": 32,
    "timm/densenet121": 32,
    "timm/inception_v3": 75,
    "timm/mobilenetv3_small_050": 32,
    "timm/mobilenetv4_conv_small_035": 32,
    "timm/efficientnet_b0": 32,
    "timm/tf_efficientnetv2_b0": 32,
    "timm/regnety_002": 32,
    "timm/convnext_atto": 32,
    "timm/eca_nfnet_l0": 32,
    "timm/hrnet_w18_small": 64,
    "timm/dla46_c": 32,
    "timm/dpn48b": 32,
    "timm/ghostnet_050": 32,
    "timm/repvgg_a0": 32,
    "timm/repvit_m0_9": 32,
    "timm/fastvit_t8": 32,
    "timm/edgenext_xx_small": 32,
    "timm/mobilevit_xxs": 32,
    "timm/coat_lite_tiny": 32,
    "timm/levit_128s": 64,
    "timm/deit_tiny_patch16_224": 32,
    "timm/deit_tiny_distilled_patch16_224": 32,
    "timm/cait_xxs24_224": 32,
    "timm/crossvit_9_240": 120,
    "timm/xcit_nano_12_p16_224": 32,
    "timm/vit_tiny_patch16_224": 32,
    "timm/vit_small_patch14_reg4_dinov2": 28,
    "timm/swin_tiny_patch4_window7_224": 64,
    "timm/swinv2_cr_tiny_ns_224": 64,
    "timm/mambaout_femto": 32,
    "timm/maxvit_rmlp_pico_rw_256": 64,
    "timm/coatnet_pico_rw_224": 32,
    "timm/poolformer_s12": 32,
    "timm/mixer_s32_224": 64,
    "timm/skresnet18": 32,
    "timm/xception41": 32,
    "timm/tresnet_m": 32,
    "timm/csatv2": 64,
    "timm/lambda_resnet26t": 64,
    "timm/tiny_vit_5m_224": 64,
    "timm/volo_d1_224": 32,
    "timm/efficientformer_l1": 224,
    "torchvision/squeezenet1_1": 32,
    "torchvision/shufflenet_v2_x0_5": 32,
    "torchvision/googlenet": 32,
    "torchvision/inception_v3": 75,
    "torchvision/swin_v2_t": 64,
}


@pytest.fixture(scope="module", params=SIDES)
def case(request):
    library = request.param.partition("/")[0]
    request.getfixturevalue(library)
    with without_warnings():
        return Case(request.param, SIDES[request.param], seed=0)


def test_the_networks_get_the_pixels_that_their_weights_want(case):
    check_pixels(case)


def test_every_layer_is_what_a_hook_sees(case):
    check_layers(case)


def test_penultimate_is_what_the_library_calls_pre_logits(case):
    check_penultimate(case)


def test_fine_tuning(case):
    check_fine_tuning(case, n_epochs=1)
