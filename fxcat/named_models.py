"""`named_model`: a model by its name, from the packages that are installed. Nothing is downloaded unless asked."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcat.checks import as_path, check_flag, check_instance, check_integer, shown
from fxcat.errors import InputError, StorageError

_log = logging.getLogger(__name__)
TORCHVISION, TIMM = "torchvision", "timm"
LOADING = ("pretrained", "weights", "checkpoint")
"""In the names of arguments by which models of torchvision and timm load weights, from files or the network."""
WRAPPED = ("state_dict", "model")
"""Under these names training scripts store the values of a model, beside others."""


def named_model(
    name: str,
    *,
    classes: int | None = None,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of torchvision or timm, or what a function of yours returns.

    `name`: that of a torchvision model, else of a timm model ("resnet18", or with its package, "timm:resnet18"), or
    "package.module:function". `arguments`: more of what makes it. `classes`: how many it tells apart, if not as many as
    usual (`num_classes` of what makes it). `pretrained`: with the weights that its package offers for it, which may
    download them. `weights`: a file with its `state_dict` (safetensors, or torch's without other objects in it). Where
    `classes` makes the last layer another one, that layer's values are not taken, and a warning is logged.

    Raises `InputError` for an unknown name, arguments that do not fit and values of another model, and `StorageError`
    for a file that cannot be read.
    """
    check_instance(name, str, "name")
    check_integer(classes, "classes", least=1, optional=True)
    check_flag(pretrained, "pretrained")
    check_instance(arguments, Mapping, "arguments", remedy='give {"image_size": 32}', optional=True)
    given = dict(arguments or {})
    for argument in given:
        if not isinstance(argument, str):
            raise InputError(f"arguments= names {shown(argument)}, which is no name", remedy="give arguments by name")
        if any(word in argument for word in LOADING):
            raise InputError(
                f"the argument {argument!r} of {name} would load weights", remedy="say pretrained=True, or weights=path"
            )
    if classes is not None:
        if given.get("num_classes", classes) != classes:
            other = given["num_classes"]
            raise InputError(f"classes={classes} and num_classes={other} at once", remedy="give one of them")
        given["num_classes"] = classes
    if pretrained and weights is not None:
        raise InputError("pretrained=True and weights= at once", remedy="give one of them")
    package, _, rest = name.rpartition(":")
    if is_code(name):
        if pretrained:
            raise InputError(f"{name} has no pretrained weights that are known", remedy="give a file: weights=")
        model = _made(_function(package, rest), given, name)
    else:
        model = _of_package(package or _package_of(rest), rest, given, pretrained=pretrained)
    if weights is not None:
        _take(model, read_weights(weights), os.fspath(weights), classes)
    return model


def is_code(name: str) -> bool:
    """Whether making a model imports a module that its name gives, rather than one of torchvision or timm."""
    return name.rpartition(":")[0] not in ("", TORCHVISION, TIMM)


def with_package(name: str) -> str:
    """The name with its package: what it means does not change when another package is installed.

    Raises `InputError` for an unknown name."""
    package, _, rest = name.rpartition(":")
    return name if package else f"{_package_of(rest)}:{rest}"


