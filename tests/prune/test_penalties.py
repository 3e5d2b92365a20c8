"""ADMM against Eq. 3 written out by hand."""

import pytest
import torch

from gebt import ADMM


def test_admm_follows_the_updates_by_hand():
    # rho = 0.5, half of four scores is dropped.
    admm = ADMM(rho=0.5, prune_ratio=0.5)
    s = torch.tensor([1.0, -3.0, 2.0, 0.5])
    # Z = (0, -3, 2, 0), U = 0: the sum is 1 + 0.25.
    assert float(admm(s)) == 0.5 * 1.25
    admm.update(s)
    # Z as before, U = s - Z = (1, 0, 0, 0.5); s - Z + U = (2, 0, 0, 1).
    assert float(admm(s)) == 0.5 * 5
    s = torch.tensor([1.5, -3.0, 2.0, 0.5])
    # At the new s: (2.5, 0, 0, 1).
    assert float(admm(s)) == 0.5 * 7.25
    admm.update(s)
    # s + U = (2.5, -3, 2, 1), Z = (2.5, -3, 0, 0), U += s - Z: (0, 0, 2, 1).
    # s - Z + U = (-1, 0, 4, 1.5).
    assert float(admm(s)) == 0.5 * (1 + 16 + 2.25)
    admm.update(s)
    # s + U = (1.5, -3, 4, 1.5), Z = (0, -3, 4, 0), U = (1.5, 0, 0, 1.5).
    # s - Z + U = (3, 0, -2, 2).
    assert float(admm(s)) == 0.5 * (9 + 4 + 4)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_admm_follows_eq_3_on_random_scores(ratio):
    n, rho = 40, 1e-3
    admm = ADMM(rho=rho, prune_ratio=ratio)
    s = torch.randn(n, dtype=torch.float64)

    def project(v):
        smallest = v.abs().argsort()[: int(ratio * n)]
        return v.index_fill(0, smallest, 0)

    z, u = project(s), torch.zeros_like(s)
    for _ in range(5):
        expected = rho * ((s - z + u) ** 2).sum()
        torch.testing.assert_close(admm(s), expected, rtol=1e-12, atol=0)
        s = s + 0.3 * torch.randn(n, dtype=torch.float64)
        z = project(s + u)
        u = u + s - z
        admm.update(s)


def test_the_gradient_takes_target_and_dual_as_constants():
    admm = ADMM(rho=0.5, prune_ratio=0.5)
    s = torch.tensor([1.0, -3.0, 2.0, 0.5], requires_grad=True)
    admm(s).backward()
    assert s.grad.tolist() == [1.0, 0.0, 0.0, 0.5]  # 2 rho (s - Z + U)
    admm.update(s)
    s.grad = None
    admm(s).backward()
    assert s.grad.tolist() == [2.0, 0.0, 0.0, 1.0]


def test_update_leaves_the_scores_alone():
    admm = ADMM(prune_ratio=0.5)
    s = torch.tensor([1.0, -3.0], requires_grad=True)
    admm.update(s)
    assert s.tolist() == [1.0, -3.0]
    assert s.grad is None


def test_admm_drives_the_dropped_scores_to_zero():
    admm = ADMM(rho=0.1, prune_ratio=0.5)
    s = torch.tensor([1.0, 0.9, 0.3, 0.2], requires_grad=True)
    for _ in range(150):
        s.grad = None
        admm(s).backward()
        with torch.no_grad():
            s -= 0.5 * s.grad
        admm.update(s)
    torch.testing.assert_close(
        s.detach(), torch.tensor([1.0, 0.9, 0.0, 0.0]), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan")])
def test_rho_must_be_positive(rho):
    with pytest.raises(ValueError, match="`rho` must be positive, got"):
        ADMM(rho=rho, prune_ratio=0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_the_ratio_must_be_in_range(ratio):
    with pytest.raises(ValueError, match=r"`prune_ratio`.*must lie in \[0, 1\)"):
        ADMM(prune_ratio=ratio)(torch.ones(4))
