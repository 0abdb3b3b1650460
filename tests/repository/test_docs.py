"""README.md and docs/: every Python block runs, in the order of its page, and prints what the page says it prints."""

from __future__ import annotations

import doctest
import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from source_files import ROOT
from torch.utils.data import DataLoader, TensorDataset

from fxcat.passes.rules import table

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FOR_MACHINES = [ROOT / "llms.txt", ROOT / "skills" / "fxcat" / "SKILL.md"]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *FOR_MACHINES, *PAGES]
FENCE = re.compile(r"^( *)```(python|text)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_OUTPUT = doctest.OutputChecker()

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # of other people's trainers, and of their exporters
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Skipping val loop"),
]


class Block(NamedTuple):
    """`line`: of its first line of code, from 0; `printed`: what the page says that it prints."""

    line: int
    code: str
    printed: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page; a text block behind one is what it prints, `...` stands for anything."""
    found: list[Block] = []
    previous = None
    for match in FENCE.finditer(text):
        code = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        if match[2] == "python":
            found.append(Block(text[: match.start(3)].count("\n"), code, None))
        elif found and previous == "python":
            found[-1] = found[-1]._replace(printed=code)
        previous = match[2]
    return found


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what is registered, and the modules of the pages, are gone afterwards."""
    for name in ("_MODULES", "_FUNCTIONS", "_METHODS", "_DECOMPOSITIONS"):
        monkeypatch.setattr(table, name, dict(getattr(table, name)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # of tables that are printed
    monkeypatch.setenv("FXCAT_DUMP", "")  # a page sets it
    yield tmp_path
    sys.modules.pop("page", None)
    logging.getLogger("fxcat.passes").setLevel(logging.NOTSET)


def run_page(found: list[Block], folder: Path, **given: Any) -> None:
    """Run the blocks as one module that lies in a file, where Python finds the source of its classes."""
    source = ""
    for block in found:
        source += "\n" * (block.line - source.count("\n")) + block.code
    module = ModuleType("page")
    module.__file__ = str(folder / "page.py")
    Path(module.__file__).write_text(source, encoding="utf-8")
    module.__dict__.update(given)
    sys.modules["page"] = module
    for block in found:
        with redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * block.line + block.code, module.__file__, "exec"), module.__dict__)
        if block.printed is not None:
            got = "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())
            if not _OUTPUT.check_output(block.printed, got, doctest.ELLIPSIS):
                example = doctest.Example(block.code, block.printed)
                pytest.fail(f"line {block.line}: {_OUTPUT.output_difference(example, got, doctest.ELLIPSIS)}", False)


LONG = ("deployment", "hugging_face", "iterative", "pretrained", "ultralytics")
"""Recipes that take the longest: of other people's tools, and with several trainings."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.long) if p.stem in LONG else p for p in PAGES],
    ids=lambda p: str(p.relative_to(DOCS)),
)
def test_a_page_runs_as_it_is_written(page: Path, alone: Path) -> None:
    run_page(blocks(page.read_text(encoding="utf-8")), alone)


def test_what_the_readme_shows_runs(alone: Path) -> None:
    """On few small images, for two epochs in the place of 90."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("epochs=90", "epochs=2")
    images = TensorDataset(torch.randn(16, 3, 64, 64), torch.arange(16) % 10)
    loader = DataLoader(images, 8, shuffle=True)
    given = {"train_loader": loader, "val_loader": loader, "loader": loader, "epochs": 2}
    found = blocks(text)
    assert found
    run_page(found, alone, **given, criterion=torch.nn.CrossEntropyLoss())


@pytest.mark.parametrize("path", FOR_MACHINES, ids=lambda p: p.name)
def test_what_is_written_for_machines_runs(path: Path, alone: Path) -> None:
    found = blocks(path.read_text(encoding="utf-8"))
    assert found
    run_page(found, alone)


def test_llms_txt_has_its_form_and_names_every_recipe() -> None:
    """A title, a summary, then sections that are lists of links: https://llmstxt.org"""
    text = FOR_MACHINES[0].read_text(encoding="utf-8")
    assert re.match(r"# \S+\n\n> ", text)
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert re.fullmatch(r"[\w ]+\n\n(?:(?:- \[|  ).*\n+)+", section), section
    linked = set(re.findall(r"\]\(docs/([^)]*)\)", text))
    assert {f"recipes/{p.name}" for p in (DOCS / "recipes").glob("*.md")} <= linked


def test_the_skill_file_says_when_it_is_of_use() -> None:
    front = re.match(r"---\nname: ([a-z-]+)\ndescription: (.+)\n---\n", FOR_MACHINES[1].read_text(encoding="utf-8"))
    assert front and front[1] == FOR_MACHINES[1].parent.name and len(front[2]) <= 1024


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert 'pip install -e ".[examples]" && python examples/quickstart.py\npip install -e ".[dev]" && pytest\n' in text


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_files_and_headings_that_are_linked_exist(path: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", path.read_text(encoding="utf-8")):
        linked = path.parent / target if target else path
        assert linked.exists(), f"{path.name} links to {target}"
        if heading:
            titles = re.findall(r"^(?:#+|:::) (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [*titles, *map(_anchor, titles)], f"{path.name} links to {target}#{heading}"


def _anchor(title: str) -> str:
    """As Markdown's table of contents makes it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)).replace("\\", "/") for p in PAGES)


def test_the_whole_public_interface_is_in_the_reference() -> None:
    import fxcat
    from fxcat import rules
    from fxcat.scores import importance

    text = "".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    public = {f"fxcat.{n}" for n in fxcat.__all__ if n not in ("importance", "__version__")}
    public |= {f"fxcat.rules.{n}" for n in rules.__all__} | {f"fxcat.importance.{n}" for n in importance.__all__}
    assert not public - named
