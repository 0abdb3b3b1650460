"""What goes together can be asked for at any time, while more is united."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from fxcat.passes.analysis.unions import Unions


@pytest.mark.parametrize("seed", range(8))
def test_what_was_asked_before_changes_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    asked, unasked, graph = Unions(), Unions(), nx.Graph()
    for step in range(12):
        for unions in (asked, unasked):
            unions.fresh(5, f"layer{step}", producer=step % 3 > 0)
        graph.add_nodes_from(range(asked.count))
        a, b = torch.randint(step % 2, asked.count, (2, 2), generator=generator, dtype=torch.int32)
        for unions in (asked, unasked):
            unions.unite(a, b)
        graph.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
        if step % 3 == 0:
            asked.roots()[:] = 0  # a copy, which is the caller's own
            asked.roots(frozen=False)
            asked.has_units(a)
    expected = {label: min(members) for members in nx.connected_components(graph) for label in members}
    for unions in (asked, unasked):
        assert unions.roots().tolist() == [expected[label] for label in range(unions.count)]
    for frozen in (True, False):
        assert asked.roots(frozen=frozen).tolist() == unasked.roots(frozen=frozen).tolist()
    assert [asked.has_units(torch.tensor([label])) for label in range(asked.count)] == [
        unasked.has_units(torch.tensor([label])) for label in range(asked.count)
    ]


def test_what_is_frozen_holds_no_units() -> None:
    unions = Unions()
    labels = unions.fresh(4, "layer")
    assert unions.has_units(labels)
    assert not unions.has_units(torch.zeros(2, 3, dtype=torch.int32)) and not unions.has_units(labels[:0])
    unions.freeze(labels[:2], "layer", "kept")
    assert not unions.has_units(labels[:2]) and unions.has_units(labels[1:])
