"""Triton's kernels against their references: on a GPU, or in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gebt.kernels import _choose, backend, edge_softmax, sddmm, spmm
from gebt.kernels._choose import choose, refuses_triton

pytest.importorskip("triton", reason="needs Triton: pip install triton")
pytestmark = pytest.mark.slow

SPMM = sys.modules["gebt.kernels.spmm"]
SDDMM = sys.modules["gebt.kernels.sddmm"]
EDGE_SOFTMAX = sys.modules["gebt.kernels.edge_softmax"]

with backend("triton"):
    WHY_NOT = refuses_triton("any", torch.ones(1), None)
ON_CPU = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
DEVICES = [
    pytest.param("cpu", marks=ON_CPU),
    pytest.param("cuda", marks=pytest.mark.cuda),
]
on_each_device = pytest.mark.parametrize("device", DEVICES)

# Relative to the sum of the magnitudes of what is added up. The interpreter cuts what
# it rounds to bfloat16 off, a GPU rounds to the nearest.
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 1e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}
FEW = 32  # entries above which a row is long, in most tests
# Rows that are empty, short, as long as a chunk, and longer by one or by many chunks:
# two long ones side by side, in one chunk with short ones, first, last, alone.
LENGTHS = {
    "mixed": [0, 1, 31, 32, 33, 0, 64, 5, 200, 0, 0, 65, 66, 1, 0],
    "hub-first": [300, 0, 2, 31],
    "hub-last": [7, 0, 290],
    "hubs": [129, 257],
    "short": [3, 0, 32, 1],
    "no-entries": [0, 0, 0],
    "no-rows": [],
}


class Case:
    """A random matrix with rows of given lengths, its transpose, and operands."""

    def __init__(
        self,
        lengths: list[int],
        width: int,
        dtype: torch.dtype = torch.float32,
        index: torch.dtype = torch.int32,
        device: str = "cpu",
        columns: int = 9,
    ):
        crow = torch.tensor([0, *lengths]).cumsum(0)
        row = torch.arange(len(lengths)).repeat_interleave(crow.diff())
        col = torch.randint(columns - 1, row.shape)  # nothing reads the last column
        order = col.argsort(stable=True)
        count = torch.bincount(col, minlength=columns)
        t_crow = torch.cat([count.new_zeros(1), count.cumsum(0)])
        self.csr = crow.to(device, index), col.to(device, index)
        turned = (t_crow, row[order], order)
        self.transpose = tuple(t.to(device, index) for t in turned)
        self.value = torch.randn(len(row)).to(device, dtype)
        self.x = torch.randn(columns, width).to(device, dtype)
        self.left = torch.randn(len(lengths), width).to(device, dtype)

    def spmm(self, change: Callable[[Tensor], Tensor] = Tensor.double) -> Tensor:
        return SPMM.reference_spmm(*self.csr, change(self.value), change(self.x))

    def sddmm(self, change: Callable[[Tensor], Tensor] = Tensor.double) -> Tensor:
        return SDDMM.reference_sddmm(*self.csr, change(self.left), change(self.x))

    def turned_spmm(self, change: Callable[[Tensor], Tensor] = Tensor.double) -> Tensor:
        *csr, order = self.transpose
        value = change(self.value).index_select(0, order)
        return SPMM.reference_spmm(*csr, value, change(self.left))


def sizes(tensor: Tensor) -> Tensor:
    return tensor.double().abs()


def near(found: Tensor, truth: Tensor, size: Tensor) -> None:
    """Each element is as near the truth as its dtype allows; NaN never is."""
    assert found.shape == truth.shape
    wrong = ~((found.double() - truth).abs() <= TOLERANCE[found.dtype] * size)
    assert not wrong.any(), f"wrong at {wrong.nonzero()[:5].tolist()}"


@contextmanager
def loud_memory() -> Iterator[None]:
    """Memory that nobody wrote holds NaN inside, on a GPU too."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def check_products(case: Case, long: int) -> None:
    """An spmm, an sddmm and the backward of an spmm, into memory that holds NaN."""
    from gebt.kernels import _triton

    with loud_memory():
        out, entries = torch.empty_like(case.left), torch.empty_like(case.value)
        _triton.spmm(*case.csr, case.value, case.x, out, long)
        _triton.sddmm(*case.csr, case.left, case.x, entries, long)
        for_value, for_x = torch.empty_like(case.value), torch.empty_like(case.x)
        given = (*case.transpose, case.value, case.x, case.left)
        _triton.spmm_backward(*given, for_value, for_x, long)
    near(out, case.spmm(), case.spmm(sizes))
    near(entries, case.sddmm(), case.sddmm(sizes))
    near(for_value, case.sddmm(), case.sddmm(sizes))
    near(for_x, case.turned_spmm(), case.turned_spmm(sizes))


