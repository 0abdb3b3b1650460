"""What every gate was found to be worth, and what its cost would be worth elsewhere: how a choice came about."""

from __future__ import annotations

import torch


class Appraisal:
    """Worths and prices of the start network's gates, as they were when each was last looked at.

    Both in units of the loss: `worth`: what closing the gate costs, infinite before that; `price`: what its cost is
    worth elsewhere, 0 before that. A gate that is worth less than its price closes. Doubles on the CPU, shape (gates at
    the start,).
    """

    def __init__(self, gates: int) -> None:
        self.worth = torch.full((gates,), torch.inf, dtype=torch.float64)
        self.price = torch.zeros(gates, dtype=torch.float64)

    def note(self, numbers: torch.Tensor, worth: torch.Tensor, price: torch.Tensor) -> None:
        """For the gates with these numbers at the start; all of shape (gates,)."""
        at = numbers.cpu().long()
        self.worth[at], self.price[at] = worth.detach().cpu().double(), price.detach().cpu().double()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been looked at yet."""
        return bool(self.worth.isinf().all())

    def state(self) -> torch.Tensor:
        """Both, shape (2, gates at the start): what `load` takes over."""
        return torch.stack([self.worth, self.price])

    def load(self, state: torch.Tensor) -> None:
        """Take over what `state` gave."""
        self.worth, self.price = (part.clone() for part in state.cpu())
