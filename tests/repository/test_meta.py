"""What nodes say is in one file: it alone touches `node.meta`, and its keys name the files that set them."""

from __future__ import annotations

import ast
import re

from source_files import modules

from fxcat.passes.graph import meta
from fxcat.passes.graph.meta import MetaKey

KEYS = {name: key for name, key in vars(meta).items() if isinstance(key, MetaKey)}
FILE = "fxcat.passes.graph.meta"


def test_one_file_touches_the_meta_of_nodes() -> None:
    found = [
        f"{path}:{node.lineno}"
        for name, path in modules().items()
        if name != FILE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "meta"
    ]
    assert not found, f"a key of {FILE} does that: {found}"


def test_keys_name_the_files_that_set_them() -> None:
    written: dict[str, set[str]] = {name: set() for name in KEYS}
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        for key in re.findall(r"\b([A-Z_]+)\.set\(", text):
            written.get(key, set()).add(name.removeprefix("fxcat.passes."))
    for name, key in KEYS.items():
        unnamed = {f for f in written[name] if f not in key.writers and f.split(".")[0] not in key.writers}
        assert not unnamed, f"{name} is set in {unnamed}"
        idle = [w for w in key.writers if not any(f == w or f.startswith(f"{w}.") for f in written[name])]
        assert not idle, f"{name} is not set in {idle}"


def test_every_key_has_a_name_of_its_own() -> None:
    assert len({key._name for key in KEYS.values()}) == len(KEYS)
