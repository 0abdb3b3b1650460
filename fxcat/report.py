"""Texts for people: the lines that `prepare` prints, and the tables of `summary()`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fxcat.errors import TargetError
from fxcat.gated import GatedModule
from fxcat.records import Target
from fxcat.selection import check_reachable, smallest_cost


def prepared(net: GatedModule) -> str:
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


def print_summary(net: GatedModule, target: Target | None = None, console: Console | None = None) -> None:
    """Tables of groups, sections and what is pinned; the smallest reachable cost; whether a target can be met."""
    out = console if console is not None else Console()
    structure, start = net.structure, net.start_cost
    table = Table(title="groups: what their units cost together")
    for name in ("group", "units", "MACs", "share", "parameters", "share"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for group in structure.groups:
        table.add_row(group.name, str(group.units), *_amounts(group.macs, group.params, start.macs, start.params))
    out.print(table)
    if structure.sections:
        table = Table(title="sections: what they cost")
        for name in ("section", "MACs", "share", "parameters", "share"):
            table.add_column(name, justify="left" if name == "section" else "right")
        for section in structure.sections:
            table.add_row(section.name, *_amounts(section.macs, section.params, start.macs, start.params))
        out.print(table)
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
    out.print(f"{structure.coverage:.1%} of the MACs lie in prunable groups or sections")
    if target is not None:
        try:
            check_reachable(net, target)
            out.print(f"{target} can be met")
        except TargetError as error:
            out.print(f"[bold]{error}[/bold]")


def _amounts(macs: int, params: int, all_macs: int, all_params: int) -> tuple[str, str, str, str]:
    return f"{macs:,}", f"{macs / max(1, all_macs):.1%}", f"{params:,}", f"{params / max(1, all_params):.1%}"
