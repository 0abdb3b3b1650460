"""Measuring: what is asked of a machine, and what is made of its answers; not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from artificial_latency import table_for
from torch import nn

import fxcat
from fxcat.exporters.timing import onnx_runtime
from fxcat.exporters.timing.files import exported, write_ops
from fxcat.exporters.timing.op_grid import Measured, OpTable, rewarded_step, trial_of

REST = {"penalties": [], "rounding": [], "kind": "product"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.block = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.norm(self.stem(x)))
        return self.head(nn.functional.max_pool2d(x + self.block(x), 2).flatten(1))


def prepared() -> fxcat.GatedModule:
    return fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)


@pytest.mark.parametrize(
    "runtime", ("onnxruntime", "openvino", "torch", pytest.param("torch.compile", marks=pytest.mark.long))
)
def test_every_op_of_a_network_is_measured(runtime: str, tmp_path: Path) -> None:
    net = prepared()
    table = fxcat.LatencyTable.measure(net, runtime, batch=2, repeats=2, networks=2)  # type: ignore[arg-type]
    ops = net.timed_ops(2)
    assert table.ops.keys() == {op.key for op in ops}
    assert not table.unmeasured
    assert not table.as_they_are
    assert all(t.kernel[-1] > 0 and t.nodes[-1] > 0 for t in table.ops.values())
    assert table.label == f"{runtime}, cpu, 1 thread, batch 2"
    table.save(tmp_path / "table.json")
    assert fxcat.LatencyTable.load(tmp_path / "table.json") == table
    net.use_latency(table)
    assert net.expected_latency().item() > 0


@pytest.mark.parametrize(
    "op, shape", ((nn.AdaptiveAvgPool2d(1), (2, 8, 4, 4)), (nn.Hardswish(), (2, 8)), (nn.LayerNorm(8), (2, 3, 8)))
)
def test_ops_are_written_as_in_the_files_of_networks(op: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    write_ops([(op, (torch.empty(shape, device="meta"),))], tmp_path / "op.onnx")
    with exported(op.eval(), torch.zeros(shape), 2) as (path, _):
        kinds = [[n.op_type for n in onnx.load(str(p)).graph.node] for p in (path, tmp_path / "op.onnx")]
    assert kinds[0] == kinds[1]


class Two(nn.Module):
    """What is fused into a convolution, and what moves values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.hardswish(self.conv(x))


class Moved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def test_results_of_ops_are_values_within_the_graph_as_in_a_network() -> None:
    instances = [(m, (torch.empty(s, device="meta"),)) for m, s in ((Two(), (1, 8, 9, 9)), (Moved(), (1, 8, 9)))]
    fused, moved = onnx_runtime.measure_ops(instances, threads=1, repeats=1)
    assert fused is not None
    assert moved is not None
    assert (fused.nodes, moved.nodes) == (1, 1), "an activation that would be a result is not fused"


def test_times_ascend_with_the_widths_whatever_noise_says() -> None:
    op = next(op for op in prepared().timed_ops(1) if op.name == "block")
    trial = trial_of(op)
    assert trial is not None
    noise = torch.rand(len(trial.all), generator=torch.Generator().manual_seed(0)).tolist()
    table = trial.table([Measured(1 + x, 0.0, 1) for x in noise])
    assert table is not None
    grid = torch.tensor(table.kernel).reshape([len(w) for w in table.widths])
    assert all(bool((grid.diff(dim=d) >= 0).all()) for d in range(grid.dim()))


def test_how_far_a_kernel_rounds_up() -> None:
    op = next(op for op in prepared().timed_ops(1) if op.name == "block")
    trial = trial_of(op)
    assert trial is not None

    def found(block: int) -> tuple[float, ...]:
        shapes = [inputs[0].shape[1] for _, inputs in trial.all]
        table = trial.table([Measured(float(-(-width // block) * block), 0.0, 1) for width in shapes])
        assert table is not None
        return table.rounding[0]

    assert found(1) == (0, 0, 0, 0)
    assert found(4) == (1, 2, 0, 0)
    assert found(8) == (1, 2, 4, 0)


def test_the_step_is_the_smallest_that_is_not_penalised() -> None:
    def table(*penalties: float) -> OpTable:
        return OpTable(((64,),), (1.0,), (0.0,), (1,), (penalties,))

    assert rewarded_step([table(1.6, 1.5, 1.2, 1.0)]) == 8
    assert rewarded_step([table(1.6, 1.5, 1.0, 1.0), table(1.0, 1.0, 1.0, 1.0)]) == 4
    assert rewarded_step([table(1.02, 1.0, 0.98, 1.0)]) == 1
    assert rewarded_step([table(1.0, 1.0, 1.0, 1.5)]) == 16
    assert rewarded_step([table()]) == 1


@pytest.mark.parametrize(
    "change",
    (
        {"format": "another"},
        {"ops": {"x": {}}},
        {"step": 0},
        {"calibration": {"product": -1.0}},
        {"ops": {"x": {"widths": [[4]], "kernel": [1], "layout": [0], "nodes": [1]} | REST | {"kind": "another"}}},
        {"threads": "many"},
        {"runtime": "another"},
        {"held_out": [float("inf")]},
        {"ops": {"x": {"widths": [[4]], "kernel": [float("nan")], "layout": [0], "nodes": [1]} | REST}},
        {"ops": {"x": {"widths": [[8, 4]], "kernel": [1, 1], "layout": [0, 0], "nodes": [1, 1]} | REST}},
        {"ops": {"x": {"widths": [[4, 8]], "kernel": [1], "layout": [0], "nodes": [1]} | REST}},
    ),
)
def test_what_is_no_table_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table_for(prepared()).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(fxcat.StorageError, match="no latency table can be read"):
        fxcat.LatencyTable.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(fxcat.StorageError, match="no latency table"):
        fxcat.LatencyTable.load(tmp_path / "none.json")
    with pytest.raises(fxcat.StorageError, match="cannot be written"):
        table_for(prepared()).save(tmp_path / "none" / "table.json")
