"""A data set of coloured boxes for detectors, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}


def make_boxes(folder: Path, *, images: int, side: int = 64, classes: int = 2, seed: int = 0) -> Path:
    """Images of one or two boxes on noise, with labels as Ultralytics reads them, and a third as many to validate on.
    Returns the file that describes the data set."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)[:classes]
    for split, count in (("train", images), ("val", images // 3)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            pixels, lines = rng.integers(0, 60, (side, side, 3), dtype=np.uint8), list[str]()
            for _ in range(int(rng.integers(1, 3))):
                kind = int(rng.integers(classes))
                width, height = (int(n) for n in rng.integers(side // 5, side // 2, 2))
                left, top = int(rng.integers(side - width)), int(rng.integers(side - height))
                pixels[top : top + height, left : left + width] = COLOURS[names[kind]]
                box = (left + width / 2, top + height / 2, width, height)
                lines.append(f"{kind} {' '.join(str(n / side) for n in box)}")
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    described = folder / "data.yaml"
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {names}\n")
    return described
