import sys

import pytest
import torch
from torch import Tensor

from gebt.kernels import Links, Part, backend, propagate, row_magnitudes
from gebt.kernels._choose import refuses_triton

PROPAGATE = sys.modules["gebt.kernels.propagate"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
NAMES = ["numba", "reference"]
with backend("triton"):
    WHY_NOT_TRITON = refuses_triton("any", torch.ones(1), None)


class Case:
    """A random undirected graph of N nodes, some of them isolated, and operands."""

    def __init__(
        self,
        width: int = 7,
        dtype: torch.dtype = torch.float64,
        index: torch.dtype = torch.int32,
        n: int = 23,
        count: int = 40,
        hub: bool = False,
    ):
        low, high = torch.triu_indices(n - 2, n - 2, offset=1)
        chosen = torch.randperm(low.numel())[:count]
        if hub:  # node 0 is linked to all
            chosen = torch.cat([torch.arange(n - 3), chosen[chosen >= n - 3]])
        low, high = low[chosen] + 1, high[chosen] + 1  # nodes 0 and n - 1 are isolated
        row, col = torch.cat([low, high]), torch.cat([high, low])
        order = (row * n + col).argsort()
        self.n, self.links, self.width = n, chosen.numel(), width
        self.row, self.col = row[order], col[order]
        self.link = torch.arange(self.links).repeat(2)[order]
        counts = torch.bincount(row, minlength=n).cumsum(0)
        self.crow = torch.cat([counts.new_zeros(1), counts]).to(index)
        self.base = torch.randn(self.links, dtype=dtype)[self.link]
        self.index, self.dtype = index, dtype
        self.factor = self.random(self.links)
        self.left, self.right = self.random(n), self.random(n)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=self.dtype, requires_grad=True)

    def matrix(self, factor: Tensor | None) -> Links:
        csr = self.crow, self.col.to(self.index)
        if factor is None:
            return Links(*csr, self.base)
        value = self.base * factor.detach()[self.link]
        return Links(*csr, value, self.link.to(self.index), self.base)

    def dense(self, factor: Tensor | None) -> Tensor:
        value = self.base if factor is None else self.base * factor[self.link]
        zeros = torch.zeros(self.n, self.n, dtype=self.dtype)
        return zeros.index_put((self.row, self.col), value)

    def part(self, rows: int | None, columns: int | None) -> Part:
        """Rows of some nodes, in any order, from all columns that they need."""
        if rows is None:
            return Part()
        wanted = torch.randperm(self.n)[:rows]
        if columns is None:
            return Part(wanted, self.place(wanted))
        near = self.dense(None)[wanted].count_nonzero(dim=0) > 0
        near[wanted] = True
        read = near.nonzero().squeeze(1)[torch.randperm(int(near.sum()))]
        return Part(wanted, self.place(wanted), read, self.place(read))

    def place(self, nodes: Tensor) -> Tensor:
        none = torch.full((self.n,), -1, dtype=torch.int32)
        none[nodes] = torch.arange(nodes.numel(), dtype=torch.int32)
        return none


