"""What a 0/1 setting leaves of a network: a unit is live if its own gate is open and so is a section that needs it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from fxcat.network.cost_model import CostTerm, Holding, Integers

if TYPE_CHECKING:
    from fxcat.network.program import Structure


def live_gates(structure: Structure, setting: torch.Tensor) -> torch.Tensor:
    """Which gates are open and in no closed section; `setting` is 0/1 of shape (gates,), the result bool on the CPU."""
    opened = _opened(setting)
    units = len(opened) - len(structure.sections)
    live = np.zeros_like(opened)
    for term in _open_terms(structure, opened):
        live[[units + s for use in term.holding.uses if _open(use, units, opened) for s in use]] = True
        for axis in term.axes:
            for start, stop, _ in axis.runs.T:
                live[start:stop] = True
    return torch.from_numpy(live & opened)


def live_parameters(structure: Structure, setting: torch.Tensor) -> frozenset[str]:
    """Names of the parameters that a setting leaves."""
    return frozenset(t.owner for t in _open_terms(structure, _opened(setting)) if t.params)


def parameters_gated_by(structure: Structure, gates: Collection[int]) -> dict[int, frozenset[str]]:
    """For every given gate the names of the parameters that hold its unit, or lie in its section."""
    units = sum(g.units for g in structure.groups)
    found: dict[int, set[str]] = {g: set() for g in gates}
    for term in structure.terms if found else ():
        if term.params:
            runs = [(start, stop) for axis in term.axes for start, stop, _ in axis.runs.T]
            for gate, names in found.items():
                if gate - units in term.holding.holders or any(start <= gate < stop for start, stop in runs):
                    names.add(term.owner)
    return {gate: frozenset(names) for gate, names in found.items()}


def gates_inside(structure: Structure) -> torch.Tensor:
    """For every section the gates that guard nothing outside of it: section numbers and gate numbers, (2, pairs)."""
    units, sections = sum(g.units for g in structure.groups), len(structure.sections)
    nested: dict[int, set[int]] = {}
    held: dict[Holding, list[Integers]] = {}  # what lives with the same sections is counted at once
    for term in structure.terms:
        held.setdefault(term.holding, []).extend([axis.runs[:2] for axis in term.axes])
    runs = [np.concatenate([np.empty((2, 0), dtype=np.int32), *found], 1) for found in held.values()]
    # between two neighbouring bounds all units are in the same axes
    bounds = np.unique(np.concatenate([np.array([0, units], dtype=np.int32), *(r.reshape(-1) for r in runs)]))
    total = np.zeros(len(bounds), dtype=np.int32)
    within = np.zeros((sections, len(bounds)), dtype=np.int32)
    for holding, found in zip(held, runs, strict=True):
        for use in holding.uses:
            for section in use:
                nested[section] = nested.get(section, set(use)) & set(use)
        start, stop = np.searchsorted(bounds, found)
        ends = np.bincount(start, minlength=len(bounds)) - np.bincount(stop, minlength=len(bounds))
        total += ends
        within[list(holding.sections)] += ends
    total, within = total.cumsum()[:-1], within.cumsum(1)[:, :-1]
    pairs = [
        np.stack([np.full(stop - start, section), np.arange(start, stop)])
        for section, place in zip(*np.nonzero((within == total) & (total > 0)), strict=True)
        for start, stop in [bounds[place : place + 2]]
    ]
    pairs += [np.array([[outer], [units + s]]) for s, outers in nested.items() for outer in outers if outer != s]
    return torch.from_numpy(np.concatenate([np.empty((2, 0), dtype=np.int64), *pairs], 1).astype(np.int64))


def _opened(setting: torch.Tensor) -> npt.NDArray[np.bool_]:
    return (setting.detach().cpu() > 0.5).numpy()


def _open_terms(structure: Structure, opened: npt.NDArray[np.bool_]) -> Iterator[CostTerm]:
    units = len(opened) - len(structure.sections)
    for term in structure.terms:
        if any(_open(use, units, opened) for use in term.holding.uses):
            yield term


def _open(use: tuple[int, ...], units: int, opened: npt.NDArray[np.bool_]) -> bool:
    return all(opened[units + s] for s in use)
