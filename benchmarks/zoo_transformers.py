"""Vision models of Hugging Face's transformers, from small configurations: for `zoo_models.py`.

Widths and depths are made small by the names that configurations give them, nested ones too; what does not fit together
then is stated per configuration.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

Images = tuple[tuple[Any, ...], tuple[Any, ...]]

_TASKS = (
    *("IMAGE", "IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "OBJECT_DETECTION", "DEPTH_ESTIMATION"),
    *("UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "MASKED_IMAGE_MODELING", "KEYPOINT_DETECTION"),
    *("VIDEO_CLASSIFICATION", "IMAGE_TO_IMAGE"),
)
_NOT_OF_IMAGES = {
    **dict.fromkeys(("TimmBackbone", "TimmWrapperForImageClassification", "TimmWrapperModel"), "models of timm"),
    **dict.fromkeys(("Cohere2VisionModel", "ShieldGemma2ForImageClassification"), "language models"),
}

_NUMBERS = {
    **{"num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_blocks": 1, "c2f_num_blocks": 1},
    **{"decoder_num_hidden_layers": 1, "num_spatial_layers": 1, "num_temporal_layers": 1, "num_auxiliary_layers": 1},
    **{"hidden_size": 64, "d_model": 64, "hidden_dim": 64, "intermediate_size": 96, "mlp_dim": 96, "embed_dim": 32},
    **{"num_attention_heads": 4, "attention_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"decoder_num_attention_heads": 4, "decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4},
    **{"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "dim_feedforward": 96, "encoder_feedforward_dim": 96},
    **{"decoder_hidden_size": 64, "decoder_intermediate_size": 96, "encoder_hidden_dim": 64, "pooler_output_size": 64},
    **{"fusion_hidden_size": 32, "head_hidden_size": 16, "reassemble_hidden_size": 64, "auxiliary_channels": 32},
    **{"feature_size": 32, "conv_dim": 32, "mask_feature_size": 32, "mask_dim": 32, "fpn_feature_size": 32},
    **{"aspp_out_channels": 32, "projector_out_channels": 64, "neck_out_channels": 32, "embedding_size": 16},
    **{"projection_dim": 32, "vocab_size": 99, "num_queries": 10, "two_stage_num_proposals": 10, "num_denoising": 0},
    **{"num_labels": 5, "num_detection_tokens": 10, "head_dim": 16, "lqe_hidden_dim": 16, "num_frames": 4},
}
"""Numbers by the names that configurations give them."""
_QUARTERS = {
    *("hidden_sizes", "embed_dims", "embed_dim", "neck_hidden_sizes", "base_attn_unit_dims", "post_process_channels"),
    "encoder_hidden_sizes",
}
"""Lists of widths."""
_DEPTHS = ("depths", "depth", "num_block_repeats", "n_attn_blocks")
_PYRAMID = {"encoder_in_channels": [64, 128, 256], "decoder_in_channels": [64, 64, 64]}
_WINDOWS = {"embed_dim": 24, "image_size": 128, "window_size": 4, "depths": (2, 1, 1, 1)}
_SEQUENCES = {"backbone_config": {"reshape_hidden_states": False}}
_STRIPES = {
    **{"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]},
    **{
        f"{name}_{part}ratio": [[size if tall else 1, size if wide else 1], [1, 1], [tall * pad, wide * pad]]
        for part, size, pad in (("long", 7, 3), ("mid", 5, 2), ("short", 3, 1))
        for name, tall, wide in (
            ("vertical_long_to_small_conv", 1, 0),
            ("horizontal_small_to_long_conv", 0, 1),
            ("symmetric_conv_long", 1, 1),
        )
    },
}
_OWN: dict[str, dict[str, Any]] = {
    "OneFormerConfig": {"conv_dim": 64, "mask_dim": 64},  # where the widths differ, layers are in a plain list
    "PPOCRV5ServerDetConfig": {
        "intraclass_block_config": _STRIPES,
        "kernel_list": [3, 2, 2],
        "scale_factor_list": [1, 2, 4, 8],
    },
    "TimmBackboneConfig": {"backbone": "test_resnet"},
    "RTDetrResNetConfig": {"hidden_sizes": (32, 64, 128, 256)},
    "HGNetV2Config": {
        **{"stem_channels": (3, 8, 16), "stage_in_channels": (16, 32, 64, 128), "hidden_sizes": (32, 64, 128, 256)},
        **{"stage_mid_channels": (8, 8, 16, 16), "stage_out_channels": (32, 64, 128, 256)},
        **{"stage_num_blocks": (1, 1, 2, 1), "stage_numb_of_layers": (2, 2, 2, 2), "depths": (1, 1, 2, 1)},
    },
    **dict.fromkeys(("DFineConfig", "Deimv2Config", "PPDocLayoutV2Config", "PPDocLayoutV4Config"), _PYRAMID),
    **dict.fromkeys(("RTDetrConfig", "RTDetrV2Config"), _PYRAMID),
    "PPDocLayoutV3Config": _PYRAMID | {"x4_feat_dim": 32},
    **dict.fromkeys(
        ("DonutSwinConfig", "Swinv2Config", "Swin2SRConfig", "SwinConfig", "MaskFormerSwinConfig"), _WINDOWS
    ),
    "BitConfig": {"num_groups": 8, "embedding_size": 16},
    "CvtConfig": {"embed_dim": (16, 48, 96), "depth": (1, 2, 3)},
    "Data2VecVisionConfig": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "BeitConfig": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "DPTConfig": {"num_hidden_layers": 4, "backbone_out_indices": (0, 1, 2, 3)},
    "EfficientNetConfig": {"hidden_dim": 320, "width_coefficient": 0.25, "num_block_repeats": (1,) * 7},
    "Llama4VisionConfig": {
        "intermediate_size": 256,
        "vision_output_dim": 64,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
    },
    "DetrConfig": {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
    "TextNetConfig": {"stem_out_channels": 16},
    "CHMv2Config": {"backbone_config": {"reshape_hidden_states": True, "return_class_token": True}, "patch_size": 16},
    **dict.fromkeys(("DepthAnythingConfig", "PromptDepthAnythingConfig"), _SEQUENCES | {"patch_size": 14}),
    "Tipsv2DptConfig": _SEQUENCES,
    "ZoeDepthConfig": _SEQUENCES | {"bottleneck_features": 32},
    "DepthProConfig": {"patch_size": 64, "intermediate_hook_ids": (1, 0), "merge_padding_value": 1},
    "LwDetrConfig": {"projector_scale_factors": [1.0], "backbone_config": {"window_block_indices": [0, 2]}},
    "PPDocLayoutV2Config": _PYRAMID | {"class_thresholds": [0.5] * 5, "class_order": [0, 1, 2, 3, 4]},
    "PerceiverConfig": {
        **{"num_latents": 16, "d_latents": 64, "num_self_attends_per_block": 2, "num_self_attention_heads": 4},
        **{"num_cross_attention_heads": 1, "image_size": 224},
    },
    "Sapiens2HeadConfig": {"upsample_out_channels": [32, 32], "conv_out_channels": [32]},
    "Siglip2VisionConfig": {"num_patches": 16},
    "MllamaVisionConfig": {"num_global_layers": 1, "intermediate_layers_indices": [0, 1], "vision_output_dim": 192},
    "VJEPA2Config": {
        "crop_size": 32,
        "frames_per_clip": 4,
        "patch_size": 8,
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 4,
        "pred_num_hidden_layers": 1,
    },
    "VivitConfig": {"tubelet_size": [2, 4, 4], "image_size": 32, "num_hidden_layers": 4},
    "VideoPrismVisionConfig": {"tubelet_size": [1, 4, 4], "image_size": 32},
    "ViTMAEConfig": {"num_hidden_layers": 8},  # of the patches that are embedded it takes a quarter
    "VideoMAEConfig": {"num_hidden_layers": 4},
    "ImageGPTConfig": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
"""What a configuration needs besides."""


_FRAMES = {
    **dict.fromkeys(("timesformer", "videoprism_vision_model", "videomae", "vivit", "vjepa2", "videomt"), (4,)),
    "mllama_vision_model": (1, 4),
}
"""Axes between the batch and the channels, by the types of models."""


def names() -> list[str]:
    """The classes that transformers lists for its tasks on images and videos."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    found: dict[str, None] = {}
    for task in _TASKS:
        classes = getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES", None) or getattr(
            auto, f"MODEL_{task}_MAPPING_NAMES", {}
        )
        for several in classes.values():
            found |= dict.fromkeys(several if isinstance(several, tuple) else (several,))
    return sorted(found.keys() - _NOT_OF_IMAGES.keys())


