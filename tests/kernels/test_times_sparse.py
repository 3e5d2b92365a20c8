import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gebt.kernels import backend, times_sparse, times_sparse_pays
from gebt.sparse import SparseMatrix


def pruned(inputs: int, outputs: int, zeros: float, dtype: torch.dtype) -> torch.Tensor:
    weight = torch.randn(inputs, outputs, dtype=dtype)
    weight[torch.rand(inputs, outputs) < zeros] = 0
    weight[:, : outputs // 3] *= torch.rand(outputs // 3, dtype=dtype) > 0.5
    return weight


def columns_of(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    columns = SparseMatrix.from_dense(weight.t())
    return columns.pattern.crow, columns.pattern.col, columns.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 33)])
@pytest.mark.parametrize("name", ["numba", "reference"])
def test_a_sparse_weight_multiplies_as_the_dense_one(name, shape, rows, dtype):
    if name == "numba":
        pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    weight = pruned(*shape, 0.6, dtype)
    x, bias = torch.randn(rows, shape[0], dtype=dtype), torch.randn(shape[1]).to(dtype)
    with backend(name), torch.no_grad():
        out = times_sparse(x, *columns_of(weight), bias)
    truth = x.double() @ weight.double() + bias
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out.double(), truth, rtol=bound, atol=bound)


def test_rows_that_are_not_contiguous_and_empty_weights():
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    weight, bias = torch.zeros(6, 4), torch.randn(4)
    x = torch.randn(6, 70).t()
    with backend("numba"):
        assert torch.equal(
            times_sparse(x, *columns_of(weight), bias), bias.expand(70, 4)
        )
        weight[2, 1] = 3
        out = times_sparse(x, *columns_of(weight), bias)
    torch.testing.assert_close(out, x @ weight + bias)


def test_only_its_entries_count_as_operations():
    weight = pruned(20, 10, 0.8, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        times_sparse(torch.randn(7, 20), *columns_of(weight), torch.zeros(10))
    assert counter.get_total_flops() == 2 * 7 * int(weight.count_nonzero())


def test_it_pays_where_it_was_measured_to():
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    assert times_sparse_pays(pruned(256, 128, 0.9, torch.float32))
    assert not times_sparse_pays(pruned(256, 128, 0.5, torch.float32))
    assert not times_sparse_pays(pruned(256, 40, 0.9, torch.float32))
    assert not times_sparse_pays(pruned(256, 128, 0.9, torch.float32).bfloat16())


def test_a_gradient_is_refused_not_wrong():
    x = torch.randn(4, 6, requires_grad=True)
    weight = pruned(6, 5, 0.5, torch.float32)
    out = times_sparse(x, *columns_of(weight), torch.zeros(5))
    with pytest.raises(NotImplementedError, match="for inference"):
        out.sum().backward()
