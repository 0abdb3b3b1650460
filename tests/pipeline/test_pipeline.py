"""The compiler's steps: their contracts, what is between them, and which one is at fault."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxcat
from fxcat.passes import compile as compiler
from fxcat.passes.pipeline import Step, check_graph, run

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branch(nn.Module):
    """A block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x))


class Net(nn.Module):
    """Every step that may rewrite the graph has something to do."""

    order: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = Branch()
        self.head = nn.Linear(8, 4)
        self.register_buffer("order", torch.randperm(8, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))[:, self.order]
        x = x + self.second(x) * torch.arange(x.shape[1]).view(1, -1, 1, 1)
        return self.head(x.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
    """Another step of that name in the place of the one that there is."""
    steps = [replace(s, run=lambda w, s=s: change(s.run(w))) if s.name == name else s for s in compiler.PREPARING]
    assert [s.run for s in steps] != [s.run for s in compiler.PREPARING]
    monkeypatch.setattr(compiler, "PREPARING", tuple(steps))


def twisted(work: Any) -> Any:
    """A fault: another function in the graph."""
    node = next(n for n in work.graph.nodes if n.target in (torch.relu, torch.tanh))
    node.target = torch.tanh if node.target is torch.relu else torch.relu
    return replace(work)


REWRITING = [s.name for s in compiler.PREPARING if s.rewrites]


def test_no_step_loses_exactness() -> None:
    fxcat.prepare(net(), EXAMPLE, verify="each step", verbose=False)


@pytest.mark.parametrize("name", REWRITING)
def test_the_step_that_loses_exactness_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    replaced(monkeypatch, name, twisted)
    with pytest.raises(fxcat.CaptureError, match=f"after the step '{name}' it computes something else"):
        fxcat.prepare(net(), EXAMPLE, verify="each step", verbose=False)


def test_so_is_generated_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxcat.passes.codegen import install as installing

    folded = installing.fold

    def wrong(graphs: Any, blocks: Any, *rest: Any) -> Any:
        if blocks != installing.NO_BLOCKS:
            for graph in graphs[0]:
                twisted_graph(graph)
        return folded(graphs, blocks, *rest)

    def twisted_graph(graph: fx.Graph) -> None:
        node = next(n for n in graph.nodes if n.target is torch.tanh)
        node.target = torch.relu

    monkeypatch.setattr(installing, "fold", wrong)
    with pytest.raises(fxcat.CaptureError, match="after the step 'code' it computes something else"):
        fxcat.prepare(net(), EXAMPLE, verify="each step", verbose=False)


def test_a_step_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Any) -> Any:
        raise KeyError("x")

    replaced(monkeypatch, "sections", fail)
    with pytest.raises(fxcat.CaptureError, match=r"the step 'sections' failed: KeyError.*\n.*after capture, entries"):
        fxcat.prepare(net(), EXAMPLE, verbose=False)


def test_contracts_are_checked() -> None:
    state: Any = type("State", (), {"name": "Net", "graph": fx.Graph(), "flow": None})()
    with pytest.raises(fxcat.PlanError, match="'later' failed: AssertionError: later needs flow"):
        run([Step("later", lambda s: s, needs=("flow",))], state, fxcat.PlanError)
    with pytest.raises(fxcat.PlanError, match="'early' failed: AssertionError: early gives flow"):
        run([Step("early", lambda s: s, gives=("flow",))], state, fxcat.PlanError)


def test_graphs_are_whole_between_the_steps() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["value"] = torch.zeros(1)
    y = graph.call_method("relu", (x,))
    graph.output(y)
    with pytest.raises(AssertionError, match="has no example value"):
        check_graph(graph)
    y.meta["value"] = torch.zeros(1)
    check_graph(graph)
    y.target = "no_such_method"
    with pytest.raises(AssertionError, match="there is no method no_such_method"):
        check_graph(graph)


def test_every_step_is_written_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FXCAT_DUMP", str(tmp_path))
    with caplog.at_level(logging.DEBUG, logger="fxcat.passes"):
        made = fxcat.prepare(net(), EXAMPLE, verbose=False)
    made.gates["first"].theta[::2] = 0.0
    fxcat.finalize(made)
    made.shrink()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["001-prepare-Net", "002-finalize-Net", "003-shrink-Net"]
    names = [f"{i:02d}-{s.name.replace(chr(32), chr(45))}.txt" for i, s in enumerate(compiler.PREPARING, 1)]
    assert sorted(f.name for f in (tmp_path / "001-prepare-Net").iterdir()) == names
    last = (tmp_path / "001-prepare-Net" / names[-1]).read_text()
    assert re.search(r"second_conv = self\.second\.conv\(\w+\) +# \(2, 8, 8, 8\); axis 1: 8 units of", last)
    assert "# groups of units" in last and "# costs" in last and "takes norm_weight (8,)" in last
    assert all(any(f"Net: {s.name}, " in m for m in caplog.messages) for s in compiler.PREPARING)


def test_one_call_has_a_folder_of_its_own(tmp_path: Path) -> None:
    fxcat.prepare(net(), EXAMPLE, dump=tmp_path / "steps", verbose=False)
    assert [f.name for f in (tmp_path / "steps").iterdir()] == ["001-prepare-Net"]
    (tmp_path / "file").write_text("")
    with pytest.raises(fxcat.StorageError, match="steps cannot be written"):
        fxcat.prepare(net(), EXAMPLE, dump=tmp_path / "file", verbose=False)
