"""Two processes (gloo, CPU) train as one on the joined batch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).with_name("distributed_worker.py")


def torchrun(folder: Path, processes: int, what: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(WORKER), str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    for processes in (1, 2):
        done = torchrun(tmp_path, processes, "trains")
        assert done.returncode == 0, done.stderr
    one, first, second = (load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert one["shrinks"] >= 2
    for other in (first, second):
        assert other["shrinks"] == one["shrinks"]
        assert torch.equal(other["numbers"], one["numbers"])
        for name, weight in one["weights"].items():
            torch.testing.assert_close(other["weights"][name], weight, rtol=1e-6, atol=1e-8)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    done = torchrun(tmp_path, 2, "dies")
    assert done.returncode != 0
    assert time.monotonic() - start < 60 + 60  # a minute after it died; starting takes its time too
    assert "exitcode" in done.stderr
    assert not list(tmp_path.iterdir())
