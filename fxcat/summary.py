"""Texts for people: the lines that `prepare` prints, and the tables of `summary()`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fxcat.choosing.alignment import BLOCK, beside_blocks
from fxcat.choosing.select import check_reachable, smallest_cost, smallest_setting
from fxcat.errors import TargetError
from fxcat.network.gated_network import GatedNetwork
from fxcat.network.limits import NONE
from fxcat.records import Target

AMOUNTS = ("MACs", "share", "parameters", "share")


def found_in_words(net: GatedNetwork) -> str:
    """What `prepare` found and what it left alone, and why; a few lines."""
    structure, cost = net.structure, net.start_cost
    units = sum(g.units for g in structure.groups)
    lines = [
        f"fxcat: {units:,} units in {len(structure.groups)} groups, {len(structure.sections)} sections; "
        f"{cost.macs:,} MACs, {cost.params:,} parameters; {structure.coverage:.1%} of the MACs can be pruned"
    ]
    lines += [f"  kept: {p.where}{f' ({p.count})' if p.count else ''}: {p.reason}" for p in structure.pinned[:8]]
    if len(structure.pinned) > 8:
        lines.append(f"  … and {len(structure.pinned) - 8} more: see .summary()")
    return "\n".join(lines)


def print_summary(net: GatedNetwork, target: Target | None = None, console: Console | None = None) -> None:
    """Tables of groups, sections and what is pinned; the smallest reachable cost; whether a target can be met."""
    out = console if console is not None else Console()
    structure, start = net.structure, net.start_cost
    changed = net.hard_cost() != start
    _print_groups(net, out, changed)
    _print_sections(net, out, changed)
    if net.limits:
        _print_limits(net, out)
    if structure.pinned:
        table = Table("where", "kept", "reason", title="pinned")
        for pinned in structure.pinned:
            table.add_row(pinned.where, str(pinned.count), pinned.reason)
        out.print(table)
    least = smallest_cost(net)
    out.print(f"start: {start.macs:,} MACs, {start.params:,} parameters (one example; FLOPs = 2 × MACs)")
    out.print(
        f"smallest reachable: {least.macs:,} MACs ({least.macs / max(1, start.macs):.1%}), "
        f"{least.params:,} parameters ({least.params / max(1, start.params):.1%})"
    )
    if net.latency is not None:
        now, smallest = (float(net.latency_share(s)) for s in (net.gate_vector.hard(), smallest_setting(net)))
        out.print(
            f"latency at the start: {net.latency.start:.3g} ms ({net.latency.label}); now {now:.1%}, "
            f"smallest reachable {smallest:.1%}"
        )
    out.print(f"{structure.coverage:.1%} of the MACs lie in prunable groups or sections")
    beside = beside_blocks(net, net.gate_vector.hard()) if changed and not net.limits.aligned else 0
    if beside:
        out.print(
            f"{beside} groups are left with channels that are no multiple of {BLOCK}, as inference libraries compute "
            f"them: with prepare(…, round_to={BLOCK}) the same MACs take less time"
        )
    if target is not None:
        try:
            check_reachable(net, target)
            out.print(f"{target} can be met")
        except TargetError as error:
            out.print(f"[bold]{error}[/bold]")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _print_groups(net: GatedNetwork, out: Console, changed: bool) -> None:
    start, live = net.start_cost, net.live_units()
    table = _table("groups: what their units cost together", "group", "units", *AMOUNTS, *["left"] * changed)
    for group in net.start_structure.groups:
        amounts = _amounts(group.macs, group.params, start.macs, start.params)
        table.add_row(group.name, str(group.units), *amounts, *[str(live[group.name])] * changed)
    out.print(table)


def _print_sections(net: GatedNetwork, out: Console, changed: bool) -> None:
    """With worth and price, both in units of the loss, where training has found them."""
    sections, appraisal = net.start_structure.sections, net.appraisal
    if not sections:
        return
    start, live = net.start_cost, net.live_units()
    appraised = ["worth", "price"] * (not appraisal.is_empty)
    table = _table("sections: what they cost", "section", *AMOUNTS, *["left"] * changed, *appraised)
    first = len(appraisal.worth) - len(sections)
    for number, section in enumerate(sections, first):
        row = [section.name, *_amounts(section.macs, section.params, start.macs, start.params)]
        row += [("no", "yes")[live[section.name]]] * changed
        row += [f"{float(part[number]):.2g}" for part in (appraisal.worth, appraisal.price)] if appraised else []
        table.add_row(*row)
    if appraised:
        table.caption = (
            "worth: the loss that closing costs; price: what the section's cost is worth elsewhere. "
            "It closes where it is worth less than its price."
        )
    out.print(table)


def _print_limits(net: GatedNetwork, out: Console) -> None:
    """Of every group, or in one row where all have the same."""
    table = _table("limits", "group or section", "at least", "multiple of")
    start = net.start_structure
    said = {
        group.name: (str(limits.least_of(group.units)), str(limits.multiple_of or 1))
        for group, limits in zip(start.groups, net.limits.groups, strict=True)
        if limits != NONE
    }
    if len(said) == len(start.groups) > 1 and len(set(said.values())) == 1:
        said = {f"all {len(said)} groups": next(iter(said.values()))}
    for name, row in said.items():
        table.add_row(name, *row)
    for section, limits in zip(start.sections, net.limits.sections, strict=True):
        if limits.keep:
            table.add_row(section.name, "kept", "")
    out.print(table)


def _amounts(macs: int, params: int, all_macs: int, all_params: int) -> tuple[str, str, str, str]:
    return f"{macs:,}", f"{macs / max(1, all_macs):.1%}", f"{params:,}", f"{params / max(1, all_params):.1%}"
