"""GCN (Kipf and Welling, ICLR 2017), and GIN, which is it without normalisation."""

from functools import partial

from torch import Tensor

from gebt.models._stack import LinearStack
from gebt.models.recipe import CHOSEN, register
from gebt.options import Fit
from gebt.sparse import Scaled, SparseMatrix


def gcn_norm(adjacency: SparseMatrix) -> SparseMatrix:
    """``D^-1/2 (A + I) D^-1/2`` with D the sum of |value| over a row, plus 1.

    Differentiable in the values, through the degrees too. Kept with the adjacency
    while its values are constant.
    """

    def build() -> SparseMatrix:
        scale = _gcn_scale(adjacency)
        looped = adjacency.with_diagonal()
        left, right = looped.at_rows(scale), looped.at_columns(scale)
        return looped.with_value(left * looped.value * right)

    return adjacency.derived("gcn_norm", build)


def gcn_matrix(adjacency: SparseMatrix) -> SparseMatrix | Scaled:
    """`gcn_norm`, written out or not."""
    if adjacency.factored:
        scale = _gcn_scale(adjacency)
        return Scaled(adjacency, scale, scale, loops=True)
    return gcn_norm(adjacency)


def _gcn_scale(adjacency: SparseMatrix) -> Tensor:
    """(N,) ``D^-1/2``."""
    return (adjacency.row_sum_of_magnitudes() + 1).rsqrt()


class _Sum(LinearStack):
    """A stack that adds up what the entries of each row bring: those of 0 nothing."""

    ignores_zeros = True

    def paper_macs(self, nodes: int, entries: int, kept: int) -> int:
        """``N w + E F``: aggregating first in layer 1 and never again.

        The weights of own paths and of maps count as all others; F is the width that
        the first layer gets, which after an input map is that map's.
        """
        return nodes * kept + entries * self.first().weight.shape[0]


class GCN(_Sum):
    """GCN with ReLU between layers and dropout before each, features included."""

    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix | Scaled:
        """`gcn_norm`."""
        return gcn_matrix(adjacency)


class GIN(_Sum):
    """Graph isomorphism network, GIN-0, with one linear map a layer.

    ``(A + I) (X W + c) + b``: it sums where GCN averages. Arguments as for `GCN`.

    Source: Xu et al., ICLR 2019, with eps = 0. You et al. count its operations as
    GCN's, so theirs has one linear map a layer too.
    """

    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix | Scaled:
        """``A + I``."""
        if adjacency.factored:
            return Scaled(adjacency, loops=True)
        return adjacency.derived("looped", adjacency.with_diagonal)


register(
    "gcn",
    GCN,
    about="GCN of two layers",
    source="Kipf and Welling 2017; epochs of You et al. 2022",
    hidden=16,
    dropout=0.5,
    fit=Fit(lr=0.01, weight_decay=5e-4, decay="first", epochs=100),
)
register(
    "gcn-res",
    partial(GCN, layers=3, residual=True, norm="batch"),
    about="GCN of three layers, own paths and batch norm",
    source="shape of Luo et al. 2024; chosen on tolokers' and minesweeper's validation "
    "nodes",
    hidden=64,
    dropout=0.2,
    fit=Fit(lr=0.01, weight_decay=5e-4, decay="all", epochs=200),
)
register(
    "gin",
    GIN,
    about="GIN-0 of two layers, one linear map each",
    source=CHOSEN,
    hidden=64,
    dropout=0.8,
    fit=Fit(lr=0.01, weight_decay=5e-3, decay="all", epochs=200),
)
