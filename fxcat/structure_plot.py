"""A picture of the discovered structure against the start network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fxcat.checks import check_path
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.network.cost_model import CostModel
from fxcat.utils.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT, DARK, GONE = "#cfd8e3", "#1f5a94", "#b3261e"
ROW = 0.22
"""Height of a bar's row, in inches."""


def plot_structure(net: GatedModule, path: str | os.PathLike[str]) -> None:
    """Plot what `finalize(net)` would leave of the start network into an image file: a bar per group and per section.

    Light: the units of a group at the start, or the MACs of a section as a share of the start network's; dark: what is
    left of them after training, after `one_shot`, or with gates set by hand.

    Raises `InputError` without matplotlib or for an unknown suffix, `StorageError` if the path cannot be written.
    """
    check_gated(net, "plot_structure()")
    check_path(path)
    start, live, cost = net.start_structure, net.live_units(), net.hard_cost()
    heights = [len(part) for part in (start.groups, start.sections) if part]
    figure = new_figure(9, 1.1 + sum(0.6 + ROW * rows for rows in heights))
    figure.suptitle(
        f"{cost.macs / max(1, net.start_cost.macs):.1%} of the MACs, "
        f"{cost.params / max(1, net.start_cost.params):.1%} of the parameters",
        fontsize=11,
    )
    panels = iter(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).flat)
    bars: list[Any] = []
    if start.groups:
        axes: Axes = next(panels)
        left = [live[g.name] for g in start.groups]
        bars = _bars(axes, [g.name for g in start.groups], [g.units for g in start.groups], left)
        for row, (group, units) in enumerate(zip(start.groups, left, strict=True)):
            text = f"{units} of {group.units}" if units else f"0 of {group.units}: gone with its section"
            _note(axes, row, group.units, text, gone=not units)
        axes.set_xlabel("units of each group", fontsize=9)
    if start.sections:
        axes = next(panels)
        percent = 100 / max(1, net.start_cost.macs)
        before, after = [s.macs * percent for s in start.sections], [m * percent for m in section_macs(net)]
        bars = _bars(axes, [s.name for s in start.sections], before, after)
        for row, section in enumerate(start.sections):
            text = f"{after[row]:.1f} of {before[row]:.1f} %" if live[section.name] else "removed"
            text += _appraised(net, row)
            _note(axes, row, before[row], text, gone=not live[section.name])
        axes.set_xlabel("MACs of each section, in % of the start network's", fontsize=9)
    figure.legend(handles=bars, loc="outside upper right", fontsize=8, frameon=False, ncols=2)
    save_figure(figure, path)


def _appraised(net: GatedModule, section: int) -> str:
    """What a section was found to be worth, as a multiple of its price."""
    appraisal = net.appraisal
    number = len(appraisal.worth) - len(net.start_structure.sections) + section
    worth, price = float(appraisal.worth[number]), float(appraisal.price[number])
    return f"; worth {max(0.0, worth) / price:.1f} × its price" if price > 0 else ""


def section_macs(net: GatedModule) -> list[float]:
    """MACs that are left in every section of the start network."""
    start, live = net.start_structure, net.live_gates().double()
    units = sum(g.units for g in start.groups)
    combinations = CostModel(start.terms).per_term(live[:units], live[units:]).tolist()
    macs = [0.0] * len(start.sections)
    for term, count in zip(start.terms, combinations, strict=True):
        for section in term.holding.sections:
            macs[section] += term.macs * count
    return macs


def _bars(axes: Axes, names: list[str], start: list[int] | list[float], left: list[int] | list[float]) -> list[Any]:
    rows = range(len(names))
    light = axes.barh(rows, start, color=LIGHT, height=0.75, label="at the start")
    dark = axes.barh(rows, left, color=DARK, height=0.75, label="left")
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    axes.set_xlim(0, 1.25 * max(start))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    return [light, dark]


def _note(axes: Axes, row: int, end: float, text: str, *, gone: bool) -> None:
    axes.annotate(
        text, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=7, color=GONE if gone else "black"
    )
