import sys

import pytest
import torch

from gebt.kernels import backend, dropout, lazy_dropout
from gebt.kernels.hashing import entry_hashes, hashed, mixed, row_keys

LARGE = 2**20 + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (7,), (33, 5), (LARGE,)])
def test_one_compiled_pass_drops_what_the_reference_drops(shape, dtype):
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight = torch.randn(shape, dtype=dtype)
    found = []
    for name in ("numba", "reference"):
        torch.manual_seed(3)
        with backend(name):
            out = dropout(x, 0.3)
        (grad,) = torch.autograd.grad((out * weight).sum(), x)
        found.append((out.detach(), grad))
    for compiled, reference in zip(*found, strict=True):
        assert torch.equal(compiled, reference)


def test_the_compiled_pass_takes_what_is_not_contiguous():
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    x = torch.ones(40, 30, requires_grad=True)
    with backend("numba"):
        out = dropout(x.t(), 0.5)
    out.sum(dim=0).sum().backward()  # an expanded gradient
    assert torch.equal(x.grad, out.detach().t())
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_many_entries_lose_their_share_scale_the_rest_and_stay_independent(p):
    torch.manual_seed(0)
    n = 4 * LARGE
    x = torch.ones(n)
    out, again = dropout(x, p), dropout(x, p)
    kept = out != 0
    spread = (p * (1 - p) / n) ** 0.5
    assert abs(1 - p - kept.float().mean()) < 5 * spread
    scale = out[kept].unique()
    assert scale.tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)
    both = kept & (again != 0)
    assert abs((1 - p) ** 2 - both.float().mean()) < 5 * (p * (1 - p)) ** 0.5 / n**0.5
    neighbours = kept[1:] & kept[:-1]
    assert abs((1 - p) ** 2 - neighbours.float().mean()) < 0.002


def test_entries_repeat_with_torchs_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(LARGE), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_second_derivative_of_the_compiled_pass_is_refused_not_wrong():
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    x = torch.randn(9, requires_grad=True)
    with backend("numba"):
        out = dropout(x, 0.5).square().sum()
        (grad,) = torch.autograd.grad(out, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@pytest.mark.parametrize("rows", [[3], [7, 0, 55], list(range(20, 60))])
def test_a_row_is_dropped_from_as_among_all_whichever_come_with_it(rows):
    x, nodes = torch.randn(60, 9), torch.tensor(rows)
    torch.manual_seed(1)
    among_all = dropout(x, 0.4)
    torch.manual_seed(1)
    alone = dropout(x[nodes], 0.4, keys=row_keys(len(rows), x.device, nodes))
    assert torch.equal(alone, among_all[nodes])


def test_hashes_of_different_ids_are_different_and_seeds_are_unlike():
    ids = torch.cat([torch.arange(2**17), torch.tensor([2**31 - 1, 2**32 - 1])])
    found = [hashed(ids, seed) for seed in (0, 1, 2, 2**40)]
    for each in found:
        assert each.unique().numel() == ids.numel()
    for one, other in zip(found, found[1:], strict=False):
        agree = ((one > 0) == (other > 0)).double().mean()
        assert abs(agree - 0.5) < 0.01
        neighbours = ((one[::2][:1000] > 0) == (other[1::2][:1000] > 0)).double()
        assert abs(neighbours.mean() - 0.5) < 0.1


@pytest.mark.parametrize("bit", [0, 9, 31])
def test_a_bit_of_an_id_changes_half_of_the_hashs_bits(bit):
    ids = torch.arange(2**14, dtype=torch.int32)
    other = ids ^ torch.tensor(1 << bit).to(torch.int32)
    changed = mixed(ids) ^ mixed(other)
    for place in range(32):
        share = ((changed >> place) & 1).double().mean()
        assert abs(share - 0.5) < 0.03


def test_rows_columns_and_seeds_do_not_drop_together():
    keys = row_keys(2**12, torch.device("cpu"), None)
    seeds = torch.tensor([5, 6, -(2**31)], dtype=torch.int32)
    one, other, third = (
        (entry_hashes(keys, 64, seed) >= 0).double() * 2 - 1 for seed in seeds
    )
    spread = one.numel() ** -0.5
    for pair in ((one, other), (one, third), (one[1:], one[:-1])):
        assert abs((pair[0] * pair[1]).mean()) < 5 * spread
    for columns in (1, 2, 8):
        assert abs((one[:, columns:] * one[:, :-columns]).mean()) < 5 * spread
    together = one.t() @ one / one.shape[0] - torch.eye(64, dtype=one.dtype)
    assert together.abs().max() < 6 * one.shape[0] ** -0.5


@pytest.mark.parametrize("rows", [1, 7, 50])
@pytest.mark.parametrize(
    "dtype, at_most", [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
def test_a_product_that_drops_block_by_block_is_that_of_the_copy(
    rows, dtype, at_most, monkeypatch
):
    monkeypatch.setattr(sys.modules["gebt.kernels.dropout"], "_ROWS", rows)
    x = torch.randn(50, 9, dtype=dtype, requires_grad=True)
    weight = torch.randn(9, 4, dtype=dtype, requires_grad=True)
    pull, some = torch.randn(50, 4, dtype=dtype), torch.randperm(50)[:20]
    keys = row_keys(50, x.device, torch.randperm(90)[:50])
    found = []
    for lazy in (False, True):
        torch.manual_seed(3)
        given = (lazy_dropout if lazy else dropout)(x, 0.4, None, keys)
        out = given.product(weight) if lazy else given @ weight
        few = given.index_select(0, some)
        few = few.written_out() if lazy else few
        grads = torch.autograd.grad((out * pull).sum() + few.sum(), (x, weight))
        found.append((out, few, *grads))
    for copied, blocked in zip(*found, strict=True):
        torch.testing.assert_close(blocked, copied, rtol=at_most, atol=at_most)
