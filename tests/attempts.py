"""What processes of `benchmarks/zoo_processes.py` are given to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]


def ends(report: Report) -> None:
    report({"step": "begin"})
    report({"step": "done"})


def fails(report: Report) -> None:
    report({"step": "begin"})
    raise ValueError


def takes_long(report: Report) -> None:
    report({"step": "begin"})
    while True:
        pass


def takes_memory(report: Report) -> None:
    report({"step": "begin"})
    try:
        bytearray(3 << 30)
    except MemoryError:
        report({"step": "no memory"})
