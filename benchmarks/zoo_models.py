"""Models of other people's packages that build without downloads, for `zoo.py`.

Per package the names, and for a name a model with random weights, example inputs, and others of another batch size.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo_transformers
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]
LIMIT = 4_000_000_000
"""Bytes of weights above which a model is left out."""


class TooLarge(Exception):
    """Its weights exceed the limit."""


def images(size: int | tuple[int, ...], channels: int = 3) -> tuple[tuple[torch.Tensor], tuple[torch.Tensor]]:
    """An image, and three."""
    sizes = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(0)
    one, three = (torch.randn(batch, channels, *sizes, generator=generator) for batch in (1, 3))
    return (one,), (three,)


def takes(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a model runs in inference."""
    try:
        with torch.no_grad():
            model.eval()(*args)
    except Exception:
        return False
    return True


# -- torchvision ------------------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    from zoo import trainable  # that of the tests

    return trainable()


def _torchvision(name: str) -> Built:
    from detectors import build as build_detector
    from detectors import inputs
    from zoo import DETECTION, build, shapes

    if name in DETECTION:
        example, others, _ = inputs(torch.float32)
        return build_detector(name), example, others
    example, others = (tuple(torch.randn(s) for s in several) for several in shapes(name))
    return build(name), example, others


# -- timm -------------------------------------------------------------------------------------------------------------


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _timm_parameters(name: str) -> int:
    """Without weights; 0 where a model computes with them when it is made."""
    import timm

    with torch.device("meta"):
        try:
            return sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:
            return 0


def _timm(name: str) -> Built:
    import timm_families

    size = 4 * _timm_parameters(name)
    if size > LIMIT:
        raise TooLarge(f"weights of {size / 1e9:.1f} GB")
    model, one, three = timm_families.build(name)
    return model, (torch.randn(one),), (torch.randn(three),)


# -- transformers -----------------------------------------------------------------------------------------------------


def _transformers(name: str) -> Built:
    model, (example, others) = zoo_transformers.build(name)
    return model, example, others


# -- ultralytics ------------------------------------------------------------------------------------------------------


def _ultralytics_names() -> list[str]:
    import ultralytics

    folder = Path(str(ultralytics.__file__)).parent / "cfg" / "models"
    return sorted(path.stem for path in folder.rglob("*.yaml"))


def _ultralytics(name: str) -> Built:
    """The smallest scale."""
    ultralytics: Any = importlib.import_module("ultralytics")
    model: nn.Module = (ultralytics.RTDETR if "rtdetr" in name else ultralytics.YOLO)(f"{name}.yaml").model
    return model, *images(64 if "cls" in name else 128)


# -- segmentation-models-pytorch --------------------------------------------------------------------------------------

_SMP_SIZES = {"pan": 128, "dpt": 224}
_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "mit_b0")


def _smp_names() -> list[str]:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    pairs = [(arch, encoder) for arch in sorted(smp.MODEL_ARCHITECTURES_MAPPING) for encoder in _ENCODERS]
    return [f"{arch}/{encoder}" for arch, encoder in pairs if arch != "dpt"] + ["dpt/tu-vit_tiny_patch16_224"]


def _smp(name: str) -> Built:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    arch, encoder = name.split("/")
    return smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=3), *images(
        _SMP_SIZES.get(arch, 64)
    )


# -- MONAI, diffusers, vit-pytorch: classes with arguments ----------------------------------------

