"""Networks are captured while other threads run, and while processes are forked."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from between import Between, X
from torch import nn

import fxcat


def test_prepare_in_several_threads() -> None:
    patched = (nn.Module.__call__, nn.Module.__getattr__, torch.zeros, torch.Tensor.view, torch.finfo)
    model, layer, errors, done = Between(nn.Tanh()), nn.Linear(2, 2), [], threading.Event()

    def prepare() -> None:
        for _ in range(3):
            try:
                fxcat.prepare(model, X, verbose=False)
            except Exception as error:
                errors.append(error)

    def run() -> None:
        while not done.is_set():
            try:
                assert type(layer(torch.ones(1, 2))) is torch.Tensor
            except BaseException as error:
                errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    threads = [threading.Thread(target=prepare) for _ in range(3)]
    other = threading.Thread(target=run)
    for thread in (*threads, other):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    other.join()
    sys.setswitchinterval(interval)
    assert not errors
    assert patched == (nn.Module.__call__, nn.Module.__getattr__, torch.zeros, torch.Tensor.view, torch.finfo)


class Slow(Between):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return super().forward(x)


def prepared_in_a_child() -> None:
    fxcat.prepare(Between(nn.Tanh()), X, verbose=False)


def forked_meanwhile() -> int:
    """The exit code of a process that is forked while another thread prepares a network."""
    thread = threading.Thread(target=lambda: fxcat.prepare(Slow(nn.Tanh()), X, verbose=False))
    thread.start()
    time.sleep(0.1)
    child = multiprocessing.get_context("fork").Process(target=prepared_in_a_child)
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    thread.join()
    return 1 if code is None else abs(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_a_process_that_is_forked_meanwhile() -> None:
    """Out of a process of its own: what other tests have started in this one (pools of threads) does not live on."""
    script = f"import sys; from {Path(__file__).stem} import forked_meanwhile; sys.exit(forked_meanwhile())"
    folder = Path(__file__).parent
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder.parent)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=folder, env=alone, check=True)
