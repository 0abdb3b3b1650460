"""What is told of milliseconds: by the history of a run, its plot, and the summary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from artificial_latency import with_latency
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxcat


def trained() -> tuple[fxcat.GatedModule, fxcat.History]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 16, 4))
    net = with_latency(fxcat.prepare(model, torch.zeros(1, 1, 8, 8), verbose=False))
    data = TensorDataset(torch.randn(64, 1, 8, 8), torch.randint(4, (64,)))
    loader = DataLoader(data, batch_size=8)
    return net, fxcat.fit(net, loader, epochs=3, target=fxcat.Target(latency=0.6), progress=False)


def test_a_run_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, history = trained()
    seen = [record.latency for record in history.epochs]
    assert seen[0] is not None
    assert seen[-1] is not None
    assert seen[-1] <= 0.6
    history.save(tmp_path / "history.json")
    assert fxcat.History.load(tmp_path / "history.json").epochs == history.epochs
    history.plot(tmp_path / "history.png")
    net.summary()
    assert f"now {seen[-1]:.1%}" in " ".join(capsys.readouterr().out.split())
