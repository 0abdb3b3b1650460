"""A tiny detector of Ultralytics, and a folder with data for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxes import make_boxes
from ultralytics import YOLO

import fxcat

TINY = """nc: 2
scales: {n: [1.0, 1.0, 1024]}
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C2f, [16, True]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C2f, [32, True]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, SPPF, [48, 5]]
head:
  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 1, C2f, [32]]
  - [[9, 6], 1, Detect, [nc]]
"""
TARGET = fxcat.Target(flops=0.6)


@dataclass(frozen=True)
class Place:
    """A folder with data and the description of a model."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, images: int = 24) -> Place:
        make_boxes(folder / "boxes", images=images)
        (folder / "tiny8n.yaml").write_text(TINY)
        return cls(folder)

    def model(self, name: str = "tiny8n.yaml") -> Any:
        return YOLO(str(self.folder / name))

    @property
    def data(self) -> dict[str, Any]:
        """Arguments of all of their commands."""
        return {
            **{"data": str(self.folder / "boxes" / "data.yaml"), "imgsz": 64, "device": "cpu", "workers": 0},
            **{"plots": False, "project": str(self.folder), "exist_ok": True, "verbose": False},
        }

    @property
    def recipe(self) -> dict[str, Any]:
        return {**self.data, "epochs": 4, "batch": 8, "nbs": 16, "optimizer": "AdamW", "lr0": 1e-3, "name": "run"}
