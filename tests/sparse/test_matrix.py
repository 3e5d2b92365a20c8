import pytest
import torch
from torch import Tensor

from gebt.kernels import backend, sddmm
from gebt.sparse import Pattern, SparseMatrix

F64 = torch.float64


def example(*, requires_grad: bool = False) -> SparseMatrix:
    """[[0, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]], given out of order."""
    row, col = torch.tensor([2, 0, 2]), torch.tensor([3, 1, 0])
    value = torch.tensor([4.0, 2.0, 3.0], requires_grad=requires_grad)
    return SparseMatrix.from_coo(row, col, value, (3, 4))


def square(n: int = 30, nnz: int = 60, *, requires_grad: bool = False) -> SparseMatrix:
    """Random, with empty rows and, being so sparse, short reach."""
    key = torch.randperm(n * (n - 3))[:nnz]
    value = torch.randn(nnz, dtype=F64, requires_grad=requires_grad)
    return SparseMatrix.from_coo(key // n, key % n, value, (n, n))


DENSE = torch.tensor([[0.0, 2, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]])


def test_from_coo_takes_any_order():
    matrix = example()
    assert torch.equal(matrix.to_dense(), DENSE)
    assert matrix.value.tolist() == [2.0, 3.0, 4.0]
    assert matrix.pattern.crow.tolist() == [0, 1, 1, 3]
    assert matrix.pattern.col.tolist() == [1, 0, 3]
    assert matrix.pattern.row.tolist() == [0, 2, 2]
    assert (matrix.shape, matrix.pattern.nnz, matrix.dtype) == (
        (3, 4),
        3,
        torch.float32,
    )
    assert repr(matrix) == "SparseMatrix(3 x 4, 3 entries, torch.float32)"


def test_any_permutation_of_the_entries_is_the_same_matrix():
    row, col = torch.randint(9, (40,)), torch.randint(7, (40,))
    value = torch.randn(40, dtype=F64)
    expected = torch.zeros(9, 7, dtype=F64).index_put(
        (row, col), value, accumulate=True
    )
    for _ in range(5):
        p = torch.randperm(40)
        matrix = SparseMatrix.from_coo(row[p], col[p], value[p], (9, 7))
        torch.testing.assert_close(matrix.to_dense(), expected)
        torch.testing.assert_close(matrix @ torch.eye(7, dtype=F64), expected)


def test_gradients_of_from_coo_reach_the_values_in_their_own_order():
    value = torch.tensor([4.0, 2.0, 3.0], requires_grad=True)
    row, col = torch.tensor([2, 0, 2]), torch.tensor([3, 1, 0])
    x = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    (SparseMatrix.from_coo(row, col, value, (3, 4)) @ x).sum().backward()
    assert value.grad.tolist() == [1000.0, 10.0, 1.0]


def test_from_dense_is_the_inverse_of_to_dense():
    assert torch.equal(SparseMatrix.from_dense(DENSE).to_dense(), DENSE)
    empty = SparseMatrix.from_dense(torch.zeros(3, 2))
    assert empty.pattern.nnz == 0
    assert torch.equal(empty @ torch.ones(2, 5), torch.zeros(3, 5))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_positions_are_int32_where_that_is_enough(index):
    row, col = torch.tensor([0, 1], dtype=index), torch.tensor([1, 0], dtype=index)
    pattern = SparseMatrix.from_coo(row, col, torch.ones(2), (2, 2)).pattern
    assert pattern.crow.dtype == pattern.col.dtype == torch.int32
    assert {t.dtype for t in pattern.transpose} == {torch.int32}
    wide = Pattern(torch.tensor([0, 1]), torch.tensor([0]), (1, 2**31))
    assert wide.crow.dtype == wide.col.dtype == torch.int64


@pytest.mark.parametrize("width", [1, 7, 16])
def test_a_product_and_its_gradients_are_those_of_the_dense_matrix(width):
    matrix = square(requires_grad=True)
    x = torch.randn(30, width, dtype=F64, requires_grad=True)
    weight = torch.randn(30, width, dtype=F64)
    value = matrix.value.detach().requires_grad_()
    dense = matrix.with_value(value).to_dense()
    dense.retain_grad()
    y = x.detach().requires_grad_()

    leaf = matrix.value.detach().requires_grad_()
    out = matrix.with_value(leaf) @ x
    (out * weight).sum().backward()
    ((dense @ y) * weight).sum().backward()

    torch.testing.assert_close(out, dense @ y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(leaf.grad, value.grad, rtol=1e-10, atol=1e-10)


def test_the_transpose_is_built_only_for_a_gradient_of_x():
    matrix, x = square(), torch.randn(30, 2, dtype=F64, requires_grad=True)
    matrix @ x.detach()
    with torch.no_grad():
        matrix @ x
    assert "transpose" not in vars(matrix.pattern)
    matrix @ x
    assert "transpose" in vars(matrix.pattern)
    crow, col, order = matrix.pattern.transpose
    turned = SparseMatrix(Pattern(crow, col, (30, 30)), matrix.value[order])
    assert torch.equal(turned.to_dense(), matrix.to_dense().t())


def test_with_value_shares_positions_and_detach_drops_gradients():
    matrix = example(requires_grad=True)
    other = matrix.with_value(torch.ones(3))
    assert other.pattern is matrix.pattern
    assert torch.equal(other.to_dense(), (DENSE != 0).float())
    assert not matrix.detach().value.requires_grad
    assert torch.equal(matrix.detach().to_dense(), DENSE)


def test_degrees_are_sums_of_magnitudes_over_rows():
    matrix = example().with_value(torch.tensor([-2.0, 3.0, -4.0]))
    assert matrix.row_sum_of_magnitudes().tolist() == [2.0, 0.0, 7.0]


def test_with_diagonal_adds_the_identity_after_each_row():
    matrix = square(requires_grad=True)
    looped = matrix.with_diagonal()
    eye = torch.eye(30, dtype=F64)
    assert torch.equal(looped.to_dense(), matrix.to_dense() + eye)
    assert looped.pattern.nnz == matrix.pattern.nnz + 30
    assert torch.equal(looped.pattern.col[(looped.pattern.crow[1:] - 1).long()],
                       torch.arange(30, dtype=torch.int32))  # fmt: skip
    x = torch.randn(30, 3, dtype=F64)
    torch.testing.assert_close(looped @ x, matrix @ x + x)
    value = matrix.value.detach().requires_grad_()
    weight = torch.randn(90, dtype=F64)
    (matrix.with_value(value).with_diagonal().value * weight).sum().backward()
    assert torch.equal(value.grad, weight[matrix.pattern.with_diagonal()[1]])


def test_with_diagonal_of_an_empty_matrix_is_the_identity():
    none = torch.empty(0, dtype=torch.int64)
    matrix = SparseMatrix.from_coo(none, none, torch.empty(0), (4, 4))
    assert torch.equal(matrix.with_diagonal().to_dense(), torch.eye(4))


def test_rows_come_in_the_order_asked_for_repeats_and_empty_ones_included():
    matrix = example()
    picked = matrix.rows(torch.tensor([2, 1, 0, 2]))
    assert torch.equal(picked.to_dense(), DENSE[[2, 1, 0, 2]])
    none = matrix.rows(torch.empty(0, dtype=torch.int64))
    assert none.shape == (0, 4)
    assert torch.equal(none @ torch.ones(4, 2), torch.empty(0, 2))


def test_gradients_through_rows():
    value = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    matrix = example().with_value(value)
    matrix.rows(torch.tensor([2, 2])).to_dense().sum().backward()
    assert value.grad.tolist() == [0.0, 2.0, 2.0]


def multiply(read: Tensor | None, factors: list[SparseMatrix], x: Tensor) -> Tensor:
    x = x if read is None else x.index_select(0, read)
    for factor in factors:
        x = factor @ x
    return x


@pytest.mark.parametrize("nnz", [25, 60, 400])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hops_give_the_rows_of_the_power_and_its_gradients(depth, nnz):
    matrix = square(nnz=nnz)
    nodes = torch.tensor([5, 0, 17, 29])
    weight = torch.randn(4, 3, dtype=F64)
    results = []
    for restricted in (True, False):
        value = matrix.value.clone().requires_grad_()
        x = torch.linspace(-1, 2, 90, dtype=F64).view(30, 3).requires_grad_()
        learned = matrix.with_value(value)
        if restricted:
            read, factors = learned.hops(nodes, depth)
            assert len(factors) == depth
            assert factors[-1].shape[0] == 4
            out = multiply(read, factors, x)
        else:
            power = torch.linalg.matrix_power(learned.to_dense(), depth)
            out = power[nodes] @ x
        (out * weight).sum().backward()
        results.append((out, value.grad, x.grad))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_hops_read_only_what_the_rows_depend_on_and_the_rows_own_nodes():
    # A path 0 <- 1 <- 2 <- 3 <- 4: two hops from node 0 read nodes 0, 1 and 2.
    row, col = torch.arange(4), torch.arange(1, 5)
    path = SparseMatrix.from_coo(row, col, torch.tensor([2.0, 3, 5, 7]), (5, 5))
    read, factors = path.hops(torch.tensor([0]), 2)
    assert read.tolist() == [0, 1, 2]
    first, second = factors
    assert first.to_dense().tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    assert first.pattern.own.tolist() == [0, 1]
    assert second.to_dense().tolist() == [[0.0, 2.0]]
    assert second.pattern.own.tolist() == [0]
    read, factors = path.hops(torch.tensor([4]), 2)  # a row without entries
    assert read.tolist() == [4]
    assert multiply(read, factors, torch.ones(5, 1)).tolist() == [[0.0]]


def test_hops_of_all_rows_are_the_matrix_itself():
    matrix = square()
    assert matrix.hops(None, 2) == (None, [matrix, matrix])
    read, factors = square(nnz=800).hops(torch.arange(30), 2)
    assert read is None  # everything is read, so nothing is renumbered
    assert factors[0].shape == (30, 30)


@pytest.mark.parametrize("nnz", [25, 60, 400, 800])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_hop_reads_the_nodes_whose_rows_it_computes(depth, nnz):
    matrix = square(nnz=nnz)
    nodes = torch.tensor([17, 5, 29, 5])  # in no order, one of them twice
    read, factors = matrix.hops(nodes, depth)
    # Follow each node's number through the hops: it must arrive where it was asked.
    name = torch.arange(30) if read is None else read
    for factor in factors:
        assert factor.shape[1] == name.numel()
        own = factor.pattern.own
        name = name if own is None else name[own]
        assert factor.shape[0] == name.numel()
    assert torch.equal(name, nodes)


def test_a_matrix_of_its_own_nodes_has_no_own_positions():
    matrix = square()
    assert matrix.pattern.own is None
    assert matrix.with_diagonal().pattern.own is None
    _, factors = matrix.hops(torch.tensor([3]), 1)
    copy = factors[0].with_value(factors[0].value).to("cpu")
    assert torch.equal(copy.pattern.own, factors[0].pattern.own)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_repeat_is_the_block_diagonal(times):
    matrix = example()
    pattern = matrix.pattern.repeat(times)
    assert pattern.crow.dtype == pattern.col.dtype == torch.int32
    blocks = SparseMatrix(pattern, matrix.value.repeat(times))
    assert torch.equal(blocks.to_dense(), torch.block_diag(*[DENSE] * times))
    assert matrix.pattern.repeat(times) is pattern


def test_repeats_of_no_entries_and_no_times_are_empty():
    none = torch.empty(0, dtype=torch.int64)
    empty = SparseMatrix.from_coo(none, none, torch.empty(0), (3, 4)).pattern
    assert empty.repeat(2).shape == (6, 8)
    assert empty.repeat(2).crow.tolist() == [0] * 7
    assert example().pattern.repeat(0).shape == (0, 0)


def test_edge_index_holds_sources_then_targets_as_pyg_does():
    pattern = example().pattern
    assert pattern.edge_index.tolist() == [[1, 0, 3], [0, 2, 2]]
    assert pattern.edge_index.dtype == torch.int64
    assert pattern.edge_index is pattern.edge_index


def test_find_gives_the_place_of_each_position_or_minus_one():
    # Columns in any order within a row, one position twice.
    row, col = torch.tensor([0, 0, 2, 2]), torch.tensor([3, 1, 0, 0])
    pattern = Pattern.from_sorted(row, col, (3, 4))
    wanted = torch.tensor([[2, 0], [0, 1], [0, 3], [0, 0], [1, 1], [2, 3], [-1, 4]])
    assert pattern.find(*wanted.t()).tolist() == [2, 1, 0, -1, -1, -1, -1]
    outside = torch.tensor([[0, 4], [0, -1], [3, 0], [2, 4]])  # no neighbour's place
    assert pattern.find(*outside.t()).tolist() == [-1] * 4
    empty = Pattern.from_sorted(row[:0], col[:0], (3, 4))
    assert empty.find(*wanted.t()).tolist() == [-1] * 7


def test_select_keeps_some_entries():
    matrix = example(requires_grad=True)
    kept = matrix.select(torch.tensor([True, False, True]))
    expected = DENSE.clone()
    expected[2, 0] = 0
    assert torch.equal(kept.to_dense(), expected)
    assert kept.shape == (3, 4)
    assert matrix.select(torch.zeros(3, dtype=torch.bool)).pattern.nnz == 0


def test_select_columns_renumbers_them():
    kept = example().select_columns(torch.tensor([True, False, True, True]))
    assert kept.shape == (3, 3)
    assert torch.equal(kept.to_dense(), DENSE[:, [0, 2, 3]])
    none = example().select_columns(torch.zeros(4, dtype=torch.bool))
    assert none.shape == (3, 0)


def test_derived_results_are_kept_while_the_values_are_constant():
    matrix, calls = example(), []
    for _ in range(3):
        assert matrix.derived("sum", lambda: calls.append(1) or len(calls)) == 1
    assert matrix.derived("other", lambda: "other") == "other"


def test_a_change_in_place_is_seen():
    matrix = example()
    nodes = torch.tensor([2, 0])
    before = matrix.rows(nodes).to_dense()
    matrix.value.mul_(10)
    assert torch.equal(matrix.rows(nodes).to_dense(), 10 * before)
    wide = square()
    x = torch.randn(30, 2, dtype=F64)
    first = multiply(*wide.hops(nodes, 2), x)
    wide.value.mul_(10)
    torch.testing.assert_close(multiply(*wide.hops(nodes, 2), x), 100 * first)


def test_results_of_values_that_learn_are_never_kept():
    value = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    matrix, nodes = example().with_value(value), torch.tensor([2])
    for _ in range(2):  # a kept graph would be freed by the first backward
        matrix.rows(nodes).to_dense().square().sum().backward()
        with torch.no_grad():
            value.add_(1)
    assert value.grad.tolist() == [0.0, 2 * 3.0 + 2 * 4.0, 2 * 4.0 + 2 * 5.0]
    calls: list[int] = []
    matrix.derived("key", lambda: calls.append(1))
    matrix.derived("key", lambda: calls.append(1))
    assert len(calls) == 2


def test_equal_but_different_row_lists_are_not_mixed_up():
    matrix = example()
    for _ in range(12):  # more than are kept
        nodes = torch.randint(3, (2,))
        assert torch.equal(matrix.rows(nodes).to_dense(), DENSE[nodes])


def test_to_copies_to_a_device():
    copy = example().to("cpu")
    assert torch.equal(copy.to_dense(), DENSE)
    assert copy.device == torch.device("cpu")


def test_a_product_with_the_wrong_shape_is_refused():
    for x in (torch.ones(3, 2), torch.ones(4), torch.ones(1, 4, 2)):
        with pytest.raises(ValueError, match=r"shape \(3, 4\) multiplies .*\(4, F\)"):
            example() @ x


def test_a_product_with_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"is torch.float32, the tensor torch.float64"):
        example() @ torch.ones(4, 2, dtype=F64)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one entry for each of the 3 positions"):
        example().with_value(torch.ones(4))
    with pytest.raises(ValueError, match=r"`value` must have .* got shape \(3, 1\)"):
        example().with_value(torch.ones(3, 1))


@pytest.mark.parametrize(
    ("row", "col", "words"),
    [
        ([0, 3], [0, 0], r"`row` must lie in \[0, 3\), got 0 to 3"),
        ([0, 0], [-1, 0], r"`col` must lie in \[0, 4\), got -1 to 0"),
        ([0, 0], [0, 4], r"`col` must lie in \[0, 4\), got 0 to 4"),
        ([0], [0, 0], r"`row` must be integers of the shape of `value`, \(2,\)"),
        ([0, 0], [0.0, 1.0], "`col` must be integers .* got torch.float32"),
    ],
)
def test_bad_coordinates_are_refused(row, col, words):
    with pytest.raises(ValueError, match=words):
        SparseMatrix.from_coo(
            torch.tensor(row), torch.tensor(col), torch.ones(2), (3, 4)
        )


def test_rows_and_hops_follow_an_index_that_is_refilled(graph):
    from gebt.models import GCN

    model = GCN(graph.num_features, 4, 3).eval()
    rows = torch.arange(5)
    model(graph.x, graph.adjacency, rows)
    rows.copy_(torch.arange(50, 55))
    expected = model(graph.x, graph.adjacency)[50:55]
    torch.testing.assert_close(model(graph.x, graph.adjacency, rows), expected)


def test_inference_mode_leaves_nothing_that_training_cannot_use(sparse_graph):
    import gebt

    graph = sparse_graph
    model = gebt.models.GCN(graph.num_features, 4, 3).eval()
    with torch.inference_mode():
        rows = torch.arange(5)
        some = model(graph.x, graph.adjacency, rows)
        every = model(graph.x, graph.adjacency)
    torch.testing.assert_close(some, every[:5])
    gebt.train(model, graph, epochs=1)


def test_what_nodes_have_is_read_at_each_entrys_ends_by_hand():
    row, col = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0, 2, 1])
    matrix = SparseMatrix.from_coo(row, col, torch.ones(4), (3, 3))
    v = torch.tensor([[1.0], [10.0], [100.0]])
    assert matrix.at_rows(v).flatten().tolist() == [1, 10, 10, 100]
    assert matrix.at_columns(v).flatten().tolist() == [100, 1, 100, 10]
    assert matrix.row_counts().tolist() == [1, 2, 1]
    # The rows of nodes 2 and 1 alone: what node 1 has is still node 1's.
    read, (last,) = matrix.hops(torch.tensor([2, 1]), 1)
    near = v if read is None else v[read]
    assert last.at_rows(near).flatten().tolist() == [100, 10, 10]
    assert last.at_columns(near).flatten().tolist() == [10, 1, 100]
    twice = last.repeat(2)
    assert torch.equal(
        twice.at_rows(near.repeat(2, 1)), last.at_rows(near).repeat(2, 1)
    )


