"""The final choice of what stays: a 0/1 setting that meets the target and empties nothing."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import torch

from fxcat.choosing.cost_shares import SLACK, cost_fractions, cost_gradients, undercuts, wanted_of
from fxcat.choosing.groups import kept_gates, left_to_lose
from fxcat.choosing.knapsack import next_to_close
from fxcat.choosing.widths import aligned, least_aligned
from fxcat.errors import TargetError
from fxcat.network.gated_network import GatedNetwork
from fxcat.records import COSTS, Cost, Pressure, Target

AT_ONCE = 0.05
"""Share of the cost that closes before costs are looked at again."""


def smallest_setting(net: GatedNetwork, among: torch.Tensor | None = None) -> torch.Tensor:
    """As few units per group as can be, those that cost least, every section closed; 0/1, shape (gates,).

    `among`: the gates that are left to choose from, bool; by default all.
    """
    nothing = torch.zeros_like(net.gate_vector.theta.detach())
    price = cost_gradients(net, torch.ones_like(nothing))[1].sum(0)
    # a unit that is in several sets saves another one, whatever it costs
    sets = torch.bincount(net.required[1], minlength=len(price))
    score = sets - price / price.sum().clamp(min=1e-30)
    if among is not None:
        score, price = score.masked_fill(~among, -torch.inf), price.masked_fill(~among, torch.inf)
    kept = kept_gates(net, score)
    smallest = nothing.index_fill(0, kept, 1.0)
    return smallest if not net.limits.aligned else least_aligned(net, smallest, -price, kept)


def smallest_cost(net: GatedNetwork) -> Cost[int]:
    """Cost of the smallest network that can be made."""
    return net.cost_model.cost_of(smallest_setting(net), net.gate_vector.unit_count)


def check_reachable(net: GatedNetwork, target: Target) -> None:
    """Raise `TargetError` with what is reachable if even the smallest network is above the target, or if it asks for
    what the network does not count."""
    check_counted(net, target)
    _check_met(net, smallest_setting(net), target)


def check_counted(net: GatedNetwork, objective: Target | Pressure) -> None:
    """Raise `TargetError` for milliseconds of a network that does not count them."""
    if objective.latency and net.latency is None:
        raise TargetError(
            f"{type(objective).__name__}(latency={objective.latency}) needs to know how long the network's ops take",
            remedy="right after prepare(): net.use_latency(fxcat.LatencyTable.measure(net)), or one that was "
            "measured for this model on the machine that will run it",
        )


def reachable_with(net: GatedNetwork, target: Target, alive: torch.Tensor) -> torch.Tensor:
    """The 0/1 setting `alive`, shape (gates,), and what else the target needs: it could not be met with those alone
    where units of a group differ in cost."""
    smallest = smallest_setting(net, alive > 0.5)
    if _is_met(net, smallest, wanted_of(net, target)):
        return alive
    return torch.maximum(alive, smallest_setting(net))


def _check_met(net: GatedNetwork, smallest: torch.Tensor, target: Target) -> None:
    """Raise `TargetError` if a setting that cannot be made smaller, shape (gates,), is above the target."""
    asked = {name: w for name in COSTS if (w := getattr(target, name)) is not None}
    cost: dict[str, float] = dict(zip(COSTS, cost_fractions(net, smallest).tolist(), strict=False))
    missed = {name: cost[name] for name, w in asked.items() if cost[name] > w}
    if not missed:
        return
    has = " and ".join(f"{rounded_up(100 * least)}% of the {name}" for name, least in missed.items())
    choose = " and ".join(f"{name} ≥ {rounded_up(least)}" for name, least in missed.items())
    finer = "a smaller round_to= (or Limits(multiple_of=…)), " if net.limits.aligned else ""
    raise TargetError(
        f"Target({', '.join(f'{name}={w}' for name, w in asked.items())}) cannot be reached: the smallest network that "
        f"fxcat can make of this model{' within its limits' if net.limits else ''} has {has}",
        remedy=f"choose {choose}, {finer}or see net.summary() for what is pinned and why",
    )


def rounded_up(value: float) -> str:
    """A positive number with three digits that count, and not less than it is: what is chosen by it can be met."""
    unit = Decimal(10) ** (Decimal(value).adjusted() - 2)
    return f"{Decimal(value).quantize(unit, ROUND_CEILING).normalize():f}"


def select_structure(net: GatedNetwork, target: Target, score: torch.Tensor, preferred: torch.Tensor) -> torch.Tensor:
    """A 0/1 setting of shape (gates,) within `SLACK` below the target, from the preferred one.

    Closes what has the least score per cost while the target is missed, then opens again what fits, best first. Widths
    that are aligned (`round_to`) may leave more room. Of every group the best unit stays, or where that costs too much
    (units of a group may differ in cost) the one that `smallest_setting` leaves.

    Raises `TargetError` if the target cannot be reached.
    """
    wanted = wanted_of(net, target)
    setting = _searched(net, preferred, score, wanted, kept_gates(net, score))
    if not _is_met(net, setting, wanted):
        smallest = smallest_setting(net)
        _check_met(net, smallest, target)
        setting = _searched(net, preferred, score, wanted, smallest.nonzero().reshape(-1))
        _check_met(net, setting, target)
    return setting


def _is_met(net: GatedNetwork, setting: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((cost_fractions(net, setting) <= wanted)[wanted < 1].all())


def _searched(
    net: GatedNetwork, preferred: torch.Tensor, score: torch.Tensor, wanted: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """The setting that is found from the preferred one with the gates `kept` (numbers) open; it may miss the target."""
    setting = preferred.index_fill(0, kept, 1.0)
    protected = torch.zeros_like(setting, dtype=torch.bool).index_fill(0, kept, True)
    setting, _ = close_until(net, setting, score, wanted, protected, final=wanted)
    setting = _open_while_fitting(net, setting, score, wanted)
    return setting if not net.limits.aligned else aligned(net, setting, score, wanted, kept)


def close_until(
    net: GatedNetwork,
    setting: torch.Tensor,
    score: torch.Tensor,
    wanted: torch.Tensor,
    protected: torch.Tensor,
    *,
    final: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Close what has the least score per cost until the cost fractions are at most `wanted`, or no more can close.

    `final`: the fractions that are wanted in the end (`next_to_close`).

    Returns the setting (changed in place) and the clearing slopes, shape (gates,): what every gate costs, in units of
    the score, at the price at which just enough close. A gate is closed if its score is at most its slope.
    """
    mix = (wanted < 1).double()
    mix = mix / mix.sum().clamp(min=1)
    costs, clearing = torch.zeros_like(setting, dtype=torch.float64), -torch.inf
    spared = torch.zeros_like(protected)
    last = protected.new_zeros(0, dtype=torch.int64)
    alone, is_first = score.masked_fill(setting < 0.5, 0.0), True  # what was closed before has cost nothing
    while True:
        fractions, gradients = cost_gradients(net, setting)
        excess = (fractions - wanted).clamp(min=0)
        if is_first and bool((excess > 0).any()):
            mix = excess / excess.sum()
        is_first = False
        cost = (mix[:, None] * gradients).sum(0)
        is_open = setting > 0.5
        costs = torch.where(is_open, cost, costs)  # those of closed gates stay what they were then
        candidates = (is_open & ~protected & (cost > 0)).nonzero().reshape(-1)
        score = left_to_lose(net, alone, setting)
        ratio = score[candidates] / cost[candidates]
        if not bool((excess > 0).any()) or not len(candidates):
            least = float(ratio.min()) if len(ratio) else 0.0
            slopes = costs * (clearing if clearing > -torch.inf else least)
            # Prices cannot say which of several large pieces goes; what was decided shall happen.
            stays = spared & is_open & (score < slopes)
            slopes = torch.where(stays, score - score.abs(), slopes)
            if bool(undercuts(fractions, final)):
                slopes[last] = torch.maximum(slopes[last], (score + score.abs())[last])
            return setting, slopes
        closed, left_out = next_to_close(score[candidates], gradients[:, candidates], mix, fractions, wanted, final)
        spared[candidates[left_out]] = True
        clearing = max(clearing, float(ratio[closed].max()))
        last = candidates[closed]
        setting[last] = 0.0


