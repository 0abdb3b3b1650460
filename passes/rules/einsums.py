"""Products of several values as einsums of two: what has an ellipsis, no result or more operands, tensordot, inner,
outer."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.table import decomposition


@decomposition(torch.einsum)
def einsum(equation: Any, *operands: Any) -> Any:
    """With letters for what an ellipsis stands for, letters of the result, and two operands at a time."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if not isinstance(equation, str) and operands:
        equation, operands = _in_letters((equation, *operands))
        return NotImplemented if equation is None else torch.einsum(equation, *operands)
    if not isinstance(equation, str) or not all(isinstance(x, fx.Proxy | torch.Tensor) for x in operands):
        return NotImplemented
    parts, result = _spelled(equation.replace(" ", ""), [_rank(x) for x in operands])
    plain = ",".join(parts) + "->" + result
    if len(parts) == 1 and len(set(parts[0])) == len(parts[0]):
        return _of_one(parts[0], result, operands[0])
    if len(operands) <= 2 or any(len(set(p)) < len(p) for p in parts):
        return NotImplemented if plain == equation.replace(" ", "") else torch.einsum(plain, *operands)
    left, value = parts[0], operands[0]
    for i, (part, operand) in enumerate(zip(parts[1:], operands[1:], strict=True), 2):
        wanted = set("".join(parts[i:]) + result)
        kept = result if i == len(parts) else "".join(x for x in dict.fromkeys(left + part) if x in wanted)
        left, value = kept, torch.einsum(f"{left},{part}->{kept}", value, operand)
    return value


def _in_letters(given: tuple[Any, ...]) -> tuple[str | None, tuple[Any, ...]]:
    """The equation and the operands where each operand is followed by numbers for its axes, the result's last."""
    lists: list[Any] = [*given[1::2], *(given[-1:] if len(given) % 2 else ())]
    if not all(isinstance(a, tuple | list) and all(i is Ellipsis or type(i) is int for i in a) for a in lists):
        return None, given
    written = ["".join("..." if i is Ellipsis else string.ascii_letters[i] for i in a) for a in lists]
    arrow = "->" + written.pop() if len(given) % 2 else ""
    return ",".join(written) + arrow, given[: len(given) // 2 * 2 : 2]


def _of_one(letters: str, result: str, value: Any) -> Any:
    """Sums over the axes that the result lacks, and the others in its order."""
    gone = [i for i, letter in enumerate(letters) if letter not in result]
    left = [letter for letter in letters if letter in result]
    return (value.sum(gone) if gone else value).permute([left.index(letter) for letter in result])


def _rank(value: Any) -> int:
    return (value_of(value.node) if isinstance(value, fx.Proxy) else value).dim()


def _spelled(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the result."""
    left, arrow, result = equation.partition("->")
    parts = left.split(",")
    hidden = [rank - len(p) + 3 if "..." in p else 0 for p, rank in zip(parts, ranks, strict=True)]
    free = [x for x in string.ascii_letters if x not in equation][: max(hidden)]
    spelled = [p.replace("...", "".join(free[len(free) - n :])) for p, n in zip(parts, hidden, strict=True)]
    if not arrow:
        written = left.replace(",", "").replace(".", "")
        result = ("..." if free else "") + "".join(sorted(x for x in set(written) if written.count(x) == 1))
    return spelled, result.replace("...", "".join(free))


@decomposition(torch.tensordot)
def tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Any:
    """Sums over some axes of each."""
    ranks = _rank(a), _rank(b)
    if isinstance(dims, int):
        first, second = range(ranks[0] - dims, ranks[0]), range(dims)
    else:
        first, second = ([int(x) % n for x in axes] for axes, n in zip(dims, ranks, strict=True))
    letters = string.ascii_letters
    one, two = list(letters[: ranks[0]]), list(letters[ranks[0] : sum(ranks)])
    for i, j in zip(first, second, strict=True):
        two[j] = one[i]
    result = [x for x in one if x not in two] + [x for x in two if x not in one]
    return torch.einsum(f"{''.join(one)},{''.join(two)}->{''.join(result)}", a, b)


@decomposition(torch.inner)
def inner(input: Any, other: Any) -> Any:
    """Sums over the last axes."""
    if not (_rank(input) and _rank(other)):
        return NotImplemented
    return tensordot(input, other, ([-1], [-1]))


@decomposition(torch.outer)
@decomposition(torch.ger)
@decomposition(torch.Tensor.outer)
@decomposition(torch.Tensor.ger)
def outer(input: Any, vec2: Any) -> Any:
    """Every entry of one vector times every one of another."""
    return input[:, None] * vec2[None]


@decomposition(torch.linalg.norm)
def norm(A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Norms of vectors along one axis, or of matrices as of vectors."""
    of_vector = isinstance(dim, int) or (isinstance(dim, tuple | list) and len(dim) == 1)
    if not (of_vector or (dim is not None and ord in (None, "fro")) or (dim is None and ord is None)):
        return NotImplemented
    power = ord if of_vector and ord is not None else 2
    return torch.linalg.vector_norm(A, power, dim, keepdim, dtype=dtype)


@decomposition(torch.linalg.matrix_norm)
def matrix_norm(
    A: Any,
    ord: Any = "fro",
    dim: Any = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Any:
    """The Frobenius norm is that of a vector."""
    return torch.linalg.vector_norm(A, 2, dim, keepdim, dtype=dtype) if ord == "fro" else NotImplemented
