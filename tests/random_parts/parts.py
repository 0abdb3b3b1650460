"""Parts of random networks as text: what a `Part` may hold, and how it becomes lines of a network.

In a part's text `$x` and `$y` are values (N, C, …) of `$c` channels, `$d` the number of dimensions of the images,
`$axes` their axes and `$ones` as many ones. `[[a || b]]` is one of several texts, chosen by the step's number.
`<<…>>` is a layer of the network: `conv IN, OUT[, KERNEL[, MORE]]`, `lin IN, OUT[, MORE]`, `par SIZES` (a parameter),
`buf TENSOR` (a buffer), or a module as Python writes it; `<<name = …>>` gives it a name for `<<name>>` further down.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from inspect import cleandoc

from random_parts.writer import Value, Writer


@dataclass(frozen=True)
class Part:
    """Lines of `forward` that leave their result in `h`, of `channels`.

    `classes`: what the script defines before the network. `dims`: of the images that it is for. `fixed`: it is for
    images of one size only.
    """

    text: str
    channels: str = "$c"
    classes: str = ""
    dims: tuple[int, ...] = (1, 2, 3)
    fixed: bool = False


def write(w: Writer, part: Part, x: Value, y: Value, number: int) -> None:
    """The lines of a part."""
    text = _chosen(part.text, random.Random(number))
    words = {
        "$axes": str(tuple(range(2, 2 + w.dims))),
        "$ones": ", ".join(["1"] * w.dims),
        "$last": str((0, *range(2, 2 + w.dims), 1)),
        "$first": str((0, 1 + w.dims, *range(1, 1 + w.dims))),
        "$x": x[0],
        "$y": w.like(y, x[1]) if "$y" in text else "",
        "$c": str(x[1]),
        "$d": str(w.dims),
    }
    if part.classes:
        w.define(_replaced(cleandoc(part.classes), words))
    w.fixed |= part.fixed
    named: dict[str, str] = {}
    for line in cleandoc(_replaced(text, words)).splitlines():
        w.line(re.sub("<<(.*?)>>", lambda found: _layer(w, found[1], named), line))
    w.new("h", int(eval(_replaced(part.channels, words))))


def _replaced(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _chosen(text: str, choice: random.Random) -> str:
    """One of every set of alternatives."""
    while found := re.search(r"\[\[((?:(?!\[\[).)*?)\]\](?!\])", text, re.DOTALL):
        way = choice.choice(found[1].split("||")).strip()
        text = text[: found.start()] + way + text[found.end() :]
    return text


def _layer(w: Writer, text: str, named: dict[str, str]) -> str:
    name, equals, made = text.partition(" = ")
    if not equals or not name.isidentifier():
        name, made = "", text
    if made in named:
        return named[made]
    kind, _, more = made.partition(" ")
    if kind == "conv":
        entering, leaving, *rest = more.split(", ", 3)
        result = w.conv(
            int(eval(entering)), int(eval(leaving)), int(rest[0]) if rest else 1, "".join(f", {r}" for r in rest[1:])
        )
    elif kind == "lin":
        result = w.layer(f"nn.Linear({more})")
    elif kind == "par":
        result = w.layer(f"nn.Parameter(torch.randn({more}))")
    elif kind == "buf":
        result = w.buffer(more)
    else:
        result = w.layer(made)
    if name:
        named[name] = result
    return result
