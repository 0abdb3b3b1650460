"""The gates of a network as parts of its modules: put in, taken out."""

from __future__ import annotations

from torch import nn

from fxcat.network.gates import SAMPLES, GateSamples
from fxcat.network.program import GatePart
from fxcat.passes.codegen.install import uninstall
from fxcat.passes.gating.insert import Gatings
from fxcat.passes.work import Analysis


def gate_parts(analysis: Analysis) -> tuple[GatePart, ...]:
    """Names and sizes of the gate vector's parts."""
    groups = [GatePart(g.name, "units", g.count) for g in analysis.units.groups]
    return (*groups, *(GatePart(s.name, "section", 1) for s in analysis.sections))


def add_gates(network: nn.Module, gatings: Gatings) -> None:
    """Modules take their gates, and there is a place for the values of all."""
    device = next((p.device for p in network.parameters()), None)
    samples = GateSamples(gatings.layout).to(device)
    network.add_module(SAMPLES, samples)
    for path, subclass in gatings.folded.items():
        network.get_submodule(path).__class__ = subclass


def remove_gates(network: nn.Module, gatings: Gatings) -> None:
    """The reverse of `add_gates`."""
    uninstall(network)
    del network._modules[SAMPLES]
    for path, subclass in gatings.folded.items():
        module = network.get_submodule(path)
        if type(module) is subclass:  # else another one was put in its place
            module.__class__ = subclass.__bases__[0]