def known_names() -> list[str]:
    """Names of models in the packages that are installed."""
    import torchvision

    timm = _timm()
    return sorted({*torchvision.models.list_models(), *([] if timm is None else timm.list_models())})


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Tensors by name from a file. Nothing in it is executed. Raises `StorageError`."""
    file = as_path(path, "weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"no weights can be read: {reason}",
            where=str(file),
            remedy="give a file of torch.save(model.state_dict(), path) or safetensors.torch.save_file",
        ) from error
    for key in WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(found, Mapping) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise StorageError("the file holds no state_dict", where=str(file), remedy="save model.state_dict()")
    tensors: dict[str, torch.Tensor] = {str(n): t for n, t in found.items()}  # pyright: ignore[reportUnknownArgumentType]
    return {n.removeprefix("module."): t for n, t in tensors.items()}  # of DistributedDataParallel


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        return None


def _package_of(name: str) -> str:
    """The package that has a model of this name, torchvision first."""
    import torchvision

    if name in torchvision.models.list_models():
        return TORCHVISION
    timm = _timm()
    if timm is not None and timm.is_model(name):
        return TIMM
    near = difflib.get_close_matches(name, known_names(), 3)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    more = "" if timm is not None else '; for those of timm: pip install "fxcat[timm]"'
    raise InputError(
        f"no model is named {name!r}",
        remedy=f"{meant}give a name of torchvision or timm, or package.module:function{more}",
    )


def _of_package(package: str, name: str, arguments: dict[str, Any], *, pretrained: bool) -> nn.Module:
    if package == TIMM:
        timm = _timm()
        if timm is None:
            raise InputError(f"{name} is to come from timm, which is not installed", remedy='pip install "fxcat[timm]"')
        if not timm.is_model(name):  # it would take names of places on the network, too
            raise InputError(f"timm has no model {name!r}", remedy="see timm.list_models()")
        return _made(timm.create_model, {"model_name": name, "pretrained": pretrained, **arguments}, name)
    import torchvision

    models = torchvision.models
    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}", remedy="see torchvision.models.list_models()")
    backbone = {"weights_backbone": None} if "weights_backbone" in _parameters(models.get_model_builder(name)) else {}
    arguments = {"weights": None, **backbone, **arguments}
    model = _made(lambda **given: models.get_model(name, **given), arguments, name)
    if pretrained:
        weights: Any = models.get_model_weights(name).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
        _take(model, weights.get_state_dict(progress=True, check_hash=True), str(weights), arguments.get("num_classes"))
    return model


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _function(module: str, name: str) -> Callable[..., Any]:
    """What "module:name" names. Importing it executes it."""
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"{module} needs the package {error.name}", remedy=f"pip install {error.name}") from error
        raise InputError(
            f"there is no module {error.name!r} to take {name!r} from", remedy="run where it can be imported"
        ) from error
    except AttributeError as error:
        raise InputError(f"{module} has no {name!r}", remedy="give package.module:function") from error
    except Exception as error:  # of somebody's own code
        raise InputError(
            f"{module} cannot be imported: {type(error).__name__}: {error}",
            remedy="give package.module:function, which can be imported: nets:small of a file nets.py",
        ) from error
    if not callable(found):
        raise InputError(f"{module}:{name} is no function", remedy="give a function, or a class, that makes a model")
    return found


def _made(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> nn.Module:
    try:
        model: Any = function(**arguments)
    except Exception as error:  # of other people's code
        raise InputError(
            f"{name} cannot be made with {arguments}: {type(error).__name__}: {error}",
            remedy="see which arguments it takes",
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} makes a {type(model).__name__}, not a model", remedy="return a torch.nn.Module")
    return model


def _take(model: nn.Module, values: dict[str, torch.Tensor], where: str, classes: int | None) -> None:
    """Put values into a model, all but those of a last layer that tells apart other classes."""
    own = model.state_dict()
    missing, unexpected = [n for n in own if n not in values], [n for n in values if n not in own]
    other = [n for n in own if n in values and own[n].shape != values[n].shape]
    head = [n for n in other if own[n].shape[:1] == (classes,) and own[n].shape[1:] == values[n].shape[1:]]
    said = [
        *(f"it lacks {n}" for n in missing),
        *(f"it has {n}, and the model does not" for n in unexpected),
        *(f"{n} is {tuple(values[n].shape)} there and {tuple(own[n].shape)} here" for n in other if n not in head),
    ]
    if said:
        more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
        raise InputError(
            f"the weights are not those of this model: {said[0]}{more}",
            where=where,
            remedy="give the model, with its arguments, that they were stored from",
        )
    model.load_state_dict({n: own[n] if n in head else t for n, t in values.items()})
    if head:
        _log.warning("%s has other classes: %s stay as they were made", Path(where).name, ", ".join(head))
