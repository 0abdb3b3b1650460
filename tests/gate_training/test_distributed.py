"""Two processes (gloo, CPU) train as one on the joined batch."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import in_own_process
from forked import all_end_well, free_port

WORKER = Path(__file__).parents[1] / "distributed_worker.py"


def torchrun(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(WORKER), str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def started(folder: Path, processes: int, what: str) -> str:
    """Start what `torchrun` starts, as forks of a process that has imported everything, which takes most of the time.
    Returns what the processes said on the way to an error; empty if they have ended well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxcat", "distributed_worker"])
    port = free_port()
    given = [(str(folder), what, rank, processes, port) for rank in range(processes)]
    made = [context.Process(target=in_own_process, args=each) for each in given]
    for process in made:
        process.start()
    if all_end_well(made):
        return ""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("errors-*"))) or "no error"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    for processes in (1, 2):
        assert not started(tmp_path, processes, "trains")
    one, first, second = (load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert one["shrinks"] >= 2
    for other in (first, second):
        assert other["shrinks"] == one["shrinks"]
        assert torch.equal(other["numbers"], one["numbers"])
        for name, weight in one["weights"].items():
            torch.testing.assert_close(other["weights"][name], weight, rtol=1e-6, atol=1e-8)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])


@pytest.mark.long
def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "dies")
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
        assert not started(folder, processes, what)
    one, first, second = (load(folder / f"{what}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    same(one, first)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    return one


@pytest.mark.long
def test_fit_does_in_two_processes_what_it_does_in_one_and_goes_on_in_another_number(tmp_path: Path) -> None:
    one = same_in_one_and_two(tmp_path, "fits")
    for before, after in ((2, 1), (1, 2)):
        folder = tmp_path / f"{before}-{after}"
        folder.mkdir()
        for processes, what in ((before, "ends"), (after, "resumes")):
            assert not started(folder, processes, what)
        same(one, load(folder / f"resumes-{after}-0.pt"))


@pytest.mark.long
def test_a_teacher_is_the_same_in_all_processes(tmp_path: Path) -> None:
    assert float(same_in_one_and_two(tmp_path, "taught")["figures"][-1]) > 0
    assert "differ between the processes" in started(tmp_path, 2, "untaught")


def test_data_that_is_not_split_is_refused(tmp_path: Path) -> None:
    assert "DistributedSampler" in started(tmp_path, 2, "unsplit")