def test_more_entries_than_positions_have_a_gradient_each():
    row = torch.tensor([0, 0, 0])
    value = torch.ones(3, dtype=F64, requires_grad=True)
    matrix = SparseMatrix.from_coo(row, row, value, (1, 1))
    x = torch.full((1, 2), 5.0, dtype=F64)
    (matrix @ x).sum().backward()
    assert value.grad.tolist() == [10, 10, 10]
    with backend("torch"), pytest.raises(ValueError, match="no more entries than"):
        sddmm(matrix.pattern.crow, matrix.pattern.col, x, x)


def test_constant_values_are_put_in_the_transposes_order_once():
    matrix = square()
    x = torch.randn(30, 3, dtype=F64, requires_grad=True)
    expected = matrix.to_dense().t() @ torch.ones(30, 3, dtype=F64)

    def gathers() -> int:
        x.grad = None
        out = matrix @ x
        with torch.profiler.profile() as seen:
            out.sum().backward()
        torch.testing.assert_close(x.grad, expected)
        return sum("index_select" in event.name for event in seen.events())

    assert gathers() == 0
    with torch.no_grad():
        matrix.value.mul_(2)
    expected = 2 * expected
    assert gathers() == 0
    # Learned values are others in every epoch.
    matrix = matrix.with_value(matrix.value.clone().requires_grad_())
    assert gathers() > 0
