"""A process of its own for every model, with limits of memory and of processor time.

Each is forked from a server that has imported everything and has no threads: importing takes longer than most models.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Attempt = Callable[[Callable[[Row], None]], None]

_CONTEXT = multiprocessing.get_context("forkserver")


def serve(modules: Sequence[str]) -> None:
    """Let the server import these before it is asked for the first process; one that is not there is left."""
    folder = str(Path(__file__).parent)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    _CONTEXT.set_forkserver_preload(list(modules))


def apart(attempt: Attempt, limit: int, memory: int) -> Row:
    """The last of what it reports, and why it ended if it did not come to an end."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_limited, args=(attempt, sender, limit, memory))
    process.start()
    sender.close()
    row: Row = {"step": "start"}
    try:
        while True:
            row = receiver.recv()
    except EOFError:
        process.join()
    if process.exitcode:
        stopped = f"more than {limit} s" if process.exitcode == -signal.SIGXCPU else f"exit code {process.exitcode}"
        return row | {"step": "stopped", "reason": f"in {row['step']}: {stopped}"}
    return row


def _limited(attempt: Attempt, sender: Connection, limit: int, memory: int) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silent, stream.fileno())
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (memory << 30, memory << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))
    attempt(sender.send)
