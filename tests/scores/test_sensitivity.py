"""`sensitivity` reports what pruning does: the loss of the network that `one_shot` and `finalize` make."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from artificial_latency import with_latency
from rich.console import Console
from small_task import loader, trained_net

import fxcat
from fxcat.scores.sensitivity_result import print_sensitivity

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = torch.zeros(1, 3, 8, 8)
BATCHES: list[Any] = list(itertools.islice(loader(), 3))


@pytest.fixture(scope="module")
def net() -> fxcat.GatedModule:
    return fxcat.prepare(trained_net(epochs=2), EXAMPLE, verbose=False)


def loss_of(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return sum(F.cross_entropy(model(x), y).item() for x, y in BATCHES) / len(BATCHES)


@pytest.mark.parametrize("multiple_of", [None, 8])
def test_a_removal_is_what_one_shot_makes_of_that_part_alone(multiple_of: int | None) -> None:
    model = trained_net(epochs=2)
    whole = fxcat.prepare(model, EXAMPLE, verbose=False, limits={"*": fxcat.Limits(multiple_of=multiple_of)})
    scores = fxcat.importance.taylor(whole, BATCHES)
    found = fxcat.sensitivity(whole, BATCHES, scores=scores)
    checked = 0
    for part in found.parts:
        width = multiple_of if part.kind == "units" else None
        limits = {"*": fxcat.Limits(keep=True), part.name: fxcat.Limits(keep=False, multiple_of=width)}
        for removal in part.removals:
            net = fxcat.prepare(model, EXAMPLE, verbose=False, limits=limits)
            fxcat.one_shot(net, scores, target=fxcat.Target(flops=removal.macs + 1e-9))
            assert int((net.gate_vector.theta == 0).sum()) == removal.closed
            small = fxcat.finalize(net)
            assert loss_of(small.eval()) == pytest.approx(removal.loss, abs=1e-5)
            assert sum(p.numel() for p in small.parameters()) / net.start_cost.params == pytest.approx(removal.params)
            checked += 1
    # three shares of two groups, and the section; in eights 16 units leave 8, and 24 leave 16 or 8
    assert checked == (7 if multiple_of is None else 4)


def test_the_network_is_as_it_was(net: fxcat.GatedModule) -> None:
    net.train()
    net.network.get_submodule("block.1").eval()
    theta = net.gate_vector.theta.detach().clone()
    state = {n: t.clone() for n, t in net.network.state_dict().items()}
    modes = [m.training for m in net.modules()]
    steps: list[tuple[int, int]] = []
    found = fxcat.sensitivity(net, BATCHES, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 8) for i in range(1, 9)]
    assert modes == [m.training for m in net.modules()]
    assert torch.equal(net.gate_vector.theta, theta)
    assert all(torch.equal(t, state[n]) for n, t in net.network.state_dict().items())
    assert found.loss == pytest.approx(loss_of(fxcat.finalize(net).eval()), abs=1e-6)
    assert found.examples == 96 and found.accuracy is not None and found.accuracy > 0.5


def test_table_plot_and_file(net: fxcat.GatedModule, tmp_path: Path) -> None:
    found = fxcat.sensitivity(net, BATCHES, shares=(0.5, 0.25))
    assert found.shares == (0.25, 0.5)
    out = Console(record=True, width=100, file=None, quiet=False)
    with out.capture() as shown:
        print_sensitivity(found, out)
    rows = [line for line in shown.get().splitlines() if "block.section" in line]
    assert len(rows) == 1 and f"{found.rise(found.parts[-1].removals[0]):+.3f}" in rows[0]
    found.save(tmp_path / "s.json")
    assert fxcat.Sensitivity.load(tmp_path / "s.json") == found
    found.plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text(encoding="utf-8")
    assert text.count("<path") > 10


def test_what_cannot_go_is_listed_without_a_removal() -> None:
    net = fxcat.prepare(trained_net(epochs=1), EXAMPLE, verbose=False, limits={"*": fxcat.Limits(keep=True)})
    found = fxcat.sensitivity(net, BATCHES)
    assert [p.removals for p in found.parts] == [()] * 3


def test_a_latency_table_changes_nothing_about_the_loss(net: fxcat.GatedModule) -> None:
    timed = with_latency(fxcat.prepare(trained_net(epochs=2), EXAMPLE, verbose=False), step=1)
    found = fxcat.sensitivity(timed, BATCHES, shares=(0.5,))
    assert found == fxcat.sensitivity(net, BATCHES, shares=(0.5,))


def test_mistakes(net: fxcat.GatedModule, tmp_path: Path) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"batches": []}, "no batch"),
        ({"batches": BATCHES, "shares": (2.0,)}, "shares"),
        ({"batches": BATCHES, "scores": torch.ones(3)}, "do not fit"),
        ({"batches": torch.zeros(2)}, "not batches"),
    )
    for options, said in wrong:
        with pytest.raises(fxcat.InputError, match=said):
            fxcat.sensitivity(net, **options)
    with pytest.raises(fxcat.TrainingError, match="whole network is nan"):
        fxcat.sensitivity(
            net, BATCHES, lambda output, _: output.sum() * torch.nan, scores=torch.ones_like(net.gate_vector.theta)
        )
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(fxcat.StorageError, match="no sensitivity"):
        fxcat.Sensitivity.load(tmp_path / "x.json")
