"""`load`: the small network again, from its file and the original architecture."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from fxcat.checks import check_module
from fxcat.errors import InputError, located
from fxcat.network.module_state import shapes_of
from fxcat.network.recipe import Stage, check_gates, check_shapes, make_example
from fxcat.passes.compile import build
from fxcat.passes.work import Options
from fxcat.storage import put, read


@torch.inference_mode(False)  # within that mode nothing could be trained
def load(path: str | os.PathLike[str], model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """The small network that was saved: structure and values, without gates, on the device and in the mode of `model`.

    `model`: the architecture that `prepare` was given, from the same constructor; its values do not matter, and it is
    not touched. `example_inputs`: those that `prepare` was given; needed only if they held anything but tensors and
    plain data. Reading the file executes nothing.

    Raises `StorageError` for a file that cannot be read, is damaged or holds something else, and `InputError` for
    another model.
    """
    check_module(model, "load()")
    stored = read(path)
    with located(str(path)):
        for stage in stored.recipe:
            model = _replayed(model, stage, example_inputs)
        put(model, stored)
    return model


def _replayed(model: nn.Module, stage: Stage, example_inputs: Any) -> nn.Module:
    """Prepare a model as it was prepared then, remove what was removed, and finalize it."""
    check_shapes(shapes_of(model), stage.shapes)
    if example_inputs is None and stage.example is None:
        raise InputError(
            "the example inputs of this network could not be stored", remedy="call load(path, model, example_inputs)"
        )
    example = make_example(stage.example) if example_inputs is None else example_inputs
    net = build(model, example, Options.of(stage.options), in_regions=stage.in_regions)
    check_gates(net.recipe[-1].gates, stage.gates)
    if stage.biases:  # at their full width, whenever they came: they shrink with all else
        net.add_biases(stage.biases)
    for closed in stage.closed[:-1]:
        net.shrink(net.gate_vector.open_but(closed))
    with torch.no_grad():
        net.gate_vector.theta.copy_(net.gate_vector.open_but(stage.closed[-1]))
    return net.finalized()
