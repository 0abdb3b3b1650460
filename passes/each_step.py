"""`prepare(verify="each step")`: after every step that rewrites the graph the network runs, beside its model.

Where exactness is lost, the error names the step that lost it. Code of its own for every module comes last: only with
the last step it is looked at too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxcat.errors import CaptureError
from fxcat.network.gates import type_of_gates
from fxcat.passes.codegen.install import NO_BLOCKS, install
from fxcat.passes.gating.insert import insert_gates
from fxcat.passes.graph.copy_model import copy_data, copy_model
from fxcat.passes.graph.invocations import Invocations
from fxcat.passes.pipeline import Step
from fxcat.passes.preparing import with_own_tensors
from fxcat.passes.rewriting.gates import add_gates
from fxcat.passes.verification import Runner, call_of, compare, undisturbed
from fxcat.passes.work import Source, Work


class EachStep:
    """Compares the network with its model between the steps. Raises `CaptureError` where they differ."""

    def __init__(self, source: Source) -> None:
        self._model, self._call = source.model, call_of(source.model, source.example_inputs)

    def __call__(self, step: Step[Any], work: Work) -> None:
        if not step.rewrites:
            return
        self._compare(work, step.name, NO_BLOCKS)
        if work.gatings is not None:
            self._compare(work, "code", work.captured.blocks)

    def _compare(self, work: Work, step: str, blocks: tuple[Invocations, Invocations]) -> None:
        said = f"after the step {step!r}"
        with undisturbed():
            try:
                found = self._runnable(work, blocks)
            except Exception as error:
                what = f"{said} there is no network: {type(error).__name__}: {error}"
                raise CaptureError(what, where=work.name) from error
            compare(found, Runner(self._model), self._call, work.name, said)

    def _runnable(self, work: Work, blocks: tuple[Invocations, Invocations]) -> Runner:
        """What has been found by now as a network, with all gates open if it has any."""
        network, copied = copy_model(work.network)
        copy_data(copied)
        work, graph, gates = with_own_tensors(replace(work, network=network)), work.graph, None
        if work.gatings is not None:
            graph = insert_gates(graph, work.gatings.of_node, type_of_gates(network))
            add_gates(network, work.gatings)
            gates = torch.ones(work.units.count + len(work.sections))
        install(network, graph, work.captured.regions, blocks, for_good=True)
        return Runner(_to(network, self._model), gates)


def _to(network: nn.Module, model: nn.Module) -> nn.Module:
    """On the device of the model, in its mode."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return network.to(device).train(model.training)
