"""Every key of the rule table in every form that can be found: between two layers removed exactly, or kept."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from exactness import check, randomise
from op_calls import calls, keys, name_of
from op_nets import Branches
from op_values import Call

_PLACES = ("gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy")
_OWNERS = ("torch", "Tensor")
_WITHOUT = ("rand", "randn", "randint", "randperm", "zeros", "ones", "empty", "full")
_WITHOUT += ("arange", "linspace", "logspace", "eye")

UNTRIED = {
    **{f"{o}.{name}{end}": "takes places: test_ops" for o in _OWNERS for name in _PLACES for end in ("", "_")},
    "torch.imag": "takes complex numbers: test_ops",
    **{f"{o}.select_scatter": "takes a part of the value: test_ops" for o in _OWNERS},
    **{f"{o}.{name}": "takes weights: test_weights" for o in _OWNERS for name in ("addmm", "baddbmm")},
    **{f"torch.conv_transpose{n}d": "takes weights: test_weights" for n in (1, 2, 3)},
    **{f"torch.view_as_{kind}": "gives or takes complex numbers" for kind in ("real", "complex")},
    **{f"{o}.{name}": "changes the batch axis" for o in _OWNERS for name in ("t", "ravel", "vsplit")},
    "nn.sparse.Embedding": "takes indices, no features: test_user_nets",
    "F.embedding": "takes indices, no features: test_distances",
    "torchvision.ops.roi_align.RoIAlign": "takes boxes of a batch: test_regions",
    "torchvision.ops.roi_pool.RoIPool": "takes boxes of a batch: test_regions",
    "torchvision.ops.poolers.MultiScaleRoIAlign": "takes a dict of features: test_regions",
    "torch._ops.torchvision.deform_conv2d": "takes offsets: test_deformed",
    "fxcat.passes.rules.boundary.region_input": "no op: the border of a region",
    "fxcat.passes.rules.boundary.region_output": "no op: the border of a region",
    **{
        f"nn.rnn.{name}{cell}": "gives a state whose batch axis is not the first: tests of recurrent layers"
        for name in ("RNN", "LSTM", "GRU")
        for cell in ("", "Cell")
    },
    "torch.empty_like": "gives whatever lies in memory",
    "Tensor.new_empty": "gives whatever lies in memory",
    **{f"torch.{name}": "takes no tensor" for name in _WITHOUT},
    **{f"torch.{name}_like": "draws other numbers for a smaller value" for name in ("rand", "randn")},
    **{f"{owner}.bernoulli": "draws other numbers for a smaller value" for owner in ("torch", "Tensor")},
    **{
        f"Tensor.{name}_": "draws other numbers for a smaller value: test_python_forms"
        for name in ("bernoulli", "normal", "uniform", "exponential", "random", "cauchy", "geometric", "log_normal")
    },
    **{f"{o}.{name}": "takes vectors: test_weights" for o in _OWNERS for name in ("mv", "dot", "vdot")},
    "torch.normal": "draws other numbers for a smaller value: test_python_forms",
    **{f"torch.nn.init.{name}_": "draws numbers without gradients" for name in ("normal", "uniform", "trunc_normal")},
    **dict.fromkeys(("operator.floordiv", "operator.ifloordiv", "torch.floor_divide"), "has no derivative"),
    **{f"{owner}.heaviside": "has no derivative" for owner in ("torch", "Tensor")},
    **{f"F.max_unpool{n}d": "takes the places that a pooling gives: test_ops" for n in (1, 2, 3)},
    **{f"torchvision.ops.roi_{n}.roi_{n}": "takes boxes of a batch: test_regions" for n in ("align", "pool")},
    "nn.linear.Bilinear": "takes two values: test_bilinear",
    "Tensor.new_tensor": "copies a tensor as a constant: warns, and is used on numbers",
}
"""Keys that cannot be called here, and why."""

OPS = list(keys())
TRIED = [place for place, op in enumerate(OPS) if name_of(*op) not in UNTRIED]
TOGETHER = 4
"""So many ops lie in one network, which takes less time than one network each."""
IN_REGIONS = "some op lets a network be captured in regions, where less of the others may be removed"


@cache
def ways_of(place: int) -> list[Call]:
    return calls(*OPS[place])


@cache
def failures(places: tuple[int, ...], way: int | None = None) -> list[str]:
    """What is wrong with the network of some ops, called in all ways or in one."""
    torch.manual_seed(0)
    ops = [(*OPS[p], ways_of(p) if way is None else [ways_of(p)[way]]) for p in places]
    model = Branches(ops).double()
    randomise(model, 0)
    try:
        report = check(model, "ops", (1, 3, 4, 4), (3, 3, 4, 4), settings=1)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return report.failures or [IN_REGIONS] * (report.regions > 0 and len(places) > 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [pytest.param(place, id=name_of(*op)) for place, op in enumerate(OPS)])
def test_every_form_of_an_op(place: int) -> None:
    if place not in TRIED:
        return
    assert ways_of(place), "no call of it was found"
    start = TRIED.index(place) // TOGETHER * TOGETHER
    others = TRIED[start : start + TOGETHER]
    together = failures(tuple(others))
    if not together:
        return
    if failures((place,)):
        each = {str(way): failures((place,), i) for i, way in enumerate(ways_of(place))}
        pytest.fail("\n".join(f"{way}: {found[0]}" for way, found in each.items() if found) or "together only")
    alone = together == [IN_REGIONS] or any(failures((other,)) for other in others)
    assert alone, f"together with {[name_of(*OPS[other]) for other in others]} only: {together[0]}"
