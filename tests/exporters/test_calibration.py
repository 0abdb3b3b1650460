"""From the times of ops to that of a network, in a runtime that takes known times: nothing here is measured."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import fxcat
from fxcat.exporters.timing import latency_table, measuring
from fxcat.exporters.timing.calibration import Calibration, calibrated, leave_one_out
from fxcat.exporters.timing.measuring import random_setting
from fxcat.exporters.timing.op_grid import Measured
from fxcat.exporters.timing.runs import Run
from fxcat.network.latency import Instance

PER = {"product": 1e-7, "value": 4e-6, "passing": 2e-6}
"""Milliseconds by itself: per MAC, and per entry of what is worked on, or passed on."""
KIND = {
    "convolution": "product",
    "addmm": "product",
    "bmm": "product",
    "native_layer_norm": "value",
    "_softmax": "value",
    "gelu": "value",
    "add": "passing",
    "transpose": "passing",
    "permute": "passing",
}
NODE, RUN = 0.0015, 0.03


class _Clock(TorchDispatchMode):
    """Milliseconds of what is computed, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = dict.fromkeys(PER, 0.0)
        self.nodes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].rstrip("_")
        kind = KIND.get(name, "")
        if kind:
            found = result[0] if isinstance(result, tuple) else result
            depth = math.prod(args[1].shape[1:]) if name == "convolution" else args[name == "addmm"].shape[-1]
            self.taken[kind] += PER[kind] * found.numel() * (depth if kind == "product" else 1)
            self.nodes += 1
        return result


def clocked(module: nn.Module, inputs: Sequence[torch.Tensor]) -> _Clock:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Clock() as clock:
        module.eval()(*inputs)
    return clock


class Runtime:
    """In a network, kinds of ops take other times than by themselves. `noise`: of networks, as parts of their time."""

    VERSIONS: ClassVar[dict[str, str]] = {}

    def __init__(self, factors: dict[str, float], noise: Sequence[float] = (0.0,)) -> None:
        self.factors, self._noise, self._count = factors, noise, 0

    def measure_ops(self, instances: Sequence[Instance], *, threads: int, repeats: int) -> list[Measured | None]:
        found: list[Measured | None] = []
        for module, inputs in instances:
            clock = clocked(module, inputs)
            found.append(Measured(sum(clock.taken.values()), 0.0, clock.nodes))
        return found

    def milliseconds(self, module: nn.Module, batch: int) -> float:
        clock = clocked(module, [torch.zeros(batch, 3, 16, 16)])
        return sum(self.factors[k] * ms for k, ms in clock.taken.items()) + NODE * clock.nodes + RUN

    def network_run(self, module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
        noise = self._noise[self._count % len(self._noise)]
        self._count += 1
        taken = self.milliseconds(module, batch) * (1 + noise)
        return lambda: taken


class Block(nn.Module):
    """Attention and two linear layers, with norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.linear2(nn.functional.gelu(self.linear1(self.norm2(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 4, stride=4)
        self.blocks = nn.Sequential(Block(64), Block(64))
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def measured(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, batch: int) -> fxcat.GatedModule:
    monkeypatch.setattr(latency_table, "timer", lambda name: runtime)
    monkeypatch.setattr(measuring, "milliseconds", lambda runs, repeats: [[run()] for run in runs])
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 16, 16), round_to=1, verbose=False)
    net.use_latency(fxcat.LatencyTable.measure(net, batch=batch))
    return net


def quotients(net: fxcat.GatedModule, runtime: Runtime, batch: int) -> list[float]:
    """Predicted ÷ measured shares of random structures that the table has not seen."""
    generator, dense = torch.Generator().manual_seed(7), runtime.milliseconds(net.finalized(whole(net)), batch)
    found: list[float] = []
    for i in range(6):
        setting = random_setting(net, 1, generator, closing=bool(i % 2), level=(i + 0.5) / 6)
        share = runtime.milliseconds(net.finalized(setting), batch) / dense
        found.append(float(net.latency_share(setting)) / share)
    return found


def whole(net: fxcat.GatedModule) -> torch.Tensor:
    return torch.ones_like(net.gate_vector.theta.detach())


@pytest.mark.parametrize("product, value, passing, batch", ((1.0, 1.0, 1.0, 8), (1.1, 0.6, 0.3, 1), (0.9, 1.2, 0.5, 8)))
def test_networks_are_predicted_whatever_a_runtime_does_along_with_other_ops(
    product: float, value: float, passing: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime({"product": product, "value": value, "passing": passing})
    net = measured(monkeypatch, runtime, batch)
    found = quotients(net, runtime, batch)
    assert all(abs(q - 1) < 0.03 for q in found), found


def test_errors_of_measured_networks_do_not_spoil_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime({"product": 1.05, "value": 0.8, "passing": 0.5}, (0.0, 0.04, -0.04, 0.03, -0.02, 0.04))
    net = measured(monkeypatch, runtime, 1)
    found = quotients(net, runtime, 1)
    assert all(abs(q - 1) < 0.04 for q in found), found


SUMS = [(10.0, 2.0, 1.0, 0.5, 60.0), (6.0, 1.6, 0.8, 0.4, 60.0), (3.0, 1.0, 0.6, 0.2, 50.0), (1.0, 0.5, 0.2, 0.1, 40.0)]


def test_a_calibration_is_found_again_and_never_negative() -> None:
    truth = Calibration(0.9, 0.7, 0.2, 0.3, 0.003, 0.05)
    times = [truth.milliseconds(s) for s in SUMS]
    found = calibrated(SUMS, times)
    assert [found.milliseconds(s) for s in SUMS] == pytest.approx(times, rel=0.01)
    assert len(leave_one_out(SUMS, times)) == 3
    assert min(calibrated(SUMS, [0.5 * s[0] for s in SUMS]).numbers) >= 0


def test_what_networks_do_not_tell_is_as_it_is_elsewhere() -> None:
    found = calibrated([(10.0, 0.0, 0.0, 0.0, 0.0)], [10.0])
    assert found.numbers == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.001, 0.02), abs=0.01)


def test_what_was_left_out_is_kept_with_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    runtime = Runtime({"product": 1.0, "value": 0.7, "passing": 0.5})
    monkeypatch.setattr(latency_table, "timer", lambda name: runtime)
    monkeypatch.setattr(measuring, "milliseconds", lambda runs, repeats: [[run()] for run in runs])
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 16, 16), round_to=1, verbose=False)
    table = fxcat.LatencyTable.measure(net, networks=5)
    assert len(table.held_out) == 4
    assert abs(statistics.median(table.held_out) - 1) < 0.02  # one that alone tells of a kind of op, no other predicts
    table.save(tmp_path / "table.json")
    assert fxcat.LatencyTable.load(tmp_path / "table.json") == table


def test_tables_of_other_versions_are_to_be_measured_again(tmp_path: Any) -> None:
    file = tmp_path / "table.json"
    file.write_text('{"format": "fxcat latency table 2", "ops": {}}')
    with pytest.raises(fxcat.StorageError, match=re.escape("'fxcat latency table 2', of another version: measure it")):
        fxcat.LatencyTable.load(file)
