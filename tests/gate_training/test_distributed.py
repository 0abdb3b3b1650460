"""Two processes (gloo, CPU) train as one on the joined batch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).parents[1] / "distributed_worker.py"


def torchrun(folder: Path, processes: int, what: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(WORKER), str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


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
    done = torchrun(tmp_path, 2, "dies")
    ended = time.time()
    assert done.returncode != 0
    assert "exitcode" in done.stderr
    (died,) = tmp_path.iterdir()  # and nothing that a run to the end writes
    assert ended - float(died.read_text()) < 60


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert torch.equal(other["numbers"], one["numbers"])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(other["figures"], one["figures"], rtol=1e-5, atol=1e-6)


def same_in_one_and_two(folder: Path, what: str) -> dict[str, Any]:
    """What a run in one process gave, after checking that two give the same, and both of these the same bits."""
    for processes in (1, 2):
        done = torchrun(folder, processes, what)
        assert done.returncode == 0, done.stderr
    one, first, second = (load(folder / f"{what}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    same(one, first)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    return one


def test_fit_does_in_two_processes_what_it_does_in_one_and_goes_on_in_another_number(tmp_path: Path) -> None:
    one = same_in_one_and_two(tmp_path, "fits")
    for before, after in ((2, 1), (1, 2)):
        folder = tmp_path / f"{before}-{after}"
        folder.mkdir()
        for processes, what in ((before, "ends"), (after, "resumes")):
            done = torchrun(folder, processes, what)
            assert done.returncode == 0, done.stderr
        same(one, load(folder / f"resumes-{after}-0.pt"))


def test_a_teacher_is_the_same_in_all_processes(tmp_path: Path) -> None:
    assert float(same_in_one_and_two(tmp_path, "taught")["figures"][-1]) > 0
    done = torchrun(tmp_path, 2, "untaught")
    assert done.returncode != 0
    assert "differ between the processes" in done.stderr


def test_data_that_is_not_split_is_refused(tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, "unsplit")
    assert done.returncode != 0
    assert "DistributedSampler" in done.stderr
