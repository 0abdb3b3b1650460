"""Test set-up: one thread per process (the processes share few cores), no search for garbage in what is imported, the
exporter's table read once, and no state from one test to the next."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

# Ultralytics reads these when it is imported: no file in the home directory, no connection
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / "fxcat-tests"))
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
else:
    torch.set_num_threads(2)


def pytest_collection_finish() -> None:
    """What is imported stays: looking for garbage among its millions of objects takes a tenth of the tests' time."""
    _list_ops_of_the_exporter_once()
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 10, 10)  # networks and graphs are thousands of objects, which live as long as a test


def _list_ops_of_the_exporter_once() -> None:
    """Every `torch.onnx.export` parses the source of 500 functions to list them, reads their signatures, and looks up
    PyTorch's compound ops once for every library that has ops: half of the time that it takes."""
    if "onnx" not in sys.modules:
        return  # the tests that were collected export nothing
    exporter = "torch.onnx._internal.exporter"
    lazy: Any = import_module(f"{exporter}._registration").onnxscript_apis
    lazy.get_torchlib_ops = cache(lambda: type(lazy).__getattr__(lazy, "get_torchlib_ops")())
    schemas: Any = import_module(f"{exporter}._schemas")
    if hasattr(schemas, "op_signature_from_function"):
        schemas.op_signature_from_function = cache(schemas.op_signature_from_function)
    utils: Any = import_module("torch._export.utils")
    if hasattr(utils, "_materialize_cpp_cia_ops"):
        of_so_many = cache(lambda _: look_up())
        look_up, registered = utils._materialize_cpp_cia_ops, torch._C._dispatch_get_registrations_for_dispatch_key
        utils._materialize_cpp_cia_ops = lambda: of_so_many(len(registered("CompositeImplicitAutograd")))


@pytest.fixture(autouse=True)
def seeded() -> None:
    # what `torch.manual_seed` sets here; it also keeps a stack trace for every kind of device that is not in use
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny networks: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """This process, as the only one of a group of processes."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
