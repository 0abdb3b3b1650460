"""An mkdocs hook: a copy of the package as it is installed, for the API reference.

The folders of the checkout are one package by `[tool.setuptools.package-dir]` alone, which static tools do not follow.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import tomllib
from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
_STAGE = tempfile.TemporaryDirectory(prefix="fxcat-docs-")


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> Any:
    """Copy the modules to where they are installed, and have docstrings read there."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for package in setuptools["packages"]:
        target = Path(_STAGE.name, *package.split("."))
        target.mkdir(parents=True, exist_ok=True)
        for module in (ROOT / setuptools["package-dir"][package]).glob("*.py"):
            shutil.copy(module, target)
    config.plugins["mkdocstrings"].config.handlers.setdefault("python", {})["paths"] = [_STAGE.name]
    return config
