"""Which source files the checkout has, under the names that they are imported by."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(os.environ.get("FXCAT_SOURCE_ROOT", Path(__file__).resolve().parents[1]))


def modules() -> dict[str, Path]:
    """Dotted names of all source files."""
    found: dict[str, Path] = {}
    for top, prefix in (("fxcat", "fxcat"), ("passes", "fxcat.passes"), ("exporters", "fxcat.exporters")):
        for path in (ROOT / top).rglob("*.py"):
            inside = path.relative_to(ROOT / top)
            if any((ROOT / top / p).is_symlink() for p in inside.parents):
                continue
            parts = [p for p in inside.with_suffix("").parts if p != "__init__"]
            found[".".join([prefix, *parts])] = path
    return found
