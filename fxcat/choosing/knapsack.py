"""What closes next, on the way to a cost: a greedy knapsack that knows pieces of very different sizes."""

from __future__ import annotations

import torch

from fxcat.choosing.cost_shares import undercuts


def next_to_close(
    score: torch.Tensor,
    savings: torch.Tensor,
    mix: torch.Tensor,
    fractions: torch.Tensor,
    wanted: torch.Tensor,
    final: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of n candidates some that should close before the cost `fractions` are looked at again.

    Those with the least score per cost. A piece that alone would leave too little of what is wanted in the end, as a
    whole section may, closes if less is lost than with the small ones that would have to go in its place. What it saves
    in excess counts as lost too, at the price that cost has among those.

    `score`: shape (n,); `savings`: what each saves of every cost fraction, shape (costs, n); `mix`: how much each
    counts; `fractions`, `wanted` now and `final`: shape (costs,). Returns numbers of candidates, at least one, and a
    mask, shape (n,), of those that were left out in spite of low scores.
    """
    cost = (mix[:, None] * savings).sum(0)
    ratio = score.double() / cost
    missing = float((mix * (fractions - wanted).clamp(min=0)).sum())
    too_large = undercuts(fractions[:, None] - savings, final)
    order = ratio.masked_fill(too_large, torch.inf).argsort()[: int((~too_large).sum())]
    saved = cost[order].cumsum(0)
    if len(order) < len(score):
        large = too_large.nonzero().reshape(-1)
        needed = int((saved < missing).sum()) + 1
        instead = order[:needed] if needed <= len(order) else None  # None: the small ones are not enough
        price = ratio[large if instead is None else instead].median().clamp(min=0)
        loss = score[large] + price * (cost[large] - missing).clamp(min=0)
        if instead is None or float(loss.min()) < float(score[instead].sum()):
            return large[loss.argmin()].reshape(1), torch.ones_like(too_large)
    # Marginal costs change as structures go: take a part of what seems to be enough, then look again.
    enough = int((saved < 0.5 * missing).sum()) + 1
    leaves = fractions[:, None] - savings[:, order].cumsum(1)
    return order[: min(enough, int((~undercuts(leaves, final)).sum()))], too_large