def build(name: str) -> tuple[nn.Module, Images]:
    transformers: Any = importlib.import_module("transformers")
    cls = getattr(transformers, name)
    default = vars(cls.config_class())
    patches: dict[str, Any] = {}
    if "image_size" in default and all(isinstance(default.get(k), int) for k in ("patch_size", "num_hidden_layers")):
        # they cost as small a share then as in models of the usual size
        patches = {"patch_size": 4, "image_size": 32 if isinstance(default["image_size"], int) else (32, 32)}
    config = small(cls.config_class, **patches)
    return cls(config), inputs(config)


def small(kind: type[Any], **given: Any) -> Any:
    """A configuration of this kind; nested ones are backbones or towers."""
    default, given = kind(), _OWN.get(kind.__name__, {}) | given
    values: dict[str, Any] = {}
    for key, value in vars(default).items():
        if hasattr(value, "to_diff_dict"):
            values[key] = small(type(value), **(_taken(value) | given.pop(key, {})))
        elif key in _NUMBERS and isinstance(value, int):
            values[key] = _NUMBERS[key]
        elif key in _DEPTHS and isinstance(value, list | tuple):
            values[key] = type(value)(1 for _ in value)
        elif key in _QUARTERS and isinstance(value, list | tuple):
            values[key] = type(value)(max(8, width // 4) for width in value)
        elif key == "image_size" and value is not None:
            values[key] = 64 if isinstance(value, int) else (64, 64)
    return kind(**(values | given))


def _taken(backbone: Any) -> dict[str, Any]:
    """Which stages of a backbone the model on top of it takes: of plain transformers the first layers."""
    stages = list(getattr(backbone, "out_indices", None) or ())
    if not stages or not hasattr(backbone, "num_hidden_layers"):
        return {"out_indices": stages} if stages else {}
    return {"out_indices": [i + 1 for i in range(len(stages))], "num_hidden_layers": max(2, len(stages))}


def inputs(config: Any) -> Images:
    """What a model takes: images or videos, and for some of them more; one, and three."""
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 64
    if config.model_type == "depth_pro":  # it looks at a quarter of the image too
        size = 4 * config.patch_size
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    generator = torch.Generator().manual_seed(0)

    def several(batch: int) -> tuple[Any, ...]:
        shape = (*_FRAMES.get(config.model_type, ()), getattr(config, "num_channels", 3) or 3, *sizes)
        image = torch.randn(batch, *shape, generator=generator)
        if config.model_type == "imagegpt":
            return (torch.randint(config.vocab_size - 1, (batch, 16), generator=generator),)
        if config.model_type == "siglip2":
            patches = torch.randn(batch, 16, 3 * 16 * 16, generator=generator)
            return patches, torch.ones(batch, 16, dtype=torch.long), torch.tensor([[4, 4]] * batch)
        if config.model_type == "mllama_vision_model":
            return image, torch.ones(batch, 1, dtype=torch.long), torch.ones(batch, 1, 4, dtype=torch.long)
        if config.model_type == "oneformer":
            return image, torch.randint(99, (batch, 77), generator=generator)
        return (image,)

    return several(1), several(3)