_UNET: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": (_UNET | {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2}, (1, 32, 32)),
    "BasicUNet": (_UNET | {"features": (8, 8, 16, 16, 32, 8)}, (1, 32, 32)),
    "BasicUNetPlusPlus": (_UNET | {"features": (8, 8, 16, 16, 32, 8)}, (1, 32, 32)),
    "AttentionUnet": (_UNET | {"channels": (8, 16, 32), "strides": (2, 2)}, (1, 32, 32)),
    "SegResNet": (_UNET | {"init_filters": 8}, (1, 32, 32)),
    "SegResNetVAE": (_UNET | {"init_filters": 8, "input_image_size": (32, 32)}, (1, 32, 32)),
    "SegResNetDS": (_UNET | {"init_filters": 8}, (1, 32, 32)),
    "DynUNet": (
        _UNET
        | {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 16, 32]},
        (1, 32, 32),
    ),
    "VNet": ({"spatial_dims": 2}, (1, 32, 32)),
    "UNETR": (
        {
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 2,
            "img_size": 32,
            "hidden_size": 48,
            "mlp_dim": 64,
            "num_heads": 4,
            "feature_size": 8,
        },
        (1, 32, 32),
    ),
    "SwinUNETR": (_UNET | {"feature_size": 12}, (1, 64, 64)),
    "ViT": (
        {
            "in_channels": 3,
            "img_size": 32,
            "patch_size": 8,
            "spatial_dims": 2,
            "hidden_size": 48,
            "mlp_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
            "classification": True,
        },
        (3, 32, 32),
    ),
    "ViTAutoEnc": (
        {
            "in_channels": 1,
            "img_size": (32, 32),
            "patch_size": (4, 4),
            "spatial_dims": 2,
            "hidden_size": 48,
            "mlp_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
        },
        (1, 32, 32),
    ),
    "HighResNet": (_UNET, (1, 32, 32)),
    "HoVerNet": ({}, (3, 256, 256)),
    "FlexibleUNet": ({"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, (3, 64, 64)),
    "AHNet": (_UNET | {"psp_block_num": 3}, (1, 64, 64)),
    "MILModel": ({"num_classes": 2, "pretrained": False, "mil_mode": "att"}, (4, 3, 64, 64)),
    "Quicknat": ({}, (1, 64, 64)),
    "MedNeXt": (_UNET | {"init_filters": 8}, (1, 32, 32)),
    "RegUNet": (
        {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2, "out_channels": 2},
        (1, 32, 32),
    ),
    "AutoEncoder": (_UNET | {"channels": (8, 16), "strides": (2, 2)}, (1, 32, 32)),
    "VarAutoEncoder": (
        {
            "spatial_dims": 2,
            "in_shape": (1, 32, 32),
            "out_channels": 2,
            "latent_size": 4,
            "channels": (8, 16),
            "strides": (2, 2),
        },
        (1, 32, 32),
    ),
    "DenseNet121": (_UNET, (1, 64, 64)),
    "SENet154": ({"spatial_dims": 2, "in_channels": 3, "num_classes": 2}, (3, 64, 64)),
    "ResNet": (
        {
            "block": "basic",
            "layers": [1, 1, 1, 1],
            "block_inplanes": [8, 16, 32, 64],
            "spatial_dims": 2,
            "n_input_channels": 3,
        },
        (3, 64, 64),
    ),
    "EfficientNetBN": ({"model_name": "efficientnet-b0", "pretrained": False}, (3, 64, 64)),
    "TorchVisionFCModel": ({"model_name": "resnet18", "pretrained": False}, (3, 64, 64)),
}

_VIT: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "num_classes": 10,
    "dim": 48,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 64,
}
_VIT_PYTORCH: dict[str, dict[str, Any]] = {
    "vit.ViT": _VIT,
    "simple_vit.SimpleViT": _VIT,
    "simple_vit_with_register_tokens.SimpleViT": _VIT,
    "simple_vit_with_qk_norm.SimpleViT": _VIT,
    "simple_vit_with_patch_dropout.SimpleViT": _VIT,
    "vit_for_small_dataset.ViT": _VIT,
    "parallel_vit.ViT": _VIT | {"num_parallel_branches": 2},
    "deepvit.DeepViT": _VIT,
    "cait.CaiT": _VIT | {"cls_depth": 1},
    "learnable_memory_vit.ViT": _VIT,
    "distill.DistillableViT": _VIT,
    "local_vit.LocalViT": _VIT | {"dim": 16, "patch_size": 4},  # it takes no other width than that of its map
    "rvt.RvT": _VIT,
    "vit_with_patch_merger.ViT": _VIT,
    "sep_vit.SepViT": {"num_classes": 10, "dim": 16, "dim_head": 8, "heads": (1, 2), "depth": (1, 1)},
    "max_vit.MaxViT": {"num_classes": 10, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4},
    "mobile_vit.MobileViT": {
        "image_size": (64, 64),
        "dims": [16, 24, 32],
        "channels": [8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 32],
        "num_classes": 10,
    },
    "crossformer.CrossFormer": {
        "num_classes": 10,
        "dim": (32, 32, 64, 64),
        "depth": (1, 1, 1, 1),
        "global_window_size": (4, 2, 1, 1),
        "local_window_size": 1,
    },
    "regionvit.RegionViT": {"dim": (16, 16, 32, 32), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 10},
    "scalable_vit.ScalableViT": {
        "num_classes": 10,
        "dim": 16,
        "heads": (1, 1),
        "depth": (1, 1),
        "ssa_dim_key": (8, 8),
        "ssa_dim_value": (8, 8),
        "reduction_factor": (2, 1),
        "window_size": (4, None),
    },
    "t2t.T2TViT": {
        "dim": 48,
        "image_size": 64,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 64,
        "num_classes": 10,
        "t2t_layers": ((7, 4), (3, 2)),
    },
    "cct.CCT": {
        "img_size": 64,
        "embedding_dim": 48,
        "num_layers": 2,
        "num_heads": 4,
        "mlp_ratio": 2,
        "num_classes": 10,
        "positional_embedding": "learnable",
    },
    "cross_vit.CrossViT": {
        "image_size": 64,
        "num_classes": 10,
        "sm_dim": 32,
        "lg_dim": 48,
        "sm_patch_size": 8,
        "lg_patch_size": 16,
    },
    "pit.PiT": {
        "image_size": 64,
        "patch_size": 8,
        "dim": 32,
        "num_classes": 10,
        "depth": (1, 1),
        "heads": 4,
        "mlp_dim": 64,
    },
    "levit.LeViT": {
        "image_size": 64,
        "num_classes": 10,
        "stages": 2,
        "dim": (32, 48),
        "depth": 1,
        "heads": (2, 4),
        "mlp_mult": 2,
    },
    "cvt.CvT": {"num_classes": 10, "s1_emb_dim": 16, "s2_emb_dim": 24, "s3_emb_dim": 32, "s3_depth": 1},
    "twins_svt.TwinsSVT": {
        "num_classes": 10,
        "s1_emb_dim": 16,
        "s2_emb_dim": 24,
        "s3_emb_dim": 32,
        "s4_emb_dim": 48,
        "s1_local_patch_size": 4,
        "s2_local_patch_size": 4,
        "s3_local_patch_size": 2,
        "s4_local_patch_size": 1,
        "s2_global_k": 4,
        "s3_global_k": 4,
        "s4_global_k": 2,
        "s1_patch_size": 2,
        "s2_patch_size": 2,
        "s3_patch_size": 2,
        "s4_patch_size": 2,
    },
    "nest.NesT": {
        "image_size": 64,
        "patch_size": 4,
        "dim": 16,
        "heads": 2,
        "num_hierarchies": 2,
        "block_repeats": (1, 1),
        "num_classes": 10,
    },
    "ats_vit.ViT": _VIT | {"max_tokens_per_depth": (32, 16)},
    "xcit.XCiT": {
        "image_size": 64,
        "patch_size": 8,
        "num_classes": 10,
        "dim": 48,
        "depth": 2,
        "cls_depth": 1,
        "heads": 4,
        "mlp_dim": 64,
        "local_patch_kernel_size": 3,
    },
}
_SIZES = {"sep_vit.SepViT": 56}  # windows of 7

