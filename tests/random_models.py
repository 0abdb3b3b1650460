"""Random networks as source code, and the smallest one that still fails: the second generator of the tests.

    python tests/random_models.py 0 1000 --workers 2 --found runs/found

A network is a list of steps (`random_parts`). A step writes lines of `__init__` and `forward`; it reads values that
earlier steps have left, by numbers modulo how many there are, so that any part of the list is a network too. What fails
is cut down to few steps and written as a script that shows the failure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from random_checks import broken
from random_parts import DIMS, OTHER, SPATIAL, STEPS, Writer
from torch import nn

RESULTS = {
    "tensor": "y",
    "pair": "(y, z)",
    "dict": "{'class': y, 'map': z}",
    "list": "[y, {'maps': [z, None]}]",
    "named": "Result(scores=y, map=z)",
}
"""What `forward` returns."""


@dataclass(frozen=True)
class Step:
    """`first`, `second`: the values that it reads; `number`: decides on its options."""

    kind: str
    first: int = 0
    second: int = 0
    number: int = 0


@dataclass(frozen=True)
class Program:
    """`dims`: of the images; `inputs`: how many there are, one by one or in a dict; `result`: one of `RESULTS`."""

    steps: tuple[Step, ...]
    dims: int = 2
    inputs: int = 1
    result: str = "tensor"
    in_dict: bool = False


def draw(seed: int) -> Program:
    """A random program."""
    r = random.Random(seed)
    dims = r.choice((2, 2, 2, 1, 3))
    kinds = [kind for kind in STEPS if dims in DIMS[kind]]
    steps = tuple(
        Step(r.choice(kinds), -r.choice((1, 1, 1, 2, 3)), r.randrange(20), r.randrange(10_000))
        for _ in range(r.randint(1, 6))
    )
    results = ("tensor", "tensor", *RESULTS)
    return Program(steps, dims, r.choice((1, 1, 1, 2)), r.choice(results), r.random() < 0.1)


def written(program: Program) -> tuple[str, bool]:
    """The source of a program, and whether it is for images of one size."""
    w = Writer(program.dims)
    names = [f"x{i}" for i in range(program.inputs)]
    if program.in_dict:
        w.line(f"{', '.join(names)} = {', '.join(f'batch[{name!r}]' for name in names)}")
    for name in names:
        w.new(f"{w.conv(3, 6, 3)}({name})", 6)
    for step in program.steps:
        STEPS[step.kind](w, w.values[step.first % len(w.values)], w.values[step.second % len(w.values)], step.number)
    last, width = w.values[-1]
    w.line(f"y = {w.layer(f'nn.Linear({width}, 3)')}({last}.mean({tuple(range(2, 2 + program.dims))}))")
    other, more = w.values[-2] if len(w.values) > 1 else w.values[-1]
    if program.result != "tensor":
        w.line(f"z = {w.conv(more, 2)}({other})")
    if program.result == "named":
        w.define('Result = collections.namedtuple("Result", ["scores", "map"])')
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in w.init]
    lines += ["", f"    def forward(self, {'batch' if program.in_dict else ', '.join(names)}):"]
    lines += [f"        {line}" for line in (*w.forward, f"return {RESULTS[program.result]}")]
    return "\n\n\n".join([*w.classes, "\n".join(lines)]) + "\n", w.fixed


def source(program: Program) -> str:
    """The class `Net`, and what it uses."""
    return written(program)[0]


IMPORTS = """
import collections
import dataclasses
import functools
import math

import einops
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils import checkpoint
"""


def build(text: str) -> nn.Module:
    """The network of a source."""
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(IMPORTS + text, "<random network>", "exec"), space)
    return space["Net"]().double()


def images(program: Program, batch: int, seed: int, spatial: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """Inputs of a program."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *(spatial or SPATIAL[program.dims]))
    several = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(program.inputs))
    return ({f"x{i}": x for i, x in enumerate(several)},) if program.in_dict else several


