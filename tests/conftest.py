"""Test set-up: one thread (the machines have few cores), and no state from one test to the next."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
