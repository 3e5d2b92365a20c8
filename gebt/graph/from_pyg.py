"""PyG's data, arrays and lists, checked and made gebt's."""

import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gebt.files import is_finite
from gebt.graph.splits import as_tensor, read_split
from gebt.sparse import Pattern, SparseMatrix

SPARSE_BELOW = 0.2
"""Share of non-zeros below which features are kept sparse (measured: X @ W with 16
columns, forward and gradient, breaks even near 0.2 on one thread)."""
Metric = Literal["accuracy", "ROC-AUC", "AP"]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of features; any other becomes float32."""
_FIELDS = ("x", "edge_index", "edge_weight", "edge_attr", "y")
_MASKS = ("train_mask", "val_mask", "test_mask")


def read_pyg(
    data: Any,
    split: Mapping[str, Any] | None,
    directed: bool | None,
    name: str,
    metric: str,
) -> dict[str, Any]:
    """The attributes of `Graph.from_pyg`'s graph."""
    if metric not in get_args(Metric):
        raise ValueError(f"`metric` must be one of {get_args(Metric)}, got {metric!r}.")
    data = _as_tensors(data)
    x = _features(data.x)
    n = x.shape[0]
    adjacency, link = _join_edges(*_edges(data, n, x.dtype), n, x.dtype, directed)
    return dict(
        x=x,
        adjacency=adjacency,
        link=link,
        num_links=int(link.max()) + 1,
        y=_labels(data.y, n),
        split=read_split(data, split, n),
        name=name,
        metric=metric,
    )


