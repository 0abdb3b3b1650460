"""Imports point one way: rooms stand in one strict order, and no files import each other in a circle.

Imports for type checkers and imports in functions count too.
"""

from __future__ import annotations

import re

import networkx as nx
from rooms import DRAWN, ORDER, drawing, imports, room
from source_files import ROOT


def test_no_files_import_each_other_in_a_circle() -> None:
    circles = [c for c in nx.strongly_connected_components(imports()) if len(c) > 1]
    assert not circles, circles


def test_rooms_stand_in_one_order() -> None:
    files = imports()
    place = {name: i for i, name in enumerate(ORDER)}
    assert {room(n) if n != "fxcat.passes.rules" else n for n in files} == place.keys()
    for name, imported in files.edges:
        one, other = (n if n == "fxcat.passes.rules" else room(n) for n in (name, imported))
        assert place[other] <= place[one], f"{name} imports {imported}"


def test_the_drawing_of_the_docs_is_that_of_the_tree() -> None:
    assert DRAWN.read_text(encoding="utf-8") == drawing(), "write it anew: python tests/rooms.py"


def test_test_files_stand_alone() -> None:
    """What they share lies in `tests/`: their folders are not on the path until one of their files is collected."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.findall(r"^\s*(?:from|import) test_\w+", path.read_text(encoding="utf-8"), re.MULTILINE), path