_BLOCKS: dict[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1}
_DIFFUSERS: dict[str, tuple[dict[str, Any], str]] = {
    "UNet2DModel": (
        _BLOCKS
        | {
            "sample_size": 32,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "attention_head_dim": 8,
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        "timestep",
    ),
    "UNet2DConditionModel": (
        _BLOCKS
        | {
            "sample_size": 32,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "cross_attention_dim": 24,
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
        },
        "text",
    ),
    "AutoencoderKL": (
        _BLOCKS | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        "image",
    ),
    "VQModel": (
        _BLOCKS | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
        "image",
    ),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)},
        "image",
    ),
    "AutoencoderDC": (
        {
            "encoder_block_out_channels": (16, 32),
            "decoder_block_out_channels": (16, 32),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "latent_channels": 4,
            "attention_head_dim": 8,
        },
        "image",
    ),
    "DiTTransformer2DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 16, "norm_num_groups": 4},
        "class",
    ),
    "PixArtTransformer2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "sample_size": 16,
            "cross_attention_dim": 16,
            "caption_channels": 24,
        },
        "caption",
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 24,
            "sample_size": 16,
            "patch_size": 1,
        },
        "caption",
    ),
}


def _monai(name: str) -> Built:
    arguments, (channels, *size) = _MONAI[name]
    cls = getattr(importlib.import_module("monai.networks.nets"), name)
    return cls(**arguments), *images(tuple(size), channels)


