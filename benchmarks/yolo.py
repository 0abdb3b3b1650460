"""A YOLO pruned by Ultralytics' own trainer, beside the unpruned run of the same epochs, on images of coloured boxes.

    python benchmarks/yolo.py

Both runs have the same data, epochs and recipe. Accuracy is that of their `val` on `best.pt`, and on the ONNX file of
their `export`, run by ONNX Runtime; MACs and parameters are counted on the model in `best.pt`, for one image. Finished
runs are kept in the JSON file and not repeated.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

# theirs are read when it is imported
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")

import onnxruntime
import torch
from common import finished_or_run, finished_rows, print_table
from ultralytics import YOLO

import fxcat
from fxcat.integrations.ultralytics import attach

# isort: split
from boxes import make_boxes
from exactness import counted_macs


def run(flops: float | None, options: argparse.Namespace) -> dict[str, Any]:
    """One training, and what their tools say of its result."""
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            **{"data": str(make_boxes(Path(folder) / "boxes", images=options.images)), "imgsz": options.size},
            **{"device": "cpu", "workers": 0, "plots": False, "project": folder, "exist_ok": True},
        }
        recipe: dict[str, Any] = {
            **{"epochs": options.epochs, "batch": 16, "nbs": 16, "optimizer": "AdamW", "lr0": 2e-3, "seed": 0},
            **{"warmup_epochs": 1, "mosaic": 0.0, "close_mosaic": 0},
        }
        model = YOLO(f"{options.model}.yaml")
        if flops is not None:
            attach(model, target=fxcat.Target(flops=flops))
        start = time.perf_counter()
        model.train(**common, **recipe)
        seconds = time.perf_counter() - start
        found = model.val(**common)
        image = torch.rand(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
        network: Any = model.model
        trainer: Any = model.trainer
        file = model.export(format="onnx", imgsz=options.size, device="cpu", simplify=False)
        exported = YOLO(file).val(**common)
        return {
            **{"mAP50-95": float(found.box.map), "mAP50": float(found.box.map50)},
            **{"ONNX mAP50-95": float(exported.box.map), "ONNX error": onnx_error(file, network, image)},
            "MACs": counted_macs(network, (image,)),
            "parameters": sum(p.numel() for p in network.parameters()),
            "best.pt MB": trainer.best.stat().st_size / 1e6,
            "ONNX MB": Path(file).stat().st_size / 1e6,
            "seconds": seconds,
        }


def onnx_error(file: str, network: Any, image: torch.Tensor) -> float:
    """The largest difference of the exported file's result from the module's, relative to the largest value."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        expected = network.float().eval()(image)[0]
    return float((torch.from_numpy(result) - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--flops", nargs="*", type=float, default=[0.7])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path, default=Path("runs/yolo.json"))
    options = parser.parse_args()
    rows = finished_rows(options.json)
    setting = {name: getattr(options, name) for name in ("model", "epochs", "images", "size")}
    table = [
        finished_or_run(
            *(options.json, rows, {**setting, "target": flops or 1.0}, partial(run, flops, options)),
            measures="nothing" if flops is None else "library",
        )
        for flops in (None, *options.flops)
    ]
    print_table(f"{options.model} on coloured boxes, {options.epochs} epochs", table)


if __name__ == "__main__":
    main()
