"""Ways to run a network elsewhere. Each takes a network, images and a folder with its ONNX file, and gives back what
runs it.

Images are single, (1, C, H, W): the first is the example, and on all of them post-training quantisation sees ranges.

A tool is imported where it is used: one that is not installed is a `ModuleNotFoundError`, of the tool alone.
"""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fxcat

Deployed = Callable[[torch.Tensor], tuple[torch.Tensor, float]]
"""Inputs → outputs, and the milliseconds that it took."""
FILE = "network.onnx"
"""The one file that ONNX Runtime, its quantisers, OpenVINO and Node.js take; its input is `x`."""
Images = Sequence[torch.Tensor]
Tool = Callable[[nn.Module, Images, Path], Deployed]


def timed(run: Callable[[torch.Tensor], Any]) -> Deployed:
    """What runs in this process, with its time."""

    def deployed(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        with torch.inference_mode():
            found = run(x)
        return torch.as_tensor(found), 1e3 * (time.perf_counter() - start)

    return deployed


# ONNX Runtime


def onnx_runtime(module: nn.Module, images: Images, folder: Path) -> Deployed:
    return _session(folder / FILE)


def onnx_runtime_half(module: nn.Module, images: Images, folder: Path) -> Deployed:
    path = folder / "half.onnx"
    fxcat.export_onnx(module, path, images[0], half=True)
    return _session(path)


def onnx_runtime_dynamic(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """Weights in 8 bits, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "int8.onnx"
    quantize_dynamic(str(folder / FILE), str(path), weight_type=QuantType.QUInt8)
    return _session(path)


def onnx_runtime_static(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """Weights and activations in 8 bits, with ranges that were seen on the calibration images. Weights have 7 bits, so
    that processors without VNNI do not overflow."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"x": image.numpy()}

    path, merged = folder / "int8.onnx", folder / "merged.onnx"
    quant_pre_process(str(folder / FILE), str(merged))
    quantize_static(str(merged), str(path), Reader(), per_channel=True, reduce_range=True)
    return _session(path)


def _session(path: Path) -> Deployed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return timed(lambda x: session.run(None, {name: x.numpy()})[0])


# torch


def torch_export(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """Captured, saved, and loaded again."""
    path = folder / "network.pt2"
    torch.export.save(torch.export.export(module, (images[0],)), path)
    return timed(torch.export.load(path).module())


def torch_compile(module: nn.Module, images: Images, folder: Path) -> Deployed:
    return timed(torch.compile(copy.deepcopy(module)))


def torchao_pt2e(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """Post-training quantisation of the exported program, compiled for this processor."""
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    # strict: its quantizer tells repeated calls of one ReLU apart by what that capture writes down
    captured = torch.export.export(module, (images[0],), strict=True).module()
    observed = prepare_pt2e(captured, quantizer)
    with torch.no_grad():
        for image in images:
            observed(image)
        return timed(lower_pt2e_quantized_to_x86(convert_pt2e(observed), (images[0],)))


def executorch(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """Lowered to XNNPACK, and run by its own runtime."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
    from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]
    from executorch.extension.pybindings import portable_lib  # pyright: ignore[reportMissingImports]
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

    portable_lib._unsafe_reset_threadpool(1)
    path = folder / "network.pte"
    exported = torch.export.export(module, (images[0],))
    path.write_bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    method: Any = Runtime.get().load_program(path).load_method("forward")
    return timed(lambda x: method.execute([x])[0].clone())


# others


def openvino(module: nn.Module, images: Images, folder: Path) -> Deployed:
    """The same ONNX file, in single precision."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = core.read_model(str(folder / FILE))
    compiled: Any = core.compile_model(model, "CPU", settings)
    return timed(lambda x: np.array(compiled([x.numpy()])[0]))


def node(package: str) -> Tool:
    """The same ONNX file in Node.js, by `onnxruntime-node` or, as in a browser, by `onnxruntime-web`."""

    def run(module: nn.Module, images: Images, folder: Path) -> Deployed:
        script = Path(__file__).with_name("deployment_node.js")
        process: Any = subprocess.Popen(
            ["node", str(script), str(node_modules() / package), str(folder / FILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def deployed(x: torch.Tensor) -> tuple[torch.Tensor, float]:
            values = folder / "x.bin"
            values.write_bytes(x.numpy().tobytes())
            process.stdin.write(json.dumps({"file": str(values), "shape": list(x.shape)}) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return torch.tensor(answer["output"]).reshape(answer["shape"]), answer["ms"]

        return deployed

    return run


def node_modules() -> Path:
    """Where `npm install` put the packages."""
    return Path("runs/node/node_modules").resolve()


TOOLS: dict[str, tuple[str, Tool]] = {
    "ONNX Runtime": ("onnxruntime", onnx_runtime),
    "ONNX Runtime, float16": ("onnxruntime", onnx_runtime_half),
    "ONNX Runtime, INT8 static": ("onnxruntime", onnx_runtime_static),
    "ONNX Runtime, INT8 dynamic": ("onnxruntime", onnx_runtime_dynamic),
    "OpenVINO": ("openvino", openvino),
    "torch.export, saved and loaded": ("torch", torch_export),
    "torch.compile": ("torch", torch_compile),
    "torchao PT2E, INT8": ("torchao", torchao_pt2e),
    "ExecuTorch, XNNPACK": ("executorch", executorch),
    "onnxruntime-node": ("onnxruntime-node", node("onnxruntime-node")),
    "onnxruntime-web (WebAssembly)": ("onnxruntime-web", node("onnxruntime-web")),
}
"""Name → package, and the way."""


def version_of(package: str) -> str:
    """Raises `ModuleNotFoundError` for a package that is not installed, of Python or of Node.js."""
    if package.startswith("onnxruntime-"):
        file = node_modules() / package / "package.json"
        if not file.exists():
            raise ModuleNotFoundError(f"no {package} in {node_modules().name}", name=package)
        return json.loads(file.read_text())["version"]
    try:
        return version(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(str(error), name=package) from error


def medians(runs: Sequence[Deployed], x: torch.Tensor, repeats: int) -> list[float]:
    """Milliseconds of one run of each: medians of the faster half of runs that take turns."""
    from fxcat.exporters.timing.runs import fast_median

    taken: list[list[float]] = [[] for _ in runs]
    for repeat in range(3 + repeats):
        for i in (0, 1) if repeat % 2 else (1, 0):
            milliseconds = runs[i](x)[1]
            if repeat >= 3:
                taken[i].append(milliseconds)
    return [fast_median(t) for t in taken]