def _vit_pytorch(name: str) -> Built:
    module, cls = name.split(".")
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), cls)(**_VIT_PYTORCH[name]), *images(
        _SIZES.get(name, 64)
    )


def _diffusers(name: str) -> Built:
    arguments, kind = _DIFFUSERS[name]
    model: nn.Module = getattr(importlib.import_module("diffusers"), name)(**arguments)
    parameters = inspect.signature(model.forward).parameters
    channels = getattr(model, "config").get("in_channels", 3)  # noqa: B009

    def inputs(batch: int) -> tuple[Any, ...]:
        given: dict[str, Any] = {
            "timestep": torch.full((batch,), 5),
            "class_labels": torch.zeros(batch, dtype=torch.long),
        }
        text = {"encoder_hidden_states": torch.randn(batch, 6, 24)}
        given |= {"text": text, "caption": text}.get(kind, {})
        first = torch.randn(batch, channels, *((32, 32) if kind in ("image", "timestep", "text") else (16, 16)))
        names = [n for n in list(parameters)[1:] if n in given and (kind != "image")]
        wanted = {"timestep": ["timestep"], "text": ["timestep", "encoder_hidden_states"], "image": []}
        names = wanted.get(kind, names)
        values: list[Any] = []
        for n in list(parameters)[1:]:
            if not names:
                break
            values.append(given[n] if n in names else parameters[n].default)
            names = [m for m in names if m != n]
        return (first, *values)

    return model, inputs(1), inputs(3)


PACKAGES: dict[str, tuple[Callable[[], list[str]], Callable[[str], Built]]] = {
    "torchvision": (_torchvision_names, _torchvision),
    "timm": (_timm_names, _timm),
    "transformers": (zoo_transformers.names, _transformers),
    "ultralytics": (_ultralytics_names, _ultralytics),
    "segmentation-models-pytorch": (_smp_names, _smp),
    "MONAI": (partial(list, _MONAI), _monai),
    "diffusers": (partial(list, _DIFFUSERS), _diffusers),
    "vit-pytorch": (partial(list, _VIT_PYTORCH), _vit_pytorch),
}

PARAMETERS: dict[str, Callable[[str], int]] = {"timm": _timm_parameters}
"""How many a name has, where that is quickly told."""


def sample(names: list[str], count: int) -> Iterator[str]:
    """So many names at even distances: the same every time."""
    yield from names[:: max(1, len(names) // count)][:count]
