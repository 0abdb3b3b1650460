"""Scores from torch-pruning's importance estimators (arXiv 2301.12900)."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from fxcat.checks import check_callable, check_instance, check_module
from fxcat.choosing.cost_shares import marginal_macs
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.network.module_state import first_difference
from fxcat.network.weight_checks import parameter_shapes
from fxcat.utils.modes import kept_modes


@dataclass(frozen=True, slots=True)
class _Producer:
    """A layer of the model, and the unit of each of its output channels, −1 for none."""

    name: str
    layer: nn.Module
    units: torch.Tensor


def from_torch_pruning(
    net: GatedModule,
    importance: Callable[[Any], torch.Tensor | None],
    model: nn.Module,
    example_inputs: Any,
    *,
    fallback: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores by an estimator of `torch_pruning.importance` (`MagnitudeImportance()`, …); double, shape (gates,).

    `model`: what `prepare` was given, or `fxcat.finalize(net)` while all gates are open; its weights are scored, and
    its gradients if the estimator wants some (`TaylorImportance`: call `backward` first). `example_inputs`: as
    torch-pruning takes them. Of a unit with several channels (a head) the mean counts, as in torch-pruning. The score
    is what the estimator gives times the MACs of the unit, as a share of the start network's, so that units rank by
    the estimator when they rank by score per cost.

    torch-pruning has nothing like sections: they score ∞, so that they stay. Nor can it analyse everything:
    `fallback`, such as `norm_scale(net)`, has the scores of sections and of groups that it does not score, which a
    warning lists. Without it they are an error. The model stays as it is, but for what the estimator does to it.

    Raises `InputError` if torch-pruning is missing, if `model` is another one, and for what it cannot analyse.
    """
    check_gated(net, "from_torch_pruning()")
    check_callable(importance, "importance", remedy="give one such as torch_pruning.importance.MagnitudeImportance()")
    check_module(model, "model")
    check_instance(fallback, torch.Tensor, "fallback", optional=True)
    try:
        pruning: Any = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise InputError("torch-pruning is not installed", remedy='pip install "fxcat[torch-pruning]"') from error
    _check_same(net, model)
    count = net.gate_vector.unit_count
    if not count:
        raise InputError("torch-pruning scores channels, and this network has gates on sections only")
    with kept_modes(model), torch.enable_grad():  # it switches the model to `eval()` and leaves it there
        try:
            graph = pruning.DependencyGraph().build_dependency(model, example_inputs, verbose=False)
        except Exception as error:  # whatever goes wrong in somebody else's analysis
            raise InputError(
                f"torch-pruning cannot analyse {type(model).__name__}: {type(error).__name__}: {error}",
                remedy="use fxcat.importance.norm_scale(net) or taylor(net, batches)",
            ) from error
        scores, missing = _unit_scores(net, _producers(net, model), _Scorer(pruning, graph, importance))
    scores *= marginal_macs(net)[:count].cpu()
    by = type(importance).__name__
    return _completed(scores, len(net.structure.sections), missing, fallback, by).to(net.gate_vector.theta.device)


def _completed(
    scores: torch.Tensor, sections: int, missing: Mapping[str, str], fallback: torch.Tensor | None, by: str
) -> torch.Tensor:
    """Scores of all gates, shape (units + sections,), out of those of units, NaN where there are none; `missing`: the
    groups that have none, and why; `by`: the name of the estimator."""
    count = len(scores)
    rest = torch.full((sections,), torch.inf, dtype=torch.float64)
    if fallback is not None:
        fallback = fallback.double().cpu()
        if fallback.shape != (count + sections,):
            raise InputError(
                f"fallback has shape {tuple(fallback.shape)}",
                remedy=f"it needs one score per gate: ({count + sections},)",
            )
        rest = fallback[count:]
        scores = torch.where(scores.isnan(), fallback[:count], scores)
    if missing:
        names = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        what = f"torch-pruning's {by} does not score {len(missing)} groups: {names}"
        if fallback is None:
            raise InputError(what, remedy="pass fallback=fxcat.importance.norm_scale(net)")
        warnings.warn(f"{what}; their scores are those of fallback=", stacklevel=3)
    return torch.cat([scores, rest])


def _check_same(net: GatedModule, model: nn.Module) -> None:
    differs = first_difference(parameter_shapes(model), parameter_shapes(net.network))
    if differs is not None:
        raise InputError(
            f"the model is not the one in the gated network: {differs}",
            remedy="pass the model that prepare() was given",
        )


def _producers(net: GatedModule, model: nn.Module) -> list[_Producer]:
    """Layers whose output channels are units; a depthwise convolution only passes on those of its input."""
    axes = net.program.unit_axes(net.network)
    found: list[_Producer] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, _ConvNd | nn.Linear):
            continue
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        transposed = isinstance(layer, _ConvTransposeNd)
        units = axes.get(f"{name}.weight", {}).get(int(transposed))
        if units is not None and (groups == 1 or groups != layer.out_channels):
            found.append(_Producer(name, layer, units.repeat(groups) if transposed else units))
    return found


class _Scorer:
    """torch-pruning's scores of the output channels of a layer."""

    def __init__(self, pruning: Any, graph: Any, importance: Callable[[Any], torch.Tensor | None]) -> None:
        self._pruning, self._graph, self._importance = pruning, graph, importance

    def of(self, producer: _Producer) -> torch.Tensor | str:
        """One score per channel, or the reason why there is none."""
        channels = len(producer.units)
        linear = isinstance(producer.layer, nn.Linear)
        prune = self._pruning.prune_linear_out_channels if linear else self._pruning.prune_conv_out_channels
        try:
            group = self._graph.get_pruning_group(producer.layer, prune, idxs=list(range(channels)))
            scores = self._importance(group)
        except Exception as error:  # whatever goes wrong in somebody else's analysis
            return f"{type(error).__name__}: {error}"
        if not isinstance(scores, torch.Tensor):
            return "the estimator finds nothing to score; some need gradients"
        scores = scores.detach().double().cpu()
        if scores.shape != (channels,) or not bool(torch.isfinite(scores).all()):
            return f"the estimator's scores are not {channels} finite numbers"
        return scores


def _unit_scores(net: GatedModule, producers: list[_Producer], scorer: _Scorer) -> tuple[torch.Tensor, dict[str, str]]:
    """Scores of all units, shape (units,), NaN where there are none; and per group without scores the reason."""
    scores = torch.full((net.gate_vector.unit_count,), torch.nan, dtype=torch.float64)
    missing: dict[str, str] = {}
    start = 0
    for part in net.structure.groups:
        own = scores[start : start + part.units]
        # the layer that gave the group its name first: where several produce one group, one is enough
        for producer in sorted(producers, key=lambda p: p.name != part.name):
            numbers = producer.units - start
            inside = (numbers >= 0) & (numbers < part.units)
            if not bool(own.isnan()[numbers[inside]].any()):
                continue
            of_channels = scorer.of(producer)
            if isinstance(of_channels, str):
                missing[part.name] = of_channels
                continue
            indices = numbers[inside].bincount(minlength=part.units)
            means = numbers[inside].bincount(of_channels[inside], minlength=part.units) / indices  # NaN: not here
            own.copy_(torch.where(own.isnan(), means, own))
        if not bool(own.isnan().any()):
            missing.pop(part.name, None)
        else:
            own.fill_(torch.nan)
            missing.setdefault(part.name, "no convolution or linear layer produces it")
        start += part.units
    return scores, missing
