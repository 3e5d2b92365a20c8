"""`SparseMatrix` against dense matrices, for any positions, repeated ones too.

All numbers are small and whole, so that sums are exact in any order.
"""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gebt import SparseMatrix
from gebt.kernels import backend

pytestmark = pytest.mark.slow

F64 = torch.float64
NUMBER = st.integers(-3, 3)


@st.composite
def matrices(draw, square=False):
    n = draw(st.integers(1, 7))
    m = n if square else draw(st.integers(1, 7))
    place = st.tuples(st.integers(0, n - 1), st.integers(0, m - 1), NUMBER)
    entries = draw(st.lists(place, max_size=18))
    row, col, value = torch.tensor(entries, dtype=torch.int64).view(-1, 3).unbind(1)
    return SparseMatrix.from_coo(row, col, value.to(F64), (n, m))


@st.composite
def tensors(draw, rows, columns=None):
    columns = draw(st.integers(0, 4)) if columns is None else columns
    size = rows * columns
    numbers = draw(st.lists(NUMBER, min_size=size, max_size=size))
    return torch.tensor(numbers, dtype=F64).view(rows, columns)


def written_out(matrix, value):
    """Dense, entry by entry; differentiable in the values."""
    dense = value.new_zeros(matrix.shape)
    pattern = matrix.pattern
    for e in range(pattern.nnz):
        here = torch.zeros_like(dense)
        here[pattern.row[e], pattern.col[e]] = 1
        dense = dense + here * value[e]
    return dense


@pytest.mark.parametrize("names", [[], ["reference"], ["torch"]], ids=str)
@given(matrices(), st.data())
def test_a_product_and_its_gradients_are_those_of_the_dense_matrix(names, a, data):
    assume(names != ["torch"] or a.pattern.nnz <= a.shape[0] * a.shape[1])
    x = data.draw(tensors(a.shape[1]))
    weigh = data.draw(tensors(a.shape[0], x.shape[1]))
    found = []
    for sparse in (True, False):
        value, operand = (t.clone().requires_grad_() for t in (a.value, x))
        if sparse:
            with backend(*names):
                out = a.with_value(value) @ operand
                (out * weigh).sum().backward()
        else:
            out = written_out(a, value) @ operand
            (out * weigh).sum().backward()
        nothing = torch.zeros_like(value)  # where no entry reaches the output
        found.append((out, operand.grad, nothing if value.grad is None else value.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(a.to_dense(), written_out(a, a.value))


@given(matrices(square=True), st.data())
def test_entries_sums_and_selections_are_those_of_the_dense_matrix(a, data):
    pattern, n = a.pattern, a.shape[0]
    v = data.draw(tensors(n))
    assert torch.equal(a.at_rows(v), v[pattern.row.long()])
    assert torch.equal(a.at_columns(v), v[pattern.col.long()])
    dense = a.to_dense()
    magnitudes = a.with_value(a.value.abs()).to_dense().sum(dim=1)
    assert torch.equal(a.row_sum_of_magnitudes(), magnitudes)
    assert a.row_counts().tolist() == torch.bincount(pattern.row, minlength=n).tolist()
    assert torch.equal(a.with_diagonal().to_dense(), dense + torch.eye(n, dtype=F64))
    flags = st.lists(st.booleans(), min_size=pattern.nnz, max_size=pattern.nnz)
    keep = torch.tensor(data.draw(flags), dtype=torch.bool)
    kept = a.with_value(a.value * keep).to_dense()
    assert torch.equal(a.select(keep).to_dense(), kept)
    columns = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assert torch.equal(a.select_columns(columns).to_dense(), dense[:, columns])
    assert torch.equal(SparseMatrix.from_dense(dense).to_dense(), dense)
    twice = torch.block_diag(dense, dense)
    assert torch.equal(a.repeat(2).to_dense(), twice)


@given(matrices(square=True), st.data(), st.integers(1, 3))
def test_hops_give_the_rows_that_were_asked_for_of_the_power(a, data, depth):
    n = a.shape[0]
    x = data.draw(tensors(n))
    order = data.draw(st.permutations(range(n)))
    nodes = torch.tensor(order[: data.draw(st.integers(1, n))])
    read, factors = a.hops(nodes, depth)
    expected, h = x, x if read is None else x[read]
    for factor in factors:
        # What stands for each row's own node, as a model's layers read it.
        own = h if factor.own is None else h[factor.own]
        assert own.shape[0] == factor.shape[0]
        assert torch.equal(factor.at_rows(h), own[factor.pattern.row.long()])
        h = factor @ h
        expected = a.to_dense() @ expected
    assert torch.equal(h, expected[nodes])
    assert torch.equal(a.rows(nodes).to_dense(), a.to_dense()[nodes])
