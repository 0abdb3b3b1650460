"""What people look at: the history, TensorBoard logs, and plots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small_task import Net, loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fxcat
from fxcat.gated import GatedModule
from fxcat.training.history import EpochRecord

START = {"stem.0": 16, "block.0": 24, "block.section": 1}
HALF = fxcat.Target(flops=0.5)


def prepared() -> GatedModule:
    return fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)


def test_live_units_of_groups_that_have_no_gates_any_more() -> None:
    net = prepared()
    assert net.live_units() == START
    net.gates["block.0"].set(0.0)
    net.gates["block.0"].theta[5] = 1.0
    net.gates["stem.0"].theta[:4] = 0.0
    found = {"stem.0": 12, "block.0": 1, "block.section": 1}
    assert net.live_units() == found
    net.shrink()
    assert "block.0" not in net.gates, "a single unit is no gate"
    assert net.live_units() == found
    net.gates["stem.0"].theta[0] = 0.0
    net.gates["block.section"].set(0.0)
    gone = {"stem.0": 11, "block.0": 0, "block.section": 0}
    assert net.live_units() == gone, "what is left of the group lies in the section"
    net.shrink()
    assert net.live_units() == gone and list(net.gates) == ["stem.0"]


def test_units_in_a_closed_section_are_not_live() -> None:
    net = fxcat.prepare(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64), verbose=False)
    net.gates["layer2.0.section"].set(0.0)
    net.gates["layer3.1.conv1"].theta[10:] = 0.0
    found = net.live_units()
    assert found["layer2.0.conv1"] == found["layer2.0.section"] == 0
    assert found["layer3.1.conv1"] == 10 and found["layer2.0.conv2"] == 128
    net.shrink()
    assert net.live_units() == found
    widths = {n: p.shape[0] for n, p in fxcat.finalize(net).named_parameters()}
    for name in (g.name for g in net.start_structure.groups):
        layer = "layer2.0.downsample.0" if name == "layer2.0.conv2" else name  # the shortcut carries on
        assert widths.get(f"{layer}.weight", 0) == found[name]


def test_history_over_a_run(tmp_path: Path) -> None:
    net = prepared()
    history = fxcat.fit(net, loader(), loader(64), epochs=3, target=HALF, log_dir=tmp_path / "logs", progress=False)
    assert all(list(e.open_units) == list(START) for e in history.epochs)
    assert history.epochs[0].open_units != history.epochs[-1].open_units
    assert history.epochs[-1].open_units == net.live_units()
    history.save(tmp_path / "history.json")
    assert fxcat.History.load(tmp_path / "history.json") == history
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    written = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert set(written) == {
        *("loss/training", "loss/validation", "accuracy/training", "accuracy/validation", "cost/MACs"),
        *(
            "cost/parameters",
            "gates/undecided",
            "gates/open sections",
            "learning_rate",
            *(f"live_units/{name}" for name in START),
        ),
    }
    for epoch, record in enumerate(history.epochs):
        assert written["cost/MACs"][epoch] == (epoch + 1, pytest.approx(record.macs))
        assert written["live_units/stem.0"][epoch] == (epoch + 1, record.open_units["stem.0"])


def test_histories_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    for text in (None, "no JSON", "[]", '{"epochs": [{"epoch": 1}], "shrunk_at": null}'):
        if text is not None:
            path.write_text(text)
        with pytest.raises(fxcat.StorageError, match="no history"):
            fxcat.History.load(path)


def test_logs_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = prepared()
    (tmp_path / "file").touch()
    options: dict[str, Any] = {"epochs": 1, "target": HALF, "progress": False}
    with pytest.raises(fxcat.StorageError, match="TensorBoard"):
        fxcat.fit(net, loader(), **options, log_dir=tmp_path / "file" / "logs")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(fxcat.InputError, match=r"pip install .fxcat\[tensorboard\]"):
        fxcat.fit(net, loader(), **options, log_dir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
    assert net.live_units() == START and all(p.grad is None for p in net.parameters())


def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = EpochRecord(0, "plain", 0.1, 1.0, None, None, None, 0.5, 0.5, 0, {"stem.0": 3})
    fxcat.History([record], 0).plot(tmp_path / "history.png")
    net = prepared()
    net.gates["block.section"].set(0.0)
    for gates in ("units+layers", "units", "layers"):
        some = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), gates=gates, verbose=False)
        fxcat.plot_structure(some, tmp_path / f"{gates}.png")
    fxcat.plot_structure(net, tmp_path / "structure.svg")
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
    assert "gone with its section" in (tmp_path / "structure.svg").read_text()
    with pytest.raises(fxcat.StorageError):
        fxcat.plot_structure(net, tmp_path / "missing" / "structure.png")
    with pytest.raises(fxcat.InputError, match="xyz"):
        fxcat.plot_structure(net, tmp_path / "structure.xyz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fxcat.InputError, match="matplotlib"):
        fxcat.plot_structure(net, tmp_path / "structure.png")
    with pytest.raises(fxcat.InputError, match="matplotlib"):
        fxcat.History([record]).plot(tmp_path / "history.png")


def test_the_plot_shows_the_macs_that_are_left() -> None:
    from fxcat.structure_plot import section_macs

    net = fxcat.prepare(torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64), verbose=False)
    assert section_macs(net) == [s.macs for s in net.start_structure.sections]
    net.gates["layer2.0.section"].set(0.0)
    net.gates["layer3.1.conv1"].theta[64:] = 0.0
    found = section_macs(net)
    names = [s.name for s in net.start_structure.sections]
    assert found[names.index("layer2.0.section")] == 0
    whole = net.start_structure.sections[names.index("layer3.1.section")]
    assert found[names.index(whole.name)] == pytest.approx(whole.macs / 4)
    net.shrink()
    assert section_macs(net) == found