@on_each_device
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_rows_of_any_length_come_out_right(lengths, device):
    check_products(Case(lengths, 3, device=device), FEW)


@on_each_device
@pytest.mark.parametrize("width", [1, 3, 16, 33, 128, 200])
def test_widths_that_are_no_power_of_two_come_out_right(width, device):
    check_products(Case([0, 70, 2, 0, 33], width, device=device), FEW)


@on_each_device
def test_operands_wider_than_a_program_takes_come_out_right(device):
    from gebt.kernels._triton import _WIDEST

    check_products(Case([0, 70, 2], 2 * _WIDEST + 3, device=device), FEW)


@on_each_device
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_all_dtypes_come_out_right(dtype, index, device):
    check_products(Case([0, 3, 70, 33, 1], 7, dtype, index, device), FEW)


@on_each_device
def test_rows_about_as_long_as_a_chunk_come_out_right(device):
    from gebt.kernels._triton import LONG

    lengths = [0, 1, LONG - 1, LONG, LONG + 1, 5000, 0, 31]
    check_products(Case(lengths, 3, device=device, columns=4), LONG)


@on_each_device
def test_a_long_row_marks_all_its_chunks(device, monkeypatch):
    from gebt.kernels import _triton

    monkeypatch.setattr(_triton, "_MARKS", 2)
    check_products(Case([1, 70, 1], 1, device=device), 8)


@on_each_device
def test_products_repeat_bit_for_bit(device):
    from gebt.kernels import _triton

    case = Case([3, 70, 200], 5, device=device)
    found = []
    for _ in range(2):
        out = torch.empty_like(case.left)
        _triton.spmm(*case.csr, case.value, case.x, out, FEW)
        both = torch.empty_like(case.value), torch.empty_like(case.x)
        given = (*case.transpose, case.value, case.x, case.left)
        _triton.spmm_backward(*given, *both, FEW)
        found.append((out, *both))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@on_each_device
