"""A report as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from fxcat.report.charts import Line, chart, spark
from fxcat.report.facts import Facts
from fxcat.training.history import History


def page(report: Facts) -> str:
    """HTML. All texts in it are escaped."""
    environment = Environment(
        loader=PackageLoader("fxcat.report", ""),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: Any = environment.filters
    filters |= {"count": _count, "share": _share, "rise": lambda v: f"{v:+.3f}"}
    return environment.get_template("page.html").render(
        report=report,
        cards=_cards(report),
        charts=_charts(report.history),
        sparks=_sparks(report),
        most_macs=max((layer.macs for layer in report.layers), default=1) or 1,
        largest_rise=_largest_rise(report),
    )


def _count(number: int) -> str:
    """A number of MACs or parameters, as people say it."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:,.0f}{unit}"
    return str(number)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _cards(report: Facts) -> list[tuple[str, str, str]]:
    """The most important figures: what, how much, and beside what."""
    start, left = report.start, report.left
    cards = [
        ("MACs left", _share(left.macs, start.macs), f"{_count(left.macs)} of {_count(start.macs)}"),
        ("parameters left", _share(left.params, start.params), f"{_count(left.params)} of {_count(start.params)}"),
    ]
    if report.sections:
        opened = sum(s.is_open for s in report.sections)
        cards.append(("sections left", str(opened), f"of {len(report.sections)}"))
    last = report.history.epochs[-1] if report.history and report.history.epochs else None
    if last is not None and last.val_accuracy is not None:
        cards.append(("validation accuracy", f"{last.val_accuracy:.1%}", f"after {last.epoch + 1} epochs"))
    elif last is not None:
        cards.append(("loss", f"{last.loss:.3f}", f"after {last.epoch + 1} epochs"))
    return cards


def _charts(history: History | None) -> list[Markup]:
    if history is None or not history.epochs:
        return []
    epochs, mark = history.epochs, history.shrunk_at
    first = epochs[0]
    found: list[Markup] = []
    if first.train_accuracy is not None:
        lines = [Line("training", [e.train_accuracy for e in epochs])]
        lines += [Line("validation", [e.val_accuracy for e in epochs])] if first.val_accuracy is not None else []
        found.append(chart("accuracy", lines, percent=True, mark=mark))
    losses = [Line("training", [e.train_loss for e in epochs])]
    losses += [Line("validation", [e.val_loss for e in epochs])] if first.val_loss is not None else []
    costs = [Line("MACs", [e.macs for e in epochs]), Line("parameters", [e.params for e in epochs])]
    found.append(chart("loss", losses, percent=False, mark=mark))
    found.append(chart("share of the start network", costs, percent=True, mark=mark))
    return found


def _sparks(report: Facts) -> dict[str, Markup]:
    """For every group and section how much of it there was, epoch by epoch."""
    if report.history is None:
        return {}
    epochs = report.history.epochs
    sizes: Iterable[tuple[str, int]] = [
        *((g.name, g.units) for g in report.groups),
        *((s.name, 1) for s in report.sections),
    ]
    return {
        name: spark([e.open_units[name] for e in epochs], size)
        for name, size in sizes
        if all(name in e.open_units for e in epochs)
    }


def _largest_rise(report: Facts) -> float:
    """Of the loss, over all removals: the length of the longest bar."""
    found: Any = report.sensitivity
    rises = [] if found is None else [found.rise(r) for p in found.parts for r in p.removals]
    return max([*rises, 1e-9])
