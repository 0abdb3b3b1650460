"""Is an ONNX file valid, standard, and does it compute what a module computes?"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from fxcat.errors import ExportError
from fxcat.exporters.form import Form
from fxcat.exporters.inputs import at_batch, batch_of, given_values, larger, tensor_leaves
from fxcat.exporters.outputs import named_outputs
from fxcat.exporters.runtime import feed, open_session

_log = logging.getLogger(__name__)
BATCHES = (1, 4)
"""Batch sizes at which a file is compared with its module. Neither is the one at which the module is captured."""
_SEEDS = (11, 12)
"""Of the random inputs at a fixed batch size."""
TOLERANCE = 1e-4
"""Largest difference, relative to max(1, max |output|)."""
HALF_TOLERANCE = 1e-2
"""The same where outputs are float16, whose spacing is 1e-3, or were computed in it."""
_REMEDY = (
    "look for a branch on the batch size or on values in forward: an export keeps only one side of it; "
    "or for a choice that rounding decides, such as the order of nearly equal scores"
)
_HALF_REMEDY = "its values may be larger than float16 has (65504), or need its digits: export without half=True"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a valid ONNX file consists of."""

    opset: int
    operators: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest difference found, relative to max(1, max |output|), and the provider that really ran."""

    max_error: float
    provider: str


def check_file(path: Path) -> FileFacts:
    """Opset and operators of a file. Raises `ExportError` if it is invalid or needs operators from elsewhere."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"the exported file is not valid ONNX: {error}") from error
    model = onnx.load(str(path), load_external_data=False)
    nodes = list(_nodes(model.graph))
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise ExportError(
            f"the exported file needs operators that are not standard ONNX: {', '.join(foreign) or 'functions'}",
            remedy="replace them in the module, or export to an opset that has them",
        )
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return FileFacts(opset, dict(sorted(Counter(n.op_type for n in nodes).items())))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the branches and loop bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def trials(arguments: tuple[Any, ...], form: Form) -> list[tuple[Any, ...]]:
    """Inputs to compare a file with its module on: random ones at every batch size of `BATCHES` if the batch is
    dynamic; else the example inputs, if they have values, and random ones like them. If sizes are dynamic, images that
    are higher, and such that are wider, too."""
    if form.dynamic_batch:
        found = [at_batch(arguments, batch, seed=batch) for batch in BATCHES]
    else:
        given = given_values(arguments)
        found = ([] if given is None else [given]) + [at_batch(arguments, None, seed) for seed in _SEEDS]
    if form.dynamic_size:
        found += [at_batch(larger(arguments, *by), None, seed=3) for by in ((1, 0), (0, 2))]
    return found


def compare_outputs(
    path: Path, reference: nn.Module, trials: Sequence[tuple[Any, ...]], provider: str, *, half: bool = False
) -> Agreement:
    """Run file and module (on the CPU, in inference mode) on the same inputs, several times. `half`: the file computes
    in float16, whatever its outputs are.

    Raises `ExportError` if an output differs by more than the tolerance, or if the file does not run.
    """
    session = open_session(path, provider, exact=True)
    worst = largest = 0.0
    for inputs in trials:
        batch = batch_of(inputs)
        try:
            with torch.no_grad():
                expected = list(named_outputs(reference(*inputs)))
        except Exception as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensor_leaves(inputs))
            raise ExportError(
                f"the module itself does not run on inputs of shape {shapes}: {error}",
                remedy="export what the example has alone: dynamic_size=False, dynamic_batch=False",
            ) from error
        try:
            found: list[Any] = session.run(None, feed(session, inputs))
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"the exported file does not run at batch {batch}: {error}") from error
        if len(found) != len(expected):
            raise ExportError(f"the exported file has {len(found)} outputs, the module {len(expected)}")
        for value, (name, wanted) in zip(found, expected, strict=True):
            worst = max(worst, _difference(torch.from_numpy(value), wanted, f"output {name} at batch {batch}", half))
            largest = max(largest, _largest(wanted.double()))
    if largest <= TOLERANCE:
        _log.warning("all outputs are empty or at most %.0e, within the tolerance: the comparison says little", largest)
    return Agreement(worst, str(session.get_providers()[0]))


def _difference(found: torch.Tensor, wanted: torch.Tensor, where: str, half: bool) -> float:
    remedy = _HALF_REMEDY if half else _REMEDY
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ExportError(
            f"the exported file gives {found.dtype} of shape {tuple(found.shape)}, "
            f"the module {wanted.dtype} of shape {tuple(wanted.shape)}",
            where=where,
            remedy=remedy,
        )
    a, b = found.double(), wanted.double()
    # NaN and infinity agree if both sides have the same; what is left is compared as numbers.
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs()) / max(1.0, _largest(b))
    worst = float(error.max()) if error.numel() else 0.0
    tolerance = HALF_TOLERANCE if half or wanted.dtype == torch.float16 else TOLERANCE
    if not worst <= tolerance:  # also for NaN
        raise ExportError(
            f"the exported file differs from the module by {worst:.1e}, relative (allowed: {tolerance:.0e})",
            where=where,
            remedy=remedy,
        )
    return worst


def _largest(values: torch.Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0
