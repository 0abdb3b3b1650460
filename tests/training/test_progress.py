"""What is seen of a run: whole lines where there is no screen, a bar on a terminal, a renewed line in a notebook."""

from __future__ import annotations

import io
import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from small_task import Net, loader

import fxcat
from fxcat.training import progress

LINE = r"epoch {} \(\w+\): loss [\d.]+, validation [\d.]+%, MACs [\d.]+%, parameters [\d.]+%, undecided \d+"

pytestmark = pytest.mark.usefixtures("one_thread")


def run(**options: Any) -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    fxcat.fit(net, loader(64), loader(32), epochs=2, target=fxcat.Target(flops=0.5), **options)


def test_a_log_gets_one_whole_line_an_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # of a terminal that is not there
    run()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(LINE.format(f"{number}/2"), line)


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=60, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "Console", lambda: terminal)
    run()
    shown = screen.getvalue()
    assert "━" in shown and "4/4" in shown
    assert re.search(LINE.format("2/2"), shown), "not cut or broken at the width of the terminal"


def test_a_notebook_renews_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown.append(data["text/plain"])

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw and display_id
        return Handle()

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]  # of a stand-in
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(progress, "Console", lambda: Console(force_jupyter=True))
    monkeypatch.setattr(progress, "RENEWED_EVERY", 0.0)
    run()
    assert [bool(re.match(r"epoch [12]/2 \d/4 loss", text)) for text in shown] == [True] * 4 + [False]
    assert shown[-1] == "", "nothing is left of it"
    assert len(capsys.readouterr().out.splitlines()) == 2
