"""Small models of Ultralytics: what their tools do with one must be right."""

from __future__ import annotations

from typing import Any

from torch import nn
from ultralytics.nn.modules.conv import Conv, Conv2
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from fxcat.errors import InputError
from fxcat.passes.codegen.install import original_class
from fxcat.utils.made_classes import make_class


class SmallYaml(dict[str, Any]):
    """The description of the full model in a small one. A model built from it would be of full size again."""

    def __getitem__(self, name: str) -> Any:
        if name == "backbone":
            raise InputError(
                "this model has been pruned, and the trainer by itself would build it anew at full size",
                remedy="call fxcat.integrations.ultralytics.attach(model, …) before model.train(…)",
            )
        return super().__getitem__(name)


def is_small(model: Any) -> bool:
    """Whether a model is one of those that `with_their_tools` returns."""
    return isinstance(getattr(model, "yaml", None), SmallYaml)


def with_their_tools(small: Any) -> nn.Module:
    """A finalized model of theirs, in place, so that their `fuse`, exporter and trainer do the right thing with it."""
    for module in small.modules():
        kind: Any = type(module)
        is_generated = original_class(module) is not kind
        if is_generated and getattr(kind, "forward_split", kind.forward) is not kind.forward:
            module.__class__ = _block_class(kind)
    if not is_small(small):
        small.yaml = SmallYaml(small.yaml)
        small.__class__ = _model_class(type(small))
    return small


def _block_class(base: Any) -> type[nn.Module]:
    """The exporter puts another form of a block's `forward` in its place, that of the block at full size."""
    members = {"forward_split": base.forward, "__module__": base.__module__}
    return make_class(base.__name__, base, members, (_block_class, (base,)))


def _model_class(base: Any) -> type[nn.Module]:
    members = {"fuse": _fuse, "is_fused": _is_fused, "__module__": base.__module__}
    return make_class(base.__name__, base, members, (_model_class, (base,)))


def _fuse(model: Any, verbose: bool = True, imgsz: Any = 640) -> Any:
    """Fold normalizations into the convolutions before them, and remove the head's branches for training.

    Theirs would take normalizations out of blocks, and put another `forward` in; the code of captured blocks calls both
    layers by itself. Merged branches (`RepConv`) stay apart."""
    for module in model.modules():
        if _has_norm(module):
            module.conv, module.bn = fuse_conv_and_bn(module.conv, module.bn), nn.Identity()
        elif isinstance(module, Detect):
            module.fuse()
    model.info(verbose=verbose, imgsz=imgsz)
    return model


def _is_fused(model: Any) -> bool:
    return not any(_has_norm(m) for m in model.modules())


def _has_norm(module: Any) -> bool:
    """Whether a block is a convolution, and a normalization of its result, that can be folded."""
    is_plain = isinstance(module, Conv) and not isinstance(module, Conv2)
    return is_plain and isinstance(getattr(module, "bn", None), nn.BatchNorm2d)
