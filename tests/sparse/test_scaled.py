import sys

import pytest
import torch
from torch import Tensor

from gebt.models import GCN, GIN, GraphSAGE, gcn_norm
from gebt.models.sage import mean_norm
from gebt.sparse import Pattern, Scaled, SparseMatrix

F64 = torch.float64
PROPAGATE = sys.modules["gebt.kernels.propagate"]


def links(n: int = 30, count: int = 45) -> tuple[Pattern, Tensor]:
    """An undirected pattern with isolated nodes, and the link of each entry."""
    low, high = torch.triu_indices(n - 4, n - 4, offset=1)
    chosen = torch.randperm(low.numel())[:count]
    low, high = low[chosen], high[chosen]
    row, col = torch.cat([low, high]), torch.cat([high, low])
    order = (row * n + col).argsort()
    pattern = Pattern.from_sorted(row[order], col[order], (n, n))
    return pattern, torch.arange(count).repeat(2)[order]


def undirected(*, weighted: bool = False) -> tuple[SparseMatrix, Tensor]:
    """A symmetric adjacency and its links."""
    pattern, link = links()
    weight = torch.randn(45, dtype=F64) if weighted else torch.ones(45, dtype=F64)
    return SparseMatrix(pattern, weight[link]), link


def scaled(model: type, adjacency: SparseMatrix) -> Scaled:
    if model is GraphSAGE:
        count = adjacency.row_counts().clamp(min=1).to(F64)
        return Scaled(adjacency, 1 / count, loops=False)
    if model is GIN:
        return Scaled(adjacency, loops=True)
    scale = (adjacency.row_sum_of_magnitudes() + 1).rsqrt()
    return Scaled(adjacency, scale, scale, loops=True)


WRITTEN_OUT = {
    GCN: gcn_norm,
    GIN: SparseMatrix.with_diagonal,
    GraphSAGE: mean_norm,
}


@pytest.fixture(params=["product by product", "fused"])
def way(request, monkeypatch) -> str:
    """As on small graphs, or as on large ones."""
    if request.param == "fused":
        monkeypatch.setattr(PROPAGATE, "_LARGE", 0)
    return request.param


@pytest.mark.parametrize("model", [GCN, GIN, GraphSAGE])
@pytest.mark.parametrize("wanted", [None, 1, 3, 30])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_products_are_those_of_the_matrix_written_out(model, wanted, depth, way):
    adjacency, link = undirected(weighted=True)
    score = torch.randn(45, dtype=F64, requires_grad=True)
    x = torch.randn(30, 5, dtype=F64, requires_grad=True)
    nodes = None if wanted is None else torch.randperm(30)[:wanted]
    found = []
    for make in (scaled, lambda model, a: WRITTEN_OUT[model](a)):
        matrix = make(model, adjacency.times(score, link))
        if make is scaled:
            assert matrix._fused() == (way == "fused")
        read, factors = matrix.hops(nodes, depth)
        h = x if read is None else x[read]
        for factor in factors:
            own = h if factor.own is None else h[factor.own]
            h = factor @ h + own
        found.append((h, *torch.autograd.grad(h.square().sum(), (score, x))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_symmetric_matrix_is_found_out():
    adjacency, link = undirected(weighted=True)
    assert adjacency.symmetric
    assert adjacency.detach().symmetric
    assert not adjacency.with_value(torch.randn(90, dtype=F64)).symmetric
    assert not adjacency.rows(torch.arange(29)).symmetric
    keep = torch.rand(45) < 0.5
    assert adjacency.select(keep[link]).symmetric
    lost = torch.ones(90, dtype=torch.bool)
    lost[torch.randint(90, ())] = False
    assert not adjacency.select(lost).symmetric


def test_scores_keep_it_symmetric_where_both_directions_are_one_link():
    adjacency, link = undirected()
    score = torch.randn(45, dtype=F64, requires_grad=True)
    product = adjacency.times(score, link)
    assert product.symmetric
    assert product.detach().symmetric
    torch.testing.assert_close(product.value, adjacency.value * score[link])
    assert not adjacency.with_value(product.value).symmetric  # nobody can know
    other = link.clone()
    other[0] = (link[0] + 1) % 45
    assert not adjacency.times(score, other).symmetric
    assert not adjacency.times(score, torch.zeros_like(link)).symmetric  # one for all


def test_a_matrix_in_blocks_of_few_entries_is_the_same(monkeypatch):
    adjacency, link = undirected(weighted=True)
    rows = adjacency.pattern.row
    for block in (1, 7, 90):
        monkeypatch.setattr("gebt.sparse.pattern.BLOCK", block)
        found = list(adjacency.pattern.blocks())
        assert torch.equal(torch.cat([row for row, _ in found]), rows)
        assert [e.start for _, e in found[1:]] == [e.stop for _, e in found[:-1]]
        assert adjacency.pattern.mirrors(link)
        assert not adjacency.pattern.mirrors(torch.arange(90))


def test_nodes_that_are_wanted_twice_are_given_twice(way):
    adjacency, link = undirected()
    matrix = Scaled(adjacency, loops=True)
    nodes = torch.tensor([3, 5, 3])
    x = torch.randn(30, 4, dtype=F64, requires_grad=True)
    read, (factor,) = matrix.hops(nodes, 1)
    out = factor @ (x if read is None else x[read])
    expected = (adjacency.to_dense() @ x + x)[nodes]
    torch.testing.assert_close(out, expected)
    found, truth = (
        torch.autograd.grad(o.square().sum(), x)[0] for o in (out, expected)
    )
    torch.testing.assert_close(found, truth)