def _join_edges(
    source: Tensor,
    target: Tensor,
    weight: Tensor | None,
    n: int,
    dtype: torch.dtype,
    directed: bool | None,
) -> tuple[SparseMatrix, Tensor]:
    """The adjacency, and which link each of its entries is."""
    # low, high, and 1 for the direction from high to low: one sort tells which pairs
    # of nodes are listed, in which directions, and how often.
    key = torch.minimum(source, target).long()
    key.mul_(n).add_(torch.maximum(source, target)).mul_(2).add_(source > target)
    del source, target
    key, order = _sorted(key, weight is not None)
    edge = _differs(key)
    if again := key.numel() - int(edge.count_nonzero()):
        warnings.warn(
            f"`data.edge_index` lists {again} edges again: the first of each is "
            "kept, with its weight. A model that is given them all counts them "
            "all. `torch_geometric.utils.coalesce` of the edges and their weights "
            "adds these up.",
            stacklevel=4,
        )
    pair = _differs(key >> 1)
    back = edge & ~pair  # a pair's second direction
    told = directed is not None
    if not told:
        directed = int(back.count_nonzero()) < int(pair.count_nonzero())
        if weight is not None and not directed:
            directed = not torch.equal(weight[order[pair]], weight[order[back]])
    if directed:
        key = key[edge]
        high_to_low = (key & 1).bool()
        low, high = (key >> 1) // n, (key >> 1) % n
        target = torch.where(high_to_low, low, high)
        source = torch.where(high_to_low, high, low)
        by_row, place = _sorted(target.mul_(n).add_(source), weight is not None)
        pattern = Pattern.from_sorted(by_row // n, by_row % n, (n, n))
        link = torch.arange(by_row.numel(), device=by_row.device)
        if weight is not None:
            weight = weight[order[edge][place]]
    else:
        if weight is not None:
            # Both directions carry the weight that was listed first for the pair.
            listed = pair.cumsum(0) - 1
            first = order[pair].scatter_reduce(0, listed[back], order[back], "amin")
            if told and (other := int((weight[first][listed] != weight[order]).sum())):
                warnings.warn(
                    f"{other} edges have another weight than the same two nodes' "
                    "edge that is listed first, whose weight both directions get. "
                    "`directed=True` keeps each direction's own.",
                    stacklevel=4,
                )
            weight = weight[first]
        key = key[pair] >> 1
        del edge, pair, back
        pattern, link = join(key // n, key.remainder_(n), n)
        if weight is not None:
            weight = weight.index_select(0, link)
    if weight is None or bool((weight == 1).all()):
        ones = torch.ones(pattern.nnz, dtype=dtype, device=link.device)
        return SparseMatrix(pattern, ones), link
    return SparseMatrix(pattern, weight, weight), link


def join(low: Tensor, high: Tensor, n: int) -> tuple[Pattern, Tensor]:
    """The adjacency's positions when every link joins both ways.

    Args:
        low: (L,) integers in [0, n), the smaller end of each link.
        high: (L,) integers in [0, n), the larger. The pairs are distinct and sorted.
        n: how many nodes there are.

    Returns:
        The pattern of 2 L entries in row-major order, and (2 L,) integers, which link
        each entry is: its place in the list.
    """
    upper = Pattern.from_sorted(low, high, (n, n))
    below, lower_col, lower_link = upper.transpose
    # A row reads first the nodes below it, then those above.
    col = upper.col.new_empty(2 * upper.nnz)
    link = torch.empty_like(col)
    each = torch.arange(upper.nnz, device=col.device)
    place = each + below[1:].index_select(0, upper.row)
    col[place], link[place] = upper.col, each.to(link.dtype)
    lower_row = upper.col.index_select(0, lower_link)
    place = each.add_(upper.crow.index_select(0, lower_row))
    col[place], link[place] = lower_col, lower_link
    return Pattern(upper.crow.long() + below, col, (n, n)), link


def _as_tensors(data: Any) -> SimpleNamespace:
    """The fields that gebt reads."""
    if hasattr(data, "to_homogeneous"):
        raise ValueError(
            f"`data` is a {type(data).__name__} with several kinds of nodes or edges; "
            "gebt knows one. Use `data.to_homogeneous()`, which needs features of the "
            "same width for every kind of node."
        )
    if isinstance(data, Mapping):
        data = SimpleNamespace(**data)
    given = {name: getattr(data, name, None) for name in _FIELDS + _MASKS}
    tensors = {name: as_tensor(f"data.{name}", field) for name, field in given.items()}
    return SimpleNamespace(**tensors)


def _features(x: Any) -> Tensor | SparseMatrix:
    if x is None:
        raise ValueError(
            "`data.x` is missing: gebt needs node features. Without any, use an "
            "identity matrix, `data.x = torch.eye(data.num_nodes)`."
        )
    if x.dim() != 2:
        raise ValueError(f"`data.x` must be (nodes, features), got {tuple(x.shape)}.")
    if x.is_complex():
        raise ValueError(
            f"`data.x` must be real, got {x.dtype}. Make two features of each: "
            "`torch.view_as_real(data.x).flatten(1)`."
        )
    sparse = None
    if x.layout != torch.strided:
        coo = x.to_sparse_coo().coalesce()
        row, col = coo.indices()
        sparse = SparseMatrix.from_coo(row, col, coo.values(), (x.shape[0], x.shape[1]))
    values = x if sparse is None else sparse.value
    if values.dtype not in _DTYPES:
        values = values.float()
    if not is_finite(values):
        count = int((~values.isfinite()).sum())
        raise ValueError(
            f"`data.x` must be finite, but {count} of its values are NaN or infinite. "
            "Fill or drop them first."
        )
    if sparse is not None:
        if sparse.pattern.nnz < SPARSE_BELOW * x.numel():
            return sparse.with_value(values)
        return sparse.with_value(values).to_dense()
    if values.count_nonzero() < SPARSE_BELOW * values.numel():
        return SparseMatrix.from_dense(values)
    return values.contiguous()


def _edges(
    data: Any, n: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Source, target and weight of the edges, checked, without self-loops."""
    index = data.edge_index
    if not isinstance(index, Tensor) or index.dim() != 2 or index.shape[0] != 2:
        got = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(
            f"`data.edge_index` must be a tensor of shape (2, edges), got {got}."
        )
    if index.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"`data.edge_index` must be int64 (or int32), got {index.dtype}."
        )
    source, target = index
    weight, attribute = data.edge_weight, data.edge_attr
    if attribute is not None:
        # Integers are types of edges.
        floating = attribute.is_floating_point()
        if weight is None and floating and attribute.numel() == index.shape[1]:
            weight = attribute
        else:
            warnings.warn(
                f"`data.edge_attr`, {attribute.dtype} of shape "
                f"{tuple(attribute.shape)}, is not used: gebt knows one weight per "
                "edge. If it holds one, put that into `data.edge_weight`; else set "
                "`data.edge_attr = None`.",
                stacklevel=4,
            )
    if weight is not None:
        if weight.is_complex():
            raise ValueError(f"`data.edge_weight` must be real, got {weight.dtype}.")
        weight = weight.flatten().to(dtype)
        if weight.numel() != index.shape[1]:
            raise ValueError(
                "`data.edge_weight` must have one entry for each of the "
                f"{index.shape[1]} edges, got {weight.numel()}."
            )
        if not is_finite(weight):
            raise ValueError("`data.edge_weight` must be finite, but holds NaN or inf.")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < n:
        raise ValueError(
            f"`data.edge_index` must lie in [0, {n}), the number of rows of `data.x`, "
            f"got {int(index.min())} to {int(index.max())}."
        )
    proper = source != target
    loops = proper.numel() - int(proper.count_nonzero())
    if loops == proper.numel():
        raise ValueError(
            "the graph has no links: `data.edge_index` is empty or holds self-loops "
            "only."
        )
    if loops:
        warnings.warn(
            f"{loops} self-loops of `data.edge_index` are dropped: gebt's models add "
            "their own. A model that adds none gives other outputs without them. "
            "`torch_geometric.utils.remove_self_loops` drops them, too.",
            stacklevel=4,
        )
        source, target = source[proper], target[proper]
        weight = None if weight is None else weight[proper]
    return source, target, weight


def _sorted(key: Tensor, ordered: bool) -> tuple[Tensor, Tensor]:
    """The keys, ascending, and where each was listed, stably; nowhere if not asked."""
    if ordered:
        return key.sort(stable=True)
    if key.device.type == "cpu":
        key.numpy().sort()  # in place, and several times as fast as torch's
    else:
        key = key.sort().values
    return key, key.new_empty(0)


def _differs(key: Tensor) -> Tensor:
    """Which of ascending keys differ from the one before."""
    first = torch.ones_like(key, dtype=torch.bool)
    torch.ne(key[1:], key[:-1], out=first[1:])
    return first


def _labels(y: Any, n: int) -> Tensor | None:
    if y is None:
        return None
    if y.dim() == 2 and y.shape[1] == 1:
        y = y.squeeze(1)
    if y.dim() and y.shape[0] != n:
        raise ValueError(
            f"`data.y` must have one label for each of the {n} nodes of `data.x`, "
            f"got {y.shape[0]}."
        )
    if y.dim() == 2 and bool(((y == 0) | (y == 1)).all()):
        return y.bool()
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise ValueError(
            "`data.y` must be one integer class per node, or labels (nodes, C) of 0 "
            f"and 1; got {y.dtype} of shape {tuple(y.shape)}."
        )
    return y.long()