def outputs(case: Case, out: Tensor, *leaves: Tensor) -> list[Tensor]:
    """The output and all gradients of a function of it that is not linear."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 7, 16, 33])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows, columns", [(None, None), (5, None), (3, 0), (23, None)])
@pytest.mark.parametrize("loops", [True, False])
def test_outputs_and_every_gradient_are_those_of_the_dense_product(
    name, width, dtype, rows, columns, loops
):
    case = Case(width, dtype)
    part = case.part(rows, columns)
    x = case.random(case.n if part.columns is None else part.columns.numel(), width)
    whole = x
    if part.columns is not None:
        zeros = torch.zeros(case.n, width, dtype=dtype)
        whole = zeros.index_copy(0, part.columns, x)
    a = case.dense(case.factor)
    if loops:
        a = a + torch.eye(case.n, dtype=dtype)
    expected = case.left[:, None] * (a @ (case.right[:, None] * whole))
    expected = expected if part.rows is None else expected[part.rows]
    leaves = case.left, case.right, case.factor, x
    with backend(name):
        matrix = case.matrix(case.factor)
        out = propagate(matrix, *leaves, loops=loops, part=part)
        found = outputs(case, out, *leaves)
    for ours, theirs in zip(found, outputs(case, expected, *leaves), strict=True):
        scale = theirs.abs().max().clamp(min=1)
        error = (ours - theirs).abs().max() / scale
        assert error <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_what_is_not_there_counts_as_one_and_gets_no_gradient(
    name, scaled, learned, index
):
    case = Case(index=index, hub=True)
    x = case.random(case.n, case.width)
    factor = case.factor if learned else None
    left = case.left.detach() if scaled else None
    a = case.dense(factor) + torch.eye(case.n, dtype=case.dtype)
    expected = a @ x if left is None else left[:, None] * (a @ x)
    leaves = (factor, x) if learned else (x,)
    with backend(name):
        out = propagate(case.matrix(factor), left, None, factor, x, loops=True)
        found = outputs(case, out, *leaves)
    for ours, theirs in zip(found, outputs(case, expected, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_constant_features_need_no_gradient(name):
    case = Case()
    x = case.random(case.n, case.width).detach()
    leaves = case.left, case.right, case.factor
    a = case.dense(case.factor) + torch.eye(case.n, dtype=case.dtype)
    expected = case.left[:, None] * (a @ (case.right[:, None] * x))
    with backend(name):
        out = propagate(case.matrix(case.factor), *leaves, x, loops=True)
        found = outputs(case, out, *leaves)
    for ours, theirs in zip(found, outputs(case, expected, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_degrees_and_their_gradient_are_those_of_the_dense_matrix(name, dtype):
    case = Case(dtype=dtype)
    expected = outputs(case, case.dense(case.factor).abs().sum(dim=1), case.factor)
    with backend(name):
        found = row_magnitudes(case.matrix(case.factor), case.factor)
        found = outputs(case, found, case.factor)
    for ours, theirs in zip(found, expected, strict=True):
        at_most = TOLERANCE[dtype]
        torch.testing.assert_close(ours, theirs, rtol=at_most, atol=at_most)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_propagate(name):
    case = Case(width=3, n=9, count=10)
    inputs = case.left, case.right, case.factor, case.random(case.n, 3)

    def function(left, right, factor, x):
        return propagate(case.matrix(factor), left, right, factor, x, loops=True)

    with backend(name):
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.skipif(WHY_NOT_TRITON is not None, reason=str(WHY_NOT_TRITON))
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_triton_matches_the_reference(loops, learned):
    case = Case(width=7, hub=True)
    x = case.random(case.n, 7)
    leaves = case.left, case.right, case.factor, x
    if not learned:
        leaves = case.left.detach(), case.right.detach(), None, x
    needed, found = leaves if learned else (x,), []
    for names in (("triton", "reference"), ("reference",)):
        with backend(*names):
            out = propagate(case.matrix(leaves[2]), *leaves, loops=loops)
            found.append(outputs(case, out, *needed))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_two_threads_and_one_give_the_same_bits():
    case = Case(width=17, dtype=torch.float32, n=400, count=9000, hub=True)
    leaves = case.left, case.right, case.factor, case.random(case.n, 17)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            with backend("numba"):
                out = propagate(case.matrix(case.factor), *leaves, loops=True)
                found.append(outputs(case, out, *leaves))
    finally:
        torch.set_num_threads(threads)
    for again in found[1:]:
        assert all(map(torch.equal, found[0], again))


def test_a_second_derivative_is_refused_not_wrong():
    case = Case()
    x = case.random(case.n, case.width)
    out = propagate(
        case.matrix(case.factor), None, None, case.factor, x, loops=True
    ).square()
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