def close_below(
    net: GatedNetwork,
    setting: torch.Tensor,
    score: torch.Tensor,
    price: float,
    mix: torch.Tensor,
    protected: torch.Tensor,
) -> torch.Tensor:
    """The 0/1 setting, shape (gates,), after all has closed whose score is less than the price of its cost.

    `price`: of the whole start network's cost; `mix`, shape (costs,): how much every cost counts.
    """
    setting, alone = setting.clone(), score.masked_fill(setting < 0.5, 0.0)
    while True:
        fractions, gradients = cost_gradients(net, setting)
        cost = (mix[:, None] * gradients).sum(0)
        score = left_to_lose(net, alone, setting)
        below = ((setting > 0.5) & ~protected & (score < price * cost)).nonzero().reshape(-1)
        if not len(below):
            return setting
        # marginal costs change as structures go: a part, then look again
        order = below[(score[below] / cost[below]).argsort()]
        enough = AT_ONCE * float((mix * fractions).sum())
        setting[order[: int((cost[order].cumsum(0) < enough).sum()) + 1]] = 0.0


def _open_while_fitting(
    net: GatedNetwork, setting: torch.Tensor, score: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    tried = torch.zeros_like(setting, dtype=torch.bool)
    while True:
        fractions, gradients = cost_gradients(net, setting)
        room = wanted - fractions
        limited = wanted < 1
        if bool((room[limited] <= SLACK * 0.5 * wanted[limited]).any()):
            return setting
        fits = (gradients <= room[:, None]).all(0) | (wanted[:, None] >= 1).all(0)
        # what costs nothing now lies in a closed section
        candidates = ((setting < 0.5) & fits & ~tried & (gradients.sum(0) > 0)).nonzero().reshape(-1)
        if not len(candidates):
            return setting
        # a section that was to go comes back only if units do not fill the room: a few of its own would be a stump
        units = candidates[candidates < net.gate_vector.unit_count]
        candidates = units if len(units) else candidates
        left, price = left_to_lose(net, score, setting)[candidates], gradients[:, candidates].sum(0)
        best = candidates[(left / price).argmax()]
        tried[best] = True
        opened = setting.clone()
        opened[best] = 1.0
        if bool((cost_fractions(net, opened) <= wanted).all()):
            setting = opened
