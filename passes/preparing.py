"""From a model to what a network with gates takes: capture, analyses, and where the gates go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from fxcat.errors import NothingToPruneError
from fxcat.passes.analyses import CALLS, CHAINS, COSTS, LABELS, MADE_VALUES, PINS, SECTIONS, TABLES, UNITS
from fxcat.passes.capture.capture import capture
from fxcat.passes.gating.gated_inputs import with_entries
from fxcat.passes.gating.insert import place_gates
from fxcat.passes.gating.orders import with_known_orders
from fxcat.passes.gating.sites import find_sites
from fxcat.passes.graph.buffers import add_buffer, add_buffers
from fxcat.passes.pipeline import Step
from fxcat.passes.work import Work


def _captured(work: Work) -> Work:
    source = work.source
    found = capture(source.model, source.example_inputs, in_regions=source.in_regions, python=work.options.python)
    return replace(work, captured=found)


def _with_entries(work: Work) -> Work:
    return replace(work, captured=with_entries(work.captured)) if work.options.inputs else work


def _with_known_orders(work: Work) -> Work:
    captured = with_known_orders(work.captured, work.source.model)
    return work if captured is work.captured else replace(work, captured=captured)


def with_own_tensors(work: Work) -> Work:
    """What the graph reads, and the model does not hold, is registered; what only the model's Python held goes."""
    network, captured = work.network, work.captured
    own = dict(network.named_buffers(remove_duplicate=False)) | dict(captured.constants)
    add_buffers(network, {n: order for n, order in captured.orders.items() if n not in own})
    _forget(network, captured.left)
    for name, constant in captured.constants.items():
        add_buffer(network, name, constant, persistent=False)
    return work


def _forget(network: nn.Module, names: Iterable[str]) -> None:
    """Take attributes out of which the graph leaves no value: those that are there are of another pass.

    Containers are emptied: other Python of the model (`train`) may ask for them."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        held = vars(network.get_submodule(path))
        kind = type(held.get(leaf))
        if kind in (dict, list, set):
            held[leaf] = kind()
        else:
            held.pop(leaf, None)


def _with_something_to_prune(work: Work) -> Work:
    if not work.units.groups and not work.sections:
        reasons = "; ".join(f"{p.where}: {p.reason}" for p in work.units.pinned[:5])
        raise NothingToPruneError(
            f"{work.name} has nothing to prune" + (f" ({reasons})" if reasons else ""),
            remedy="check gates= and ignore=; the first and last layers' outer widths can never be pruned",
        )
    return work


def _with_gates(work: Work) -> Work:
    sites = find_sites(work.flow, work.units, work.sections)
    return replace(work, gatings=place_gates(work.graph, work.flow, work.units, sites))


CAPTURE = Step("capture", _captured, needs=("source",), gives=("captured",), rewrites=True)
ENTRIES = Step("entries", _with_entries, needs=("captured",), rewrites=True)
ORDERS = Step("orders", _with_known_orders, needs=("captured", "source"), rewrites=True)
TENSORS = Step("tensors", with_own_tensors, needs=("captured",))
SUBSTANCE = Step("substance", _with_something_to_prune, needs=("units", "sections"))
GATES = Step("gates", _with_gates, needs=("flow", "units", "sections"), gives=("gatings",), rewrites=True)

PREPARING: tuple[Step[Work], ...] = (
    *(CAPTURE, ENTRIES, ORDERS, TENSORS),
    *(LABELS, TABLES, MADE_VALUES, CALLS, PINS, CHAINS, UNITS, SECTIONS, COSTS),
    *(SUBSTANCE, GATES),
)
"""From a model to what a network with gates takes."""

RENEWING: tuple[Step[Work], ...] = (LABELS, TABLES, CALLS, PINS, CHAINS, UNITS, SECTIONS, COSTS, GATES)
"""The same from a graph."""
