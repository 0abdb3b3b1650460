"""Columns that the comparisons of trained networks have in common."""

from __future__ import annotations

import statistics
from typing import Any


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds of one method: means of what was learned, medians of what was timed."""
    timed = (
        {
            "latency ms": statistics.median(r["latency ms"] for r in rows),
            "÷ dense": f"{statistics.median(r['latency ÷ dense'] for r in rows):.2f}",
        }
        if all("latency ms" in r for r in rows)
        else {}
    )
    return {
        "seeds": len(rows),
        "accuracy %": f"{statistics.mean(r['accuracy %'] for r in rows):.2f}",
        "lowest %": f"{min(r['accuracy %'] for r in rows):.2f}",
        "MACs": round(statistics.mean(r["MACs"] for r in rows)),
        "parameters": round(statistics.mean(r["parameters"] for r in rows)),
        "sections left": f"{statistics.mean(r['sections'] for r in rows):.3g} of {rows[0]['of']}",
        **timed,
        "seconds": statistics.median(r["seconds"] for r in rows),
    }
