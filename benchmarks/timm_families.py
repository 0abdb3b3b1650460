"""A small model of each of timm's families, for `exactness.py --timm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_NAMES = """
starnet_s050 mobilenetv3_small_050 mobilevit_xxs repghostnet_050 edgenext_xx_small ghostnet_050 efficientvit_b0
efficientvit_m0 regnetx_002 cspnext_tiny iformer_t fasternet_t0 ese_vovnet19b_slim cs3darknet_s lcnetv2_small
xcit_nano_12_p8_224 swiftformer_xs inception_next_atto efficientformerv2_s0 fastvit_t8 convnext_atto_rms pvt_v2_b0
rexnet_100 hardcorenas_b hgnetv2_b0 mobileone_s0 repvit_m1 tinynet_a cpubone_nano tiny_vit_5m_224 coat_tiny
vit_tiny_patch16_dinov3_qkvb convit_tiny deit_tiny_patch16_224 vit_tiny_patch16_224 efficientvim_m1 shvit_s1
vit_tiny_r_s16_p8_224 mambaout_femto crossvit_tiny_240 densenet121 levit_128s maxvit_pico_rw_256 nf_regnet_b0
dpn48b resnest14d eca_halonext26ts visformer_tiny pit_xs_224 csatv2 hrnet_w18_small resnetv2_18 resnet18
legacy_seresnet18 efficientformer_l1 poolformer_s12 skresnet18 gcvit_xxtiny cait_xxs24_224 lowformer_b0
resmlp_12_224 dla34 nest_tiny convmixer_768_32 legacy_xception vit_srelpos_small_patch16_224 inception_v3
vitamin_small_224 res2next50 rdnet_tiny tnt_s_legacy_patch16_224 mvitv2_tiny twins_svt_small xception41p
volo_d1_224 sam2_hiera_tiny hiera_tiny_224 sequencer2d_s swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 davit_tiny focalnet_tiny_srf selecsls42 tresnet_m nextvit_small inception_v4
inception_resnet_v2 mobilenetv5_base pnasnet5large nasnetalarge samvit_base_patch16_224 beit_base_patch16_224
naflexvit_base_patch16_gap qwen3_vit_88m vgg11 gemma4_vit_167m_enc deepseek_vit_412m
"""
FAMILIES = tuple(_NAMES.split())


_SIZES: tuple[tuple[int, bool], ...] = ((64, False), (112, True), (128, True), (128, False), (240, False))
"""Of the image, and whether the model is made for it: many with attention take only the size that they are made for."""


def build(name: str) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """A model without pretrained weights, with example inputs of a small size that it takes."""
    import timm

    size, options = _taken(name)
    # a fresh one: what the other has cached may be of another size
    return timm.create_model(name, **options), (1, 3, size, size), (3, 3, size, size)


def _taken(name: str) -> tuple[int, dict[str, Any]]:
    """The first size that it takes, and the arguments that it is made with."""
    import timm

    made: Any = timm.create_model(name, num_classes=10)
    full: int = made.default_cfg["input_size"][-1]
    for size, for_it in (*_SIZES, (full, False)):
        options: dict[str, Any] = {"num_classes": 10} | ({"img_size": size} if for_it else {})
        try:
            model: Any = timm.create_model(name, **options) if for_it else made
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
            continue
        return size, options
    raise ValueError(f"{name} takes no image of {full} pixels")
