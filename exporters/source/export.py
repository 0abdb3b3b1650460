"""`export_source`: a network as a Python file and a file with its weights, compared with the network before they are
there."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcat.checks import as_path, check_flag
from fxcat.errors import ExportError, InputError
from fxcat.exporters.inputs import at_batch, example_arguments, has_images
from fxcat.exporters.source.file import source_of
from fxcat.exporters.source.running import load_function
from fxcat.gated_checks import check_without_gates
from fxcat.passes.verification import Runner, difference, undisturbed
from fxcat.utils.safetensors_file import write_tensors
from fxcat.utils.written_files import check_free, write_whole


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What was written: `path`, `weights`, and the number of `lines` and `classes`.

    `max_error`: the largest difference from the module in `eval()`, relative to max(1, max |output|); 0.0 says that
    outputs are equal to the bit. None without verification."""

    path: Path
    weights: Path
    lines: int
    classes: int
    max_error: float | None = None


def export_source(
    module: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    verify: bool = True,
) -> SourceReport:
    """Write a network as one Python file of plain layers, and its weights beside it, as `<name>.safetensors`.

    The file needs torch alone (and torchvision where an op is theirs), neither fxcat nor the model's own class. Its
    function `load()` gives the network, which has the names and `state_dict` keys of `module`, can be trained, and is
    taken by `torch.save`, `torch.jit.script`, `torch.export` and `torch.compile`. It has the `forward` of the module
    for arguments as those of the example, and none of its other methods; hooks are not in it.

    `path`: ends in `.py`. `example_inputs`: as for `export_onnx`. The module is not touched. `verify`: compare what the
    file computes with the module, in `eval()` and in `train()`.

    Raises `InputError`; `ExportError`, which names the op and its module, where something has no source form (a
    detector's Python, ops of other packages), or where the file computes something else; and `StorageError`. Then there
    is no file.
    """
    check_without_gates(module, "export_source()")
    check_flag(verify, "verify")
    target = as_path(path)
    if target.suffix != ".py":
        raise InputError(f"{target.name!r} is no name of a Python file", remedy='give a path that ends in ".py"')
    check_free(target)
    weights = target.with_suffix(".safetensors")
    arguments = example_arguments(module, example_inputs)
    text, tensors = source_of(module, arguments, weights.name)
    error = _verified(module, arguments, text, tensors) if verify else None
    write_tensors(weights, "pt", tensors, {})
    write_whole(target, text.encode())
    classes = sum(line.startswith("class ") for line in text.splitlines())
    return SourceReport(target, weights, text.count("\n"), classes, error)


def _verified(module: nn.Module, arguments: tuple[Any, ...], text: str, tensors: dict[str, torch.Tensor]) -> float:
    """The largest difference in inference. Raises `ExportError` if what was written is another network."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.py"
        file.write_text(text, encoding="utf-8")
        write_tensors(file.with_suffix(".safetensors"), "pt", tensors, {})
        made = _ran(file)
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    if made.state_dict().keys() != module.state_dict().keys():
        raise ExportError("the source does not hold what the module holds", remedy="report it")
    inputs = at_batch(arguments, None if has_images(arguments) else 2, 0)
    inputs = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in inputs)
    with undisturbed():
        return _compared(Runner(made.to(device)), Runner(module), inputs)


def _compared(found: Runner, expected: Runner, inputs: tuple[Any, ...]) -> float:
    tolerance = 1e-10 if any(p.dtype == torch.float64 for p in expected.module.parameters()) else 1e-4
    error = 0.0
    for training in (False, True):
        try:
            wanted = expected((inputs, {}), training)
        except Exception:
            continue  # it takes other inputs in this mode
        given = found((inputs, {}), training)
        saved, own = expected.module.state_dict().keys(), found.buffers()
        kept = {name: value for name, value in expected.buffers().items() if name in saved}
        left = difference({name: own[name] for name in kept}, kept, "state")
        worst = max(difference(given, wanted), left, key=lambda d: d.size)
        if not worst.size <= tolerance:
            mode = "train" if training else "eval"
            raise ExportError(f"the source computes something else in {mode}(): {worst.text}", remedy="report it")
        error = error if training else worst.size
    return error


def _ran(file: Path) -> nn.Module:
    """The network of a file that was written, with the weights beside it."""
    try:
        return load_function(file)(file.with_suffix(".safetensors"))
    except Exception as error:
        raise ExportError(f"the source does not run: {type(error).__name__}: {error}", remedy="report it") from error
