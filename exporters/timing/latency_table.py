"""`LatencyTable`: what the ops of a network take on the machine that will run it, at any widths; kept as JSON.

In: a network with gates. Out: per distinct op a grid of measured widths, and what whole networks take beyond the sum.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from fxcat.checks import check_choice, check_integer
from fxcat.errors import ExportError
from fxcat.exporters.timing.calibration import Calibration, Sums, calibrated, leave_one_out
from fxcat.exporters.timing.measuring import measured_networks, measured_ops
from fxcat.exporters.timing.op_grid import OpTable, Trial, rewarded_step, trial_of
from fxcat.exporters.timing.runtimes import EXTRAS, RUNTIMES, Runtime, timer
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.network.latency import KINDS, OFFSETS, LatencyModel, OpTimes, TimedOp
from fxcat.utils.json_file import read_json, write_json
from fxcat.version import __version__

_TITLE = "fxcat latency table"
_FORMAT = f"{_TITLE} 3"


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Milliseconds of a network's ops over their widths, in one runtime on one machine.

    `machine`, `versions`: where, and with what, it was measured. `step`: of how many channels widths should be a
    multiple there. `ops`: by what they are. `as_they_are`: ops that could not be had at other widths, and count the
    same at any; `unmeasured`: those that could not be measured, which count as nothing. `held_out`: of the small
    networks that were measured the predicted share of the dense network's time ÷ the measured, each while the others
    calibrate.
    """

    runtime: Runtime
    device: str
    threads: int
    batch: int
    step: int
    calibration: Calibration
    ops: Mapping[str, OpTable]
    as_they_are: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    held_out: tuple[float, ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict[str, str])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def measure(
        cls,
        net: GatedModule,
        runtime: Runtime = "onnxruntime",
        *,
        batch: int = 1,
        threads: int = 1,
        device: str = "cpu",
        repeats: int = 15,
        networks: int = 8,
        seed: int = 0,
    ) -> LatencyTable:
        """Measure every distinct op of a network that was just prepared, on this machine, which should do nothing else
        meanwhile; a minute or so.

        `runtime`: what will serve: ONNX Runtime, OpenVINO, or PyTorch, as it is ("torch") or compiled
        ("torch.compile", which compiles the whole networks: minutes). `device`: "cpu" so far.
        `threads`: that it may use. `batch`: examples in one run. `repeats`: runs of every op. `networks`: how many
        whole networks, the dense one and random smaller ones (`seed`), calibrate the sum of the ops. The network is not
        changed.

        Raises `InputError` (arguments, a network that has become smaller) and `ExportError` (a package is missing,
        nothing could be measured).
        """
        check_gated(net, "LatencyTable.measure()")
        check_choice(runtime, "runtime", choices=RUNTIMES)
        check_choice(device, "device", choices=("cpu",))
        for name, value in {"batch": batch, "threads": threads, "repeats": repeats, "networks": networks}.items():
            check_integer(value, name, least=1)
        try:
            by = timer(runtime)
        except ModuleNotFoundError as error:
            remedy = f'pip install "fxcat[{EXTRAS[runtime]}]"'
            raise ExportError(f"measuring needs the package {error.name}", remedy=remedy) from error
        ops = net.timed_ops(batch)
        distinct = {op.key: op for op in ops}
        trials = {key: trial_of(op) for key, op in distinct.items()}
        measured = measured_ops([t for t in trials.values() if t is not None], by, threads, repeats)
        tables = {key: table for key, table in measured.items() if table is not None}
        if not tables:
            raise ExportError("none of the network's ops could be measured", remedy="see whether export_onnx works")
        step = rewarded_step(tables.values())
        table = cls(
            *(runtime, device, threads, batch, step, Calibration(), tables),
            as_they_are=tuple(k for k, t in trials.items() if k in tables and _is_constant(distinct[k], t)),
            unmeasured=tuple(k for k in distinct if k not in tables),
            machine=_machine(),
            versions={"fxcat": __version__, "torch": torch.__version__, **by.VERSIONS},
        )
        found = measured_networks(net, table, by, count=networks, repeats=repeats, seed=seed)
        sums, times = [table.sums(ops, s) for s, _ in found], [ms for _, ms in found]
        return replace(table, calibration=calibrated(sums, times), held_out=leave_one_out(sums, times))

    @property
    def label(self) -> str:
        """What was measured, in few words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime}, {self.device}, {threads}, batch {self.batch}"

    @property
    def per_run(self) -> float:
        """Milliseconds of a run beside its ops."""
        return self.calibration.run

    def times(self, key: str) -> OpTimes | None:
        """Milliseconds of an op over the grid of its widths, by what it is; None for one that is not in the table."""
        if key in self.unmeasured:
            return OpTimes((), (0.0,))
        op = self.ops.get(key)
        if op is None:
            return None
        c = self.calibration
        factor = c.factor(op.kind)
        parts = zip(op.kernel, op.layout, op.nodes, strict=True)
        return OpTimes(op.widths, tuple(factor * k + c.layout * o + c.node * n for k, o, n in parts), op.rounding)

    def with_calibration(self, calibration: Calibration) -> LatencyTable:
        """The same ops, and another sum of them."""
        return replace(self, calibration=calibration)

    def sums(self, ops: Sequence[TimedOp], setting: tuple[torch.Tensor, torch.Tensor]) -> Sums:
        """What a 0/1 setting (units, sections) sums up to."""
        counts = len(setting[0]), len(setting[1])
        alone = (Calibration(*(float(i == k) for k in range(len(fields(Calibration))))) for i in range(len(KINDS) + 2))
        return tuple(float(LatencyModel(ops, self.with_calibration(part), counts)(*setting)) for part in alone)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON. Raises `StorageError` if the path cannot be written."""
        write_json(path, {"format": _FORMAT, "fxcat": __version__} | asdict(self), "latency table")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read what `save` wrote. Raises `StorageError` if the path cannot be read or holds something else."""
        return read_json(path, cls._parsed, "latency table", remedy="give a file that LatencyTable.save wrote")

    @classmethod
    def _parsed(cls, content: Any) -> LatencyTable:
        if content["format"] != _FORMAT:
            older = ", of another version: measure it again" if str(content["format"]).startswith(_TITLE) else ""
            raise ValueError(f"its format is {content['format']!r}{older}")
        ops = {str(key): _op(op) for key, op in content["ops"].items()}
        calibration = Calibration(**{k: _finite(v) for k, v in content["calibration"].items()})
        numbers = {name: int(content[name]) for name in ("threads", "batch", "step")}
        if min(numbers.values()) < 1 or min(calibration.numbers) < 0:
            raise ValueError("numbers are too small")
        texts = {name: tuple(str(t) for t in content[name]) for name in ("as_they_are", "unmeasured")}
        facts = {name: {str(k): str(v) for k, v in content[name].items()} for name in ("machine", "versions")}
        return cls(
            runtime=RUNTIMES[RUNTIMES.index(content["runtime"])],
            device=str(content["device"]),
            calibration=calibration,
            ops=ops,
            threads=numbers["threads"],
            batch=numbers["batch"],
            step=numbers["step"],
            as_they_are=texts["as_they_are"],
            unmeasured=texts["unmeasured"],
            held_out=tuple(_finite(x) for x in content["held_out"]),
            machine=facts["machine"],
            versions=facts["versions"],
        )


def _finite(value: Any) -> float:
    """A number from JSON, whose numbers may be NaN or infinite. Raises `ValueError` for these."""
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{number} is no time")
    return number


def _op(content: Any) -> OpTable:
    """An op from JSON. Raises `ValueError` if its numbers do not fit together."""
    widths = tuple(tuple(int(w) for w in axis) for axis in content["widths"])
    size = 1
    for axis in widths:
        size *= len(axis)
        if not axis or axis[0] < 1 or any(a >= b for a, b in itertools.pairwise(axis)):
            raise ValueError(f"widths {axis} do not ascend")
    kernel, layout = (tuple(_finite(x) for x in content[name]) for name in ("kernel", "layout"))
    nodes = tuple(int(n) for n in content["nodes"])
    if {len(kernel), len(layout), len(nodes)} != {size} or len(widths) > 2 or min((*kernel, *layout, *nodes)) < 0:
        raise ValueError("times do not fit their widths")
    penalties, rounding = (
        tuple(tuple(_finite(p) for p in axis) for axis in content[name]) for name in ("penalties", "rounding")
    )
    fits = len(rounding) in (0, len(widths)) and all(len(r) in (0, len(OFFSETS)) for r in rounding)
    if not fits or min(itertools.chain(*rounding), default=0.0) < 0:
        raise ValueError("what is rounded up does not fit the widths")
    if content["kind"] not in KINDS:
        raise ValueError(f"{content['kind']!r} is no kind of op")
    return OpTable(widths, kernel, layout, nodes, penalties, rounding, content["kind"])


def _is_constant(op: TimedOp, trial: Trial | None) -> bool:
    return trial is not None and bool(op.axes) and len(trial.instances) == 1 and op.widths != (1,)


def _machine() -> dict[str, str]:
    found = {"system": platform.system(), "machine": platform.machine()}
    return found | {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
