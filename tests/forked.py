"""Processes that train as one, as `torchrun` starts them, but as forks of one that has imported everything: importing
takes most of the time of a short run. Started as `forked.py <module> <function> <folder>`, it calls the function in
each of two."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


def in_two_processes(module: str, function: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let a function of a module in `tests/` work on a folder in two processes."""
    command = [sys.executable, __file__, module, function, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def free_port() -> int:
    """Where processes may meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def take_place(rank: int, processes: int, port: int) -> None:
    """Set the environment that `torchrun` gives to one of its processes, and one thread."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    place |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked"}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)


def all_end_well(processes: Sequence[BaseProcess], seconds: float = 600) -> bool:
    """Wait for them; where one fails, the others are ended."""
    running, until = list(processes), time.monotonic() + seconds
    while running and all(p.exitcode in (0, None) for p in processes):
        assert wait([p.sentinel for p in running], until - time.monotonic()), "they hang"
        running = [p for p in running if p.exitcode is None]
    for process in running:
        process.kill()
    for process in processes:
        process.join()
    return all(p.exitcode == 0 for p in processes)


def work(module: str, function: str, folder: str, rank: int, port: int) -> None:
    """What each of two processes does."""
    take_place(rank, 2, port)
    getattr(importlib.import_module(module), function)(Path(folder))


def main() -> None:
    module, function, folder = sys.argv[1:]
    importlib.import_module(module)
    context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    port = free_port()
    made = [context.Process(target=work, args=(module, function, folder, rank, port)) for rank in range(2)]
    for process in made:
        process.start()
    sys.exit(0 if all_end_well(made) else 1)


if __name__ == "__main__":
    main()