@pytest.mark.parametrize("needed", ["both", "value", "x"])
def test_spmm_and_its_gradients_match_the_reference(needed, device):
    case = Case(LENGTHS["mixed"], 6, torch.float64, device=device)
    found = []
    for name in ("triton", "reference"):
        value, x = leaves(case.value, case.x)
        value.requires_grad_(needed != "x")
        x.requires_grad_(needed != "value")
        with backend(name):
            out = spmm(*case.csr, value, x, case.transpose)
            (out * case.left).sum().backward()
        found.append((out, value.grad, x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@on_each_device
def test_sddmm_and_its_gradients_match_the_reference(device):
    case = Case(LENGTHS["mixed"], 6, torch.float64, device=device)
    found = []
    for name in ("triton", "reference"):
        left, right = leaves(case.left, case.x)
        with backend(name):
            out = sddmm(*case.csr, left, right, case.transpose)
            (out * case.value).sum().backward()
        found.append((out, left.grad, right.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@ON_CPU
def test_gradcheck_spmm():
    case = Case([0, 3, 1], 2, torch.float64, columns=3)
    with backend("triton"):
        assert torch.autograd.gradcheck(
            lambda v, x: spmm(*case.csr, v, x, case.transpose),
            leaves(case.value, case.x),
        )


@on_each_device
def test_operands_that_are_not_contiguous_are_taken_as_they_are(device):
    case = Case([2, 0, 40], 6, torch.float64, device=device)
    value = torch.stack([case.value, case.value], dim=1)[:, 0]
    x, left = (t.t().contiguous().t() for t in (case.x, case.left))
    with backend("triton"):
        near(spmm(*case.csr, value, x), case.spmm(), case.spmm(sizes))
        near(sddmm(*case.csr, left, x), case.sddmm(), case.sddmm(sizes))
        value, x = leaves(value, x)
        (spmm(*case.csr, value, x, case.transpose) * left).sum().backward()
    near(value.grad, case.sddmm(), case.sddmm(sizes))
    near(x.grad, case.turned_spmm(), case.turned_spmm(sizes))


@ON_CPU
def test_one_pass_gives_both_gradients_unless_somebody_looks_on(monkeypatch):
    from gebt.kernels import _triton

    passes, one_pass = [], _triton.spmm_backward

    def counted(*args: Tensor) -> None:
        passes.append(args)
        one_pass(*args)

    monkeypatch.setattr(_triton, "spmm_backward", counted)
    case = Case([2, 0, 3], 4)

    def step(*wanted: bool) -> None:
        value, x = case.value.clone(), case.x.clone()
        value.requires_grad_(wanted[0])
        x.requires_grad_(wanted[1])
        spmm(*case.csr, value, x, case.transpose).sum().backward()

    step(True, True)
    assert not passes, "nobody asked for Triton"
    with backend("triton"):
        step(True, False)
        step(False, True)
        assert not passes
        step(True, True)
        assert len(passes) == 1
        with FlopCounterMode(display=False) as counter:
            step(True, True)
    assert len(passes) == 1
    assert counter.get_total_flops() == 3 * (2 * 5 * 4)


def check_softmax(lengths: list[int], score: Tensor, index: torch.dtype) -> None:
    """A softmax and its backward, into memory that holds NaN."""
    from gebt.kernels import _triton

    device = score.device
    crow = torch.tensor([0, *lengths]).cumsum(0).to(device, index)
    grad = torch.randn(len(score)).to(score)
    with loud_memory():
        out, for_score = torch.empty_like(score), torch.empty_like(score)
        _triton.edge_softmax(crow, score, out)
        truth = EDGE_SOFTMAX.reference_edge_softmax(crow, score.double())
        weight = truth.to(score.dtype)
        _triton.edge_softmax_backward(crow, weight, grad, for_score)
    # An exponent as large as its argument's rounding error.
    reach = score.double().abs().max() if len(score) else 1.0
    near(out, truth, (4 + reach) * truth)
    rows, pushes = weight.double().split(lengths), grad.double().split(lengths)
    pairs = list(zip(rows, pushes, strict=True))
    pull = [w * (g - (w * g).sum()) for w, g in pairs]
    size = [w * (g.abs() + (w * g).abs().sum()) for w, g in pairs]
    nothing = score.double()[:0]
    near(for_score, torch.cat([nothing, *pull]), 2 * torch.cat([nothing, *size]))


@on_each_device
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_softmax_of_rows_of_any_length_comes_out_right(lengths, device):
    check_softmax(lengths, torch.randn(sum(lengths), device=device), torch.int32)


@on_each_device
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_softmax_in_all_dtypes_comes_out_right(dtype, index, device):
    score = torch.randn(sum(LENGTHS["mixed"])).to(device, dtype)
    check_softmax(LENGTHS["mixed"], score, index)


@on_each_device
def test_softmax_of_hubs_comes_out_right(device):
    lengths = [*[3] * 20, 1023, 1024, 1025, 5000, 3000, 0, *[40] * 5, 2048]
    score = torch.randn(sum(lengths), dtype=torch.float64, device=device)
    check_softmax(lengths, score, torch.int32)


@on_each_device
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_softmax_neither_overflows_nor_vanishes(shift, device):
    lengths = [*[2] * 9, 3000, 0]
    score = torch.randn(sum(lengths), dtype=torch.float64, device=device) + shift
    check_softmax(lengths, score, torch.int64)


@on_each_device
def test_edge_softmax_and_its_gradient_match_the_reference(device):
    lengths = LENGTHS["mixed"]
    crow = torch.tensor([0, *lengths], device=device).cumsum(0)
    given = torch.randn(sum(lengths), dtype=torch.float64, device=device)
    grad, found = torch.randn_like(given), []
    for name in ("triton", "reference"):
        (score,) = leaves(given)
        with backend(name):
            out = edge_softmax(crow, score)
            (out * grad).sum().backward()
        found.append((out, score.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def on_cuda(dtype: torch.dtype) -> SimpleNamespace:
    """What a refusal looks at in a tensor on CUDA."""
    return SimpleNamespace(is_cuda=True, is_cpu=False, dtype=dtype, device="cuda:0")


@pytest.mark.parametrize("operation", ["spmm", "sddmm", "edge_softmax"])
def test_triton_runs_on_cuda_where_torch_cannot_or_where_it_is_faster(operation):
    full, half = on_cuda(torch.float32), on_cuda(torch.bfloat16)
    assert refuses_triton(operation, full, None) is None
    assert "nobody has measured" in refuses_triton("propagate", full, None)
    assert refuses_triton("propagate", half, "torch needs float32") is None
    assert "for CUDA" in refuses_triton(operation, torch.ones(1), None)


def test_half_precision_on_cuda_runs_in_triton_without_being_asked_for():
    half = on_cuda(torch.bfloat16)
    half.is_floating_point = lambda: True
    few = SimpleNamespace(numel=lambda: 1)
    args = (few, few, half, half)
    assert choose("spmm", SPMM.IMPLEMENTATIONS, *args) is SPMM.triton_spmm
    assert choose("sddmm", SDDMM.IMPLEMENTATIONS, *args) is SDDMM.triton_sddmm


def test_asking_for_triton_where_it_cannot_run_says_why(monkeypatch):
    with backend("triton"):
        complex_ones = torch.ones(1, dtype=torch.complex64)
        crow, col = torch.tensor([0, 1]), torch.tensor([0])
        with pytest.raises(ValueError, match="'triton' cannot run spmm: .*complex64"):
            spmm(crow, col, complex_ones, complex_ones[:, None])
        assert "not meta" in refuses_triton("spmm", torch.ones(1, device="meta"), None)
        monkeypatch.setattr(_choose, "_interpreted", lambda: False)
        with pytest.raises(ValueError, match="only in its interpreter.*TRITON_INTERP"):
            edge_softmax(crow, torch.ones(1))
        monkeypatch.setattr(_choose, "installed", lambda package: False)
        with pytest.raises(ValueError, match="not installed: pip install triton"):
            sddmm(crow, col, torch.ones(1, 1), torch.ones(1, 1))


COMPILES = """
import torch, triton
from triton.backends.compiler import GPUTarget

class Hopper:  # as much of a driver as Triton's compiler asks for
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

triton.runtime.driver.set_active(Hopper())
run, compiled = triton.JITFunction.run, set()

def compile_only(kernel, *args, grid, warmup, **options):
    found = run(kernel, *args, grid=grid, warmup=True, **options)
    compiled.add(kernel.fn.__name__)
    assert found.asm["cubin"]

triton.JITFunction.run = compile_only
from gebt.kernels import _triton

crow, col = torch.zeros(3, dtype=torch.int32), torch.zeros(2000, dtype=torch.int32)
value = torch.zeros(2000, dtype=torch.bfloat16)
x, out = torch.zeros(2, 4, 300, dtype=torch.bfloat16)
_triton.sddmm(crow, col, x, x, value)
_triton.spmm_backward(crow, col, col, value, x, x, value, out)
_triton.edge_softmax(crow, value, value)
_triton.edge_softmax_backward(crow, value, value, value)
print(*sorted(compiled))
"""


def test_every_kernel_compiles_for_a_hopper_gpu_without_one(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": tmp_path}
    # Python 3.13 deprecates how Triton 3.7 builds a syntax tree.
    deprecated = "ignore:AnnAssign.__init__ missing:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", deprecated, "-c", COMPILES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = "_finish _pieces _rows _softmax _softmax_backward"
    assert run.stdout.split() == expected.split()
