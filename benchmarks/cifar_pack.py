"""CIFAR-10 as one file that is small enough to carry: the encoded images one after another, their sizes and labels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets import ImageFolder

CHUNK = 500
"""Images per task of a thread."""


def pack(folder: Path, path: Path) -> None:
    """Write what an ImageFolder with `train/<class>/*` and `test/<class>/*` holds, as it is encoded there."""
    tensors: dict[str, torch.Tensor] = {}
    for part in ("train", "test"):
        found = ImageFolder(str(folder / part))
        with ThreadPoolExecutor() as threads:
            files = list(threads.map(lambda sample: Path(sample[0]).read_bytes(), found.samples))
        tensors[f"{part} files"] = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
        tensors[f"{part} sizes"] = torch.tensor([len(file) for file in files])
        tensors[f"{part} labels"] = torch.tensor(found.targets)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def unpack(path: Path, decoded: Path) -> None:
    """Decode a packed file, in threads, into one that is loaded at once: pixels of type uint8, shape (N, 3, H, W)."""
    packed = load_file(path)
    tensors: dict[str, torch.Tensor] = {}
    for part in ("train", "test"):
        joined, ends = packed[f"{part} files"].numpy().tobytes(), packed[f"{part} sizes"].cumsum(0).tolist()
        files = [joined[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        with ThreadPoolExecutor() as threads:
            chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
            tensors[f"{part} images"] = torch.cat(list(threads.map(_decode, chunks)))
        tensors[f"{part} labels"] = packed[f"{part} labels"]
    save_file(tensors, decoded)


def _decode(files: Sequence[bytes]) -> torch.Tensor:
    pixels = np.stack([np.asarray(Image.open(BytesIO(file)).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
