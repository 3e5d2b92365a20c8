import pytest
import torch

from gebt.kernels import backend, dropout

LARGE = 2**20 + 3  # beyond it numpy draws the bits, in the test below it torch does


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
    assert scale.tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)  # p has 16 bits
    both = kept & (again != 0)
    assert abs((1 - p) ** 2 - both.float().mean()) < 5 * (p * (1 - p)) ** 0.5 / n**0.5
    neighbours = kept[1:] & kept[:-1]
    assert abs((1 - p) ** 2 - neighbours.float().mean()) < 0.002


def test_many_entries_repeat_with_torchs_seed_and_leave_numpys_alone():
    import numpy as np

    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(LARGE), 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert (np.random.get_state()[1] == before).all()


def test_a_second_derivative_of_the_compiled_pass_is_refused_not_wrong():
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    x = torch.randn(9, requires_grad=True)
    with backend("numba"):
        out = dropout(x, 0.5).square().sum()
        (grad,) = torch.autograd.grad(out, x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
