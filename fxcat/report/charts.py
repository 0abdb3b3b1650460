"""Small pictures as SVG, in the colours of the page that they are in; lines differ by their dashes, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 214
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 44, 34
"""Margins of a chart, for its texts."""
SPARK = (84, 20)
"""Width and height of a line without axes."""
TICKS = 4


@dataclass(frozen=True, slots=True)
class Line:
    """Values epoch by epoch; None where there is none."""

    name: str
    values: Sequence[float | None]


def chart(title: str, lines: Sequence[Line], *, percent: bool, mark: int | None = None) -> Markup:
    """Lines over the epochs, from zero upwards. `mark`: the number of the epoch in which the structure became final."""
    known = [v for line in lines for v in line.values if v is not None and math.isfinite(v)]
    count = max((len(line.values) for line in lines), default=0)
    if not known or not count:
        return Markup("")
    top = 1.0 if percent else _round_up(max(known))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(epoch: int) -> float:
        return LEFT + (right - LEFT) * (epoch / max(1, count - 1))

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * min(1.0, max(0.0, value / top))

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        text = f"{value:.0%}" if percent else f"{value:.3g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y(value) + 4:.1f}">{text}</text>')
    for epoch in sorted({round((count - 1) * i / 5) for i in range(6)}):
        parts.append(f'<text class="tick mid" x="{x(epoch):.1f}" y="{bottom + 16}">{epoch + 1}</text>')
    parts.append(f'<text class="tick mid" x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 3}">epoch</text>')
    if mark is not None and mark < count:
        parts.append(f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{bottom}"/>')
        anchor = "end" if x(mark) > WIDTH / 2 else "start"
        shift = -4 if anchor == "end" else 4
        parts.append(f'<text class="tick {anchor}" x="{x(mark) + shift:.1f}" y="{TOP - 8}">structure is final</text>')
    for number, line in enumerate(lines):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line.values) if v is not None)
        parts.append(f'<polyline class="line l{number}" points="{points}"/>')
        if count == 1 and line.values[0] is not None:
            parts.append(f'<circle class="dot" cx="{x(0)}" cy="{y(line.values[0]):.1f}" r="3"/>')
        at = LEFT + 120 * number
        parts.append(f'<line class="line l{number}" x1="{at}" x2="{at + 28}" y1="12" y2="12"/>')
        parts.append(f'<text class="tick start" x="{at + 34}" y="16">{escape(line.name)}</text>')
    return Markup("".join(parts) + "</svg>")


def spark(values: Sequence[int], most: int) -> Markup:
    """A line without axes: how many of at most `most` there were, epoch by epoch."""
    width, height = SPARK
    if len(values) < 2 or not most:
        return Markup("")
    points = " ".join(
        f"{1 + (width - 2) * i / (len(values) - 1):.1f},{height - 2 - (height - 4) * v / most:.1f}"
        for i, v in enumerate(values)
    )
    said = f"{values[0]} → {values[-1]}"
    return Markup(
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img"><title>{said}</title>'
        f'<line class="grid" x1="0" x2="{width}" y1="{height - 2}" y2="{height - 2}"/>'
        f'<polyline class="line l0" points="{points}"/></svg>'
    )


def _round_up(value: float) -> float:
    """To the next of 1, 2, 4, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 8, 10) if power * step >= value * (1 - 1e-9))
