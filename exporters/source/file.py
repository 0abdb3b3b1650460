"""The whole file: head, classes, and the functions that read the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcat.errors import ExportError
from fxcat.exporters.source.classes import Classes
from fxcat.exporters.source.forwards import forwards_of, tensors_in
from fxcat.exporters.source.parts import Parts, is_plain_name
from fxcat.exporters.source.text import class_text, has_type, reader
from fxcat.network.module_state import full_name
from fxcat.passes.codegen.install import original_class
from fxcat.passes.codegen.statements import INDENT
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.version import __version__


def source_of(module: nn.Module, arguments: tuple[Any, ...], weights: str) -> tuple[str, dict[str, torch.Tensor]]:
    """The text of the file, and the tensors by name. `weights`: the name of the file with these.

    Raises `ExportError` where something has no source form."""
    found = forwards_of(module, arguments)
    tensors = dict(tensors_in(found, module))
    _check(module, tensors)
    parts = Parts(module, found, tensors)
    classes = Classes(module, found, parts, tensors)
    last = [*_tied(parts, tensors), *_frozen(parts, module)]
    body: list[str] = []
    for made_by in classes.all:
        own = made_by is classes.root.made_by
        body += ["", "", *class_text(made_by, last if own else (), _train(parts, module) if own else ())]
    dtypes = sorted({t.dtype for t in tensors.values()}, key=str)
    body += ["", "", *reader(classes.root.made_by.name, weights, dtypes)]
    name = ascii(original_class(module).__name__)[1:-1].replace('"', "'")
    head = [
        f'"""{name}, made smaller: written by fxcat {__version__}. The weights lie in a file beside this one.',
        "",
        f"{INDENT}network = load()",
        '"""',
        "",
        *("import json", *_imports(classes, "\n".join(body))),
    ]
    return "\n".join([*head, *body]) + "\n", tensors


def _imports(classes: Classes, body: str) -> list[str]:
    lines = classes.names.imports()
    if "OrderedDict(" in body:
        lines.append("from collections import OrderedDict")
    if "namedtuple(" in "\n".join(lines):
        lines.append("from collections import namedtuple")
    if "torchvision.ops." in body or any("torch.ops.torchvision" in line for line in lines):
        lines.append("import torchvision")
    imports = sorted({line for line in lines if " = " not in line})
    own = [line for line in imports if line.split()[1].partition(".")[0] in ("torch", "torchvision")]
    others = [line for line in imports if line not in own]
    rest = [line for line in classes.names.imports() if " = " in line]
    lines = [*others, "from pathlib import Path", "", "import torch", *own, "from torch import nn"]
    return [*lines, *(["", *rest] if rest else []), ""][: None if rest else -1]


def _check(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    for path, part in module.named_modules():
        if original_class(part).get_extra_state is not nn.Module.get_extra_state:
            raise ExportError(f"a {type(part).__name__} has extra state, which has no source form", where=path or None)
    for name, tensor in tensors.items():
        if not has_type(tensor.dtype) or tensor.layout != torch.strided or tensor.is_quantized:
            raise ExportError(f"{name} is {tensor.dtype}, which is not stored", where=name, remedy="use another type")


def _tied(parts: Parts, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Lines that put one module, or one parameter, into several places."""
    lines: list[str] = []
    for path in parts.modules:
        outer, _, name = path.rpartition(".")
        if path and name in parts.children(outer) and parts.is_again(path) and not _is_inside(parts, outer):
            first = parts.first[id(parts.modules[path])]
            lines.append(_assigned(parts, path, parts.place("", first)))
    seen: dict[int, str] = {}
    for path, part in parts.modules.items():
        if _is_inside(parts, path):
            continue
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            full = full_name(path, name)
            if tensor is None or full not in tensors:
                continue
            first = seen.setdefault(id(tensor), full)
            if first != full:
                lines.append(_assigned(parts, full, parts.place("", first)))
    return lines


def _is_inside(parts: Parts, path: str) -> bool:
    """Whether a module is, or lies in, one that has been there before."""
    while path:
        if parts.is_again(path):
            return True
        path = path.rpartition(".")[0]
    return False


def _assigned(parts: Parts, path: str, value: str) -> str:
    outer, _, name = path.rpartition(".")
    place = parts.place("", path)
    if place.startswith("getattr(") or not (is_plain_name(name) or place.endswith("]")):
        holder = parts.place("", outer) if outer else "self"
        return f"setattr({holder}, {name!r}, {value})"
    return f"{place} = {value}"


def _frozen(parts: Parts, module: nn.Module) -> list[str]:
    """Lines that say which parameters are not trained: of whole modules, where all of theirs are not."""
    lines: list[str] = []
    done: set[str] = set()
    for path, part in module.named_modules():
        outer = path.rpartition(".")[0]
        if path and outer in done:
            done.add(path)
            continue
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            done.add(path)
            lines.append(f"{parts.place('', path) if path else 'self'}.requires_grad_(False)")
            continue
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.requires_grad and parameter.dtype.is_floating_point:
                lines.append(f"{parts.place('', full_name(path, name))}.requires_grad_(False)")
    return lines


def _train(parts: Parts, module: nn.Module) -> list[str]:
    """A method `train`, where the model's own leaves some modules in inference."""
    twin = meta_twin(module)
    twin.train()
    kept = [p for p, m in twin.named_modules() if not m.training and p and parts.layer(p) is not None]
    if not kept:
        return []
    lines = ["def train(self, mode=True):", f"{INDENT}super().train(mode)"]
    lines += [f"{INDENT}{parts.place('', path)}.eval()" for path in kept]
    return [*lines, f"{INDENT}return self"]
