"""`load`, `kept_indices`: the small network again, or where it came from, from the original architecture."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxcat.checks import check_module
from fxcat.errors import FxcatError, InputError, StorageError, located
from fxcat.gated import GatedModule
from fxcat.network.module_state import shapes_of
from fxcat.network.origin import KeptIndices
from fxcat.network.recipe import Stage, attached_recipe, check_gates, check_ops, check_shapes, make_example, parse
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
            with _followed():
                model = _replayed(model, stage, example_inputs).finalized()
        put(model, stored)
    return model


@torch.inference_mode(False)
def kept_indices(small: nn.Module, model: nn.Module, example_inputs: Any = None) -> KeptIndices:
    """For every parameter and buffer of a small network the indices of the tensor of the same name in the start
    network that it consists of, and how to put it back there. `net.kept_indices()` gives the same before `finalize`.

    `small`: what `finalize` or `load` returned. `model`, `example_inputs`: as for `load`; the model is not touched.

    Raises `InputError` for a module that `finalize` has not returned, and for another model.
    """
    for module in (small, model):
        check_module(module, "kept_indices()")
    recipe = attached_recipe(small)
    if recipe is None:
        raise InputError(
            f"kept_indices() got a {type(small).__name__} that finalize() has not returned",
            remedy="give what fxcat.finalize(net) returned, before it is put into another module",
        )
    found: KeptIndices | None = None
    for stage in parse(recipe)[0]:
        with _followed():
            net = _replayed(model, stage, example_inputs)
            found = net.kept_indices() if found is None else found.then(net.kept_indices())
            model = net.finalized()
    assert found is not None, "a recipe has stages"
    return found


@contextmanager
def _followed() -> Generator[None, None, None]:
    """`InputError`s pass: they say that the model is another one. What else is raised says that the recipe asks for
    what cannot be, in a `StorageError`."""
    try:
        yield
    except InputError:
        raise
    except (FxcatError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = error.what if isinstance(error, FxcatError) else f"{type(error).__name__}: {error}"
        raise StorageError(
            f"the recipe cannot be followed with this model: {what}",
            remedy="use the same model and example inputs, and the version of fxcat that has written the file",
        ) from error


def _replayed(model: nn.Module, stage: Stage, example_inputs: Any) -> GatedModule:
    """Prepare a model as it was prepared then, and remove what was removed; what went at the end is closed."""
    check_shapes(shapes_of(model), stage.shapes)
    if example_inputs is None and stage.example is None:
        raise InputError("the example inputs of this network could not be stored", remedy="pass example_inputs")
    example = make_example(stage.example) if example_inputs is None else example_inputs
    net = build(model, example, Options.of(stage.options), in_regions=stage.in_regions)
    check_ops(net.recipe[-1].ops, stage.ops)
    check_gates(net.recipe[-1].gates, stage.gates)
    if stage.biases:  # at their full width, whenever they came: they shrink with all else
        try:
            net.add_biases(stage.biases)
        except InputError as error:
            raise ValueError(error.what) from error  # which the recipe says, not the model
    for closed in stage.closed[:-1]:  # also where nothing closed: what may be a unit is found anew
        net.shrink(net.gate_vector.open_but(closed))
    with torch.no_grad():
        net.gate_vector.theta.copy_(net.gate_vector.open_but(stage.closed[-1]))
    return net
