"""The package is what the tree and the metadata say."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from source_files import ROOT, modules

import fxcat


def test_version_is_the_same_everywhere() -> None:
    assert fxcat.__version__ == importlib.metadata.version("fxcat")


def test_public_names_are_sorted_and_exist() -> None:
    names = [n for n in fxcat.__all__ if n != "__version__"]
    assert names == sorted(names)
    assert all(hasattr(fxcat, n) for n in names)


def test_every_folder_with_code_is_in_the_package_list() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = text.split("packages = [", 1)[1].split("]", 1)[0]
    for top, name in (("fxcat", "fxcat"), ("passes", "fxcat.passes"), ("exporters", "fxcat.exporters")):
        for folder in [ROOT / top, *(p for p in (ROOT / top).rglob("*") if p.is_dir() and not p.is_symlink())]:
            inside = folder.relative_to(ROOT / top)
            if list(folder.glob("*.py")) and not any((ROOT / top / p).is_symlink() for p in inside.parents):
                assert f'"{".".join([name, *inside.parts])}"' in listed


def test_every_module_is_shipped_and_imports() -> None:
    for name in modules():
        importlib.import_module(name)


def test_types_are_shipped() -> None:
    assert (Path(fxcat.__file__).parent / "py.typed").exists()


def test_bare_imports_are_refused() -> None:
    for name in ("passes", "exporters"):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"import fxcat.{name}" in done.stderr
