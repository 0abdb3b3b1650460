"""ONNX export: what fails says why, and leaves no trace."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_nets import EXAMPLE, FixedBatch, Halves, OnValues, OtherAlone, OtherTogether, Small
from torch import nn

import fxcat
from fxcat.errors import ExportError, InputError, StorageError
from fxcat.exporters import onnx_file, verify
from fxcat.exporters.onnx_export import export_onnx


def test_flags_are_untouched_after_a_failure(tmp_path: Path) -> None:
    net = OtherAlone()
    net.norm.eval()
    with pytest.raises(ExportError):
        export_onnx(net, tmp_path / "net.onnx", EXAMPLE)
    assert net.training and net.conv.training and not net.norm.training


@pytest.mark.parametrize(
    ("net", "message", "older"),
    [
        (OtherAlone, r"differs from the module.*\n  where: output output at batch 1", False),
        (OtherAlone, r"differs from the module.*\n  where: output output at batch 1", True),
        (OtherTogether, "Constraints violated", False),
        (FixedBatch, "cannot capture FixedBatch", True),
        (Halves, "Constraints violated", True),
        (OnValues, "cannot capture OnValues", False),
    ],
)
def test_failure_leaves_no_file(tmp_path: Path, net: type[Small], message: str, older: bool) -> None:
    path = tmp_path / "net.onnx"
    if older:
        path.write_bytes(b"older")
    with pytest.raises(ExportError, match=message):
        export_onnx(net(), path, EXAMPLE)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"older"] if older else [])


def test_an_op_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x @ x.mT)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Spectrum())
    with pytest.raises(ExportError, match=r"translate aten\._linalg_eigh.* in Sequential.*\n  where: 1, .*:\d+\n"):
        export_onnx(net, tmp_path / "net.onnx", EXAMPLE)
    assert not list(tmp_path.iterdir())


def test_a_number_that_has_to_be_fixed_is_told(tmp_path: Path) -> None:
    class Grouped(nn.Module):
        """Of a batch and its mirror image: two rows of as many groups as there are examples."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.stack([x, x.flip(3)]).flatten(1, 2)
            return nn.functional.conv2d(rows, x.mean(3, keepdim=True), groups=x.shape[0])[0].unsqueeze(1)

    with pytest.raises(ExportError, match=r"has to be fixed in ONNX(.*\n)*.*dynamic_batch=False"):
        export_onnx(Grouped(), tmp_path / "net.onnx", EXAMPLE)


def test_a_branch_on_the_batch_that_removal_keeps_is_named(tmp_path: Path) -> None:
    small = fxcat.finalize(fxcat.prepare(OtherTogether(), EXAMPLE, verbose=False))
    with pytest.raises(ExportError, match=r"Constraints violated .*<= 100"):
        export_onnx(small, tmp_path / "net.onnx", EXAMPLE)


def test_a_file_of_another_network_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(Small(), path, EXAMPLE, verify=False)
    with pytest.raises(ExportError, match="differs"):
        verify.compare_outputs(path, Small().eval(), [(EXAMPLE,)], "CPUExecutionProvider")


def test_nan_is_noticed(tmp_path: Path) -> None:
    net, path = Small(), tmp_path / "net.onnx"
    export_onnx(net, path, EXAMPLE, verify=False)
    with torch.no_grad():
        net.fc.bias[0] = torch.nan
    with pytest.raises(ExportError, match="differs"):
        verify.compare_outputs(path, net.eval(), [(EXAMPLE,)], "CPUExecutionProvider")


def test_outputs_too_small_to_compare_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = Small()
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    export_onnx(net, tmp_path / "net.onnx", EXAMPLE)
    assert "says little" in caplog.text


def test_gated_networks_are_refused(tmp_path: Path) -> None:
    net = fxcat.prepare(Small(), EXAMPLE)
    with pytest.raises(InputError, match="still has gates"):
        export_onnx(net, tmp_path / "net.onnx", EXAMPLE)


def test_foreign_operators_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(Small(), path, EXAMPLE, verify=False)
    model = onnx.load(str(path))
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match=r"not standard ONNX: com\.microsoft::Conv"):
        verify.check_file(path)


def test_bad_paths_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "build_program", lambda *_: pytest.fail("the export was started"))
    (tmp_path / "file").write_text("")
    for path, message in [
        (tmp_path / "missing" / "net.onnx", "does not exist"),
        (tmp_path / "file" / "net.onnx", "does not exist"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(StorageError, match=message) as caught:
            export_onnx(Small(), path, EXAMPLE)
        assert caught.value.where and caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:  # rights do not bind the superuser, as whom the tests may run
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(StorageError, match="the folder cannot be written: Permission denied"):
        export_onnx(Small(), tmp_path / "net.onnx", EXAMPLE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "no tensor"),
        (torch.tensor(1.0), "not one common batch"),
        (EXAMPLE.bfloat16(), "bfloat16"),
        (torch.randn(1, 4, 16, 16), "fails on example inputs"),
    ],
)
def test_bad_inputs(tmp_path: Path, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(Small(), tmp_path / "net.onnx", inputs)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runtime", "verify", "latency", "onnx_file"):
        monkeypatch.delitem(sys.modules, f"fxcat.exporters.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(fxcat.ExportError, match=r"onnxruntime(.|\n)*fxcat\[onnx\]"):
        export_onnx(nn.Linear(2, 2), tmp_path / "net.onnx", torch.zeros(1, 2))
    assert not list(tmp_path.iterdir())
