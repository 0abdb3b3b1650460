"""Which modules capture keeps as one node of the graph."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxcat.passes.rules.table import find_decomposition, module_rule
from fxcat.utils.made_classes import Made


def computes_weights(module: nn.Module) -> bool:
    """Whether the module's weights are computed from parameters before each call, by `torch.nn.utils.parametrize`, or
    by hooks of torch.nn that do nothing else; then it is captured as the function that it calls."""
    if not isinstance(module, _WITH_FUNCTIONS) or type(module).forward is not _own_class(module).forward:
        return False
    hooks = list(module._forward_pre_hooks.values())
    if module._forward_hooks or not all(isinstance(h, WeightNorm | SpectralNorm | BasePruningMethod) for h in hooks):
        return False
    return bool(hooks) or is_parametrized(module)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WITH_FUNCTIONS = (nn.Linear, *_CONVOLUTIONS)


def _own_class(module: nn.Module) -> type[nn.Module]:
    return next(c for c in type(module).__mro__ if c in _WITH_FUNCTIONS)


def is_leaf(module: nn.Module) -> bool:
    """Whether capture keeps the module as one node: it has a rule, or it is torch's own and holds weights itself.

    Those of torch.nn that hold none call functions or other modules, which are captured instead.
    """
    if isinstance(module, ParametrizationList | _SpectralNorm) or computes_weights(module):
        return False
    if module_rule(module) is not None:
        return True
    if find_decomposition(module) is not None:
        return False
    if isinstance(type(module), Made):
        return False  # what it computes is generated code, whatever its class was
    own = type(module).__module__
    held = (*module._parameters.values(), *module._buffers.values())
    return own.startswith("torch.ao") or (own.startswith("torch.nn") and any(t is not None for t in held))


def traced_modules(root: nn.Module) -> list[nn.Module]:
    """The modules whose Python is captured: those that are no leaves."""
    return [m for m in root.modules() if not is_leaf(m)]


def is_of_torch(module: nn.Module) -> bool:
    """Whether torch.nn wrote a module and all that it holds, and it is no container of what a user chose."""
    chosen = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return not chosen and all(type(m).__module__.startswith("torch.nn") for m in module.modules())