def failure(program: Program, seed: int = 0, *, onnx: bool = False) -> str:
    """What is wrong with a program, empty if nothing is; `nothing` if there is nothing to prune."""
    text, fixed = written(program)
    spatial = (SPATIAL if fixed else OTHER)[program.dims]
    example, others = images(program, 1, 1), images(program, 3, 2, spatial)
    return broken(lambda: build(text), example, others, seed, onnx=onnx)


def kind_of(text: str) -> str:
    """A failure without its numbers."""
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", text.split(" (")[0])[:60]


def shrunk(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A smaller program that fails too: without steps, with smaller numbers, with plain inputs and results."""
    changed = True
    while changed:
        changed = False
        for i in range(len(program.steps)):
            smaller = replace(program, steps=program.steps[:i] + program.steps[i + 1 :])
            if fails(smaller):
                program, changed = smaller, True
                break
    plain: tuple[dict[str, Any], ...] = ({"result": "tensor"}, {"in_dict": False}, {"inputs": 1}, {"dims": 2})
    for change in plain:
        smaller = replace(program, **change)
        if smaller != program and fails(smaller):
            program = smaller
    for i, step in enumerate(program.steps):
        for number in (*range(4), step.number % 7, step.number % 30):
            smaller = replace(step, number=number)
            steps = (*program.steps[:i], smaller, *program.steps[i + 1 :])
            if number < program.steps[i].number and fails(replace(program, steps=steps)):
                program = replace(program, steps=steps)
                break
    return program


SCRIPT = """\"\"\"{failure}

seed {seed}
\"\"\"
import sys
sys.path.insert(0, "tests")
from exactness import check_on, randomise
{imports}

{source}

model = Net().double()
randomise(model, {seed})
shapes = {shapes}
example, others = (tuple(torch.randn(s, dtype=torch.float64) for s in several) for several in shapes)
{wrapped}print(check_on(model, "net", example, others, others, settings=2).failures)
"""
WRAPPED = "example, others = (({f'x{i}': x for i, x in enumerate(several)},) for several in (example, others))\n"


def script(program: Program, seed: int, found: str) -> str:
    text, fixed = written(program)
    sizes = SPATIAL[program.dims], (SPATIAL if fixed else OTHER)[program.dims]
    shapes = tuple([(batch, 3, *size)] * program.inputs for batch, size in zip((1, 3), sizes, strict=True))
    words = {"failure": found.replace('"""', ""), "seed": seed, "source": text, "shapes": shapes}
    return SCRIPT.format(**words, imports=IMPORTS, wrapped=WRAPPED if program.in_dict else "")


def examined(seed: int) -> tuple[int, str, Program | None]:
    """What a seed gives: the failure, and the smallest program that shows it."""
    torch.set_num_threads(1)
    program = draw(seed)
    try:
        found = failure(program, seed, onnx=seed % 100 == 0)
    except Exception as error:  # the generator is at fault
        return seed, f"generator: {type(error).__name__}: {error}", program
    if found in ("", "nothing"):
        return seed, found, None
    kind = kind_of(found)

    def fails(smaller: Program) -> bool:
        try:
            return kind_of(failure(smaller, seed, onnx=seed % 100 == 0)) == kind
        except Exception:
            return False

    return seed, found, shrunk(program, fails)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--found", type=Path, default=Path("runs/found"), help="folder for what fails")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for seed, found, program in pool.imap_unordered(examined, range(options.first, options.last)):
            kind = kind_of(found) if program is not None else found or "exact"
            counts[kind] += 1
            if program is not None:
                options.found.mkdir(parents=True, exist_ok=True)
                if counts[kind] <= 3:
                    (options.found / f"seed_{seed}.py").write_text(script(program, seed, found))
                print(f"{seed}: {found}\n{source(program)}", flush=True)  # noqa: T201
    for kind, count in counts.most_common():
        print(f"{count:6} {kind}")  # noqa: T201


if __name__ == "__main__":
    main()
