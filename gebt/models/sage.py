"""GraphSAGE with the mean aggregator (Hamilton et al., NeurIPS 2017)."""

from torch import Tensor

from gebt.models._stack import LinearStack
from gebt.models.recipe import CHOSEN, register
from gebt.options import Fit
from gebt.sparse import Scaled, SparseMatrix


def mean_norm(adjacency: SparseMatrix) -> SparseMatrix:
    """Each entry divided by the number of entries in its row.

    Dropped links do not count, whatever the values of those that stay: a link's value
    scales its message. Kept with the adjacency while its values are constant.
    """

    def build() -> SparseMatrix:
        share = adjacency.at_rows(_mean_scale(adjacency))
        return adjacency.with_value(adjacency.value * share)

    return adjacency.derived("mean_norm", build)


def sage_matrix(adjacency: SparseMatrix) -> SparseMatrix | Scaled:
    """`mean_norm`, written out or not."""
    if adjacency.factored:
        return Scaled(adjacency, _mean_scale(adjacency), loops=False)
    return mean_norm(adjacency)


def _mean_scale(adjacency: SparseMatrix) -> Tensor:
    """(N,) one divided by the number of entries in a row; 1 where there are none."""
    return adjacency.row_counts().clamp(min=1).to(adjacency.dtype).reciprocal()


class GraphSAGE(LinearStack):
    """GraphSAGE: a node's own features and the mean of its neighbours', each weighted.

    A link's value scales its message; the mean divides by the number of links kept.
    Arguments as for `GCN`.
    """

    own_path = True

    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix | Scaled:
        """`mean_norm`."""
        return sage_matrix(adjacency)

    def paper_macs(self, nodes: int, entries: int, kept: int) -> int:
        """``100 N w / 2``, no aggregation.

        For 100 sampled neighbours, and one weight a layer where there are two.
        """
        return 100 * nodes * kept // 2


register(
    "sage",
    GraphSAGE,
    about="GraphSAGE of two layers, mean of all neighbours",
    source=CHOSEN,
    hidden=64,
    dropout=0.9,
    fit=Fit(lr=0.01, weight_decay=2e-3, decay="all", epochs=200),
)
