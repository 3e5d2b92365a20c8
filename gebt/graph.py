"""The graph a model learns on: features, adjacency, labels, split.

Links, not edges, are what is scored and pruned: both directed entries of an
undirected edge carry the same link id, so the adjacency stays symmetric by
construction. Link ids are those of the full graph, in every part of it.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gebt.locality import community_order
from gebt.sparse import Pattern, SparseMatrix

SPARSE_BELOW = 0.2
"""Share of non-zeros below which features are kept sparse (measured: X @ W with 16
columns, forward and gradient, breaks even near 0.2 on one thread)."""
Metric = Literal["accuracy", "ROC-AUC"]


@dataclass(frozen=True, eq=False)
class Split:
    """Node indices, int64, of each part."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class LinkSplit:
    """Pairs of nodes, (P, 2) int64: links of each part and pairs to rank them among."""

    train: Tensor
    val: Tensor
    val_negative: Tensor
    test: Tensor
    test_negative: Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with N nodes, E directed entries and L links.

    Attributes:
        x: (N, F) features, dense or sparse.
        adjacency: (N, N) without self-loops; ``row`` is the target of a message,
            ``col`` its source, values are edge weights (1 where there are none).
        link: (E,) link id of each adjacency entry.
        num_links: L of the full graph, also after links were dropped.
        y: (N,) int64 classes, (N, C) boolean labels, or None.
        split: the nodes, or the links, to train, validate and test on, or None.
        name: what the graph is called in reports.
        order: (N,) int64, which of the given graph's nodes each row is, after
            `reorder`; None in the given order.
        metric: how predicted classes are scored, ``"accuracy"`` or, of two classes,
            ``"ROC-AUC"``. The data set's, so that all its parts are scored alike.
    """

    x: Tensor | SparseMatrix
    adjacency: SparseMatrix
    link: Tensor
    num_links: int
    y: Tensor | None = None
    split: Split | LinkSplit | None = None
    name: str = "graph"
    order: Tensor | None = None
    metric: Metric = "accuracy"

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        """F."""
        return self.x.shape[1]

    @cached_property
    def num_classes(self) -> int:
        """C, the largest class + 1, or the number of labels."""
        if self.y is None:
            raise ValueError(f"the graph {self.name!r} has no labels.")
        if self.y.dim() == 2:
            return self.y.shape[1]
        if (largest := int(self.y.max())) < 0:
            raise ValueError(
                f"no node of {self.name!r} has a class: all labels are negative."
            )
        return largest + 1

    @property
    def links_kept(self) -> int:
        """How many of the full graph's links this graph has."""
        return int(torch.unique(self.link).numel())

    def __repr__(self) -> str:
        return (
            f"Graph({self.name!r}, {self.num_nodes} nodes, {self.links_kept} of "
            f"{self.num_links} links, {self.num_features} features)"
        )

    @classmethod
    def from_pyg(
        cls,
        data: Any,
        *,
        split: Mapping[str, Any] | None = None,
        directed: bool | None = None,
        name: str = "graph",
        metric: Metric = "accuracy",
    ) -> "Graph":
        """Take over a PyG ``Data`` object, or a mapping of the same fields.

        Self-loops are stripped (the models add their own, which are never pruned).
        Of duplicate edges the first is kept. A warning counts both, and another names
        an ``edge_attr`` that is not used. An edge list that holds every edge in
        both directions, with equal weights, is undirected: one link per pair of
        nodes. Any other is directed: one link per edge. Features with few non-zeros
        are kept sparse.

        Args:
            data: tensors, NumPy arrays or lists: ``x`` (N, F), ``edge_index`` (2, E;
                source, target) and, where there are any, ``edge_weight`` (E,) or
                floating one-column ``edge_attr`` (E, 1), ``y`` (N,) or (N, 1) classes
                or (N, C) labels of 0 and 1, and boolean ``train_mask``, ``val_mask``,
                ``test_mask`` (N,).
            split: node indices ``{"train": ..., "val": ..., "test": ...}`` to use
                instead of the masks (OGB calls its second part "valid"), or OGB's
                split of links, with ``{"edge": (P, 2), "edge_neg": (Q, 2)}`` each.
            directed: True or False to say which it is; False adds the missing
                opposite edges.
            name: what to call it.
            metric: how predicted classes are scored: ``"accuracy"``, or ``"ROC-AUC"``
                of class 1 against class 0, as Platonov et al. 2023 do.

        Raises:
            ValueError: naming what is wrong and the value seen.
        """
        if metric not in get_args(Metric):
            raise ValueError(
                f"`metric` must be one of {get_args(Metric)}, got {metric!r}."
            )
        data = _as_tensors(data)
        x = _features(data.x)
        n = x.shape[0]
        source, target, weight = _edges(data, n, x.dtype)
        told = directed is not None
        if not told:
            directed = not _is_symmetric(source, target, weight, n)
        if directed:
            edge, order = _first_of_each(target * n + source)
            row, col = target[order], source[order]
            pattern = Pattern.from_sorted(row, col, (n, n))
            link = torch.arange(row.numel(), device=row.device)
        else:
            edge = torch.unique(target * n + source)
            listed = torch.minimum(source, target) * n + torch.maximum(source, target)
            pair, order = _first_of_each(listed)
            if told and not bool((weight == weight[0]).all()):
                kept = weight[order][torch.searchsorted(pair, listed)]
                if other := int((weight != kept).count_nonzero()):
                    warnings.warn(
                        f"{other} edges have another weight than the same two nodes' "
                        "edge that is listed first, whose weight both directions get. "
                        "`directed=True` keeps each direction's own.",
                        stacklevel=2,
                    )
            pattern, link = join(pair // n, pair % n, n)
            # Both directions carry the weight that was listed first for the pair.
            order = order[link]
        if again := source.numel() - edge.numel():
            warnings.warn(
                f"`data.edge_index` lists {again} edges again: the first of each is "
                "kept, with its weight. A model that is given them all counts them "
                "all. `torch_geometric.utils.coalesce` of the edges and their weights "
                "adds these up.",
                stacklevel=2,
            )
        weight = weight[order].contiguous()
        own = None if bool((weight == 1).all()) else weight
        adjacency = SparseMatrix(pattern, weight, own)
        num_links = link.numel() if directed else link.numel() // 2
        return cls(
            x=x,
            adjacency=adjacency,
            link=link,
            num_links=num_links,
            y=_labels(data.y, n),
            split=_split(data, split, n),
            name=name,
            metric=metric,
        )

    def keep_links(self, keep: Tensor, value: Tensor | None = None) -> "Graph":
        """The graph with only some links.

        Args:
            keep: (L,) boolean, True = kept.
            value: (L,) a factor for each link's edge weights, or None.
        """
        _check_links("keep", keep, self.num_links)
        if keep.dtype != torch.bool:
            raise ValueError(f"`keep` must be boolean, True = kept, got {keep.dtype}.")
        weights = self.adjacency.value
        if value is not None:
            _check_links("value", value, self.num_links)
            weights = weights * value.index_select(0, self.link).to(weights.dtype)
        stays = keep.index_select(0, self.link)
        return replace(
            self,
            adjacency=self.adjacency.with_value(weights).select(stays),
            link=self.link[stays],
        )

    def reorder(self, seed: int = 0) -> "Graph":
        """The same graph with its nodes renumbered for locality, see `restore`.

        Products with the adjacency then read rows that lie close together: forward
        and backward 1.1 to 1.3 times as fast on communities in random order, after
        seconds of looking for them. Link ids stay, and so does the fingerprint:
        tickets fit either order.

        Args:
            seed: for `gebt.locality.community_order`.
        """
        order = community_order(self.adjacency.pattern, seed)
        return self._renumbered(order.to(self.adjacency.device))

    def restore(self, output: Tensor) -> Tensor:
        """A model's outputs (N, ...) for this graph, in its nodes' given order."""
        if self.order is None:
            return output
        return torch.empty_like(output).index_copy(0, self.order, output)

    def _renumbered(self, order: Tensor) -> "Graph":
        """Node i of the result is node ``order[i]`` of this one."""
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        n, pattern = self.num_nodes, self.adjacency.pattern
        row, col = place[pattern.row.long()], place[pattern.col.long()]
        entries = (row * n + col).argsort()
        pattern = Pattern.from_sorted(row[entries], col[entries], (n, n))
        value, weight = self.adjacency.value, self.adjacency.weight
        value = value.index_select(0, entries)
        if weight is not None:
            weight = weight.index_select(0, entries)
        split = self.split
        if split is not None:
            split = type(split)(**{k: place[v] for k, v in vars(split).items()})
        x = self.x
        return replace(
            self,
            x=x.rows(order) if isinstance(x, SparseMatrix) else x[order],
            adjacency=SparseMatrix(pattern, value, weight),
            link=self.link.index_select(0, entries),
            y=None if self.y is None else self.y.index_select(0, order),
            split=split,
            order=order if self.order is None else self.order[order],
        )

    def hold_out_links(
        self, val: float = 0.05, test: float = 0.1, seed: int = 0
    ) -> "Graph":
        """The graph for link prediction: some links leave it, to be found again.

        For each part as many pairs of nodes that are not linked are drawn as links
        are held out in all, so that ranks in both parts compare. The links that stay
        are numbered anew: they are this graph's.

        Args:
            val: share of links to validate on, in (0, 1).
            test: share of links to test on, in (0, 1).
            seed: for the draw.

        Returns:
            The graph of the training links, with a `LinkSplit`.

        Raises:
            ValueError: if a share is out of range or leaves a part without links, the
                graph is already pruned, or it is too dense to draw the negatives from.
        """
        if (present := self.links_kept) < self.num_links:
            raise ValueError(
                f"the graph {self.name!r} is already pruned: it has {present} of its "
                f"{self.num_links} links. Hold out links of the full graph."
            )
        possible = 0 < val < 1 and 0 < test < 1 and val + test < 1
        counts = [int(share * self.num_links) for share in (val, test) if possible]
        if not possible or 0 in counts:
            raise ValueError(
                "`val` and `test` must be positive shares that add up to less than 1 "
                f"and hold at least one of {self.num_links} links each, got {val} and "
                f"{test}."
            )
        held_out = sum(counts)
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.num_links, generator=draw)
        pattern, link = self.adjacency.pattern, self.link.cpu()
        # An undirected link has two entries; the last one gives its pair.
        entry = torch.zeros(self.num_links, dtype=torch.int64).scatter_reduce(
            0, link, torch.arange(link.numel()), "amax"
        )
        ends = torch.stack([pattern.col, pattern.row], dim=1).long().cpu()
        pairs = ends.index_select(0, entry)
        stays = torch.ones(self.num_links, dtype=torch.bool)
        stays[order[:held_out]] = False
        negative = self._not_linked(2 * held_out, draw)
        middle = counts[0]
        split = LinkSplit(
            train=pairs[stays],
            val=pairs[order[:middle]],
            val_negative=negative[:held_out],
            test=pairs[order[middle:held_out]],
            test_negative=negative[held_out:],
        )
        device = self.adjacency.device
        kept = self.keep_links(stays.to(device))
        number = (stays.cumsum(0) - 1).to(device)
        return replace(
            kept,
            link=number.index_select(0, kept.link),
            num_links=self.num_links - held_out,
            split=_moved(split, device),
        )

    def _not_linked(self, count: int, draw: torch.Generator) -> Tensor:
        """(count, 2) different pairs of different nodes that have no link, drawn."""
        n = self.num_nodes
        pattern = self.adjacency.pattern
        col, row = pattern.col.long().cpu(), pattern.row.long().cpu()
        taken = torch.unique(torch.minimum(col, row) * n + torch.maximum(col, row))
        # At least half of the pairs without a link are left over, or draws get rare.
        if count > (n * (n - 1) // 2 - taken.numel()) // 2:
            raise ValueError(
                f"the graph {self.name!r} has too few pairs of nodes without a link to "
                f"draw {count} from. Hold out fewer links."
            )
        found = torch.empty(0, dtype=torch.int64)
        while found.numel() < count:
            source, target = torch.randint(n, (2, 2 * count), generator=draw)
            low, high = torch.minimum(source, target), torch.maximum(source, target)
            free = ~torch.isin(low * n + high, taken) & (low != high)
            found = torch.unique(torch.cat([found, (low * n + high)[free]]))
        found = found[torch.randperm(found.numel(), generator=draw)[:count]]
        return torch.stack([found // n, found % n], dim=1)

    def fingerprint(self) -> str:
        """A hash of features, adjacency, link ids and labels, not of the split.

        Taken in the given order of the nodes, and once: torch counts the changes of a
        tensor, so that a changed graph is hashed anew. Changes past torch, as by a
        NumPy array that shares the memory, are not seen.
        """
        parts = [*_parts(self.adjacency), self.link]
        parts += _parts(self.x) if isinstance(self.x, SparseMatrix) else [self.x]
        if self.y is not None:
            parts.append(self.y)
        if any(part.is_inference() for part in parts):  # their changes are not counted
            return self._hash(parts)
        versions = [part._version for part in parts]
        known = self.__dict__.get("_hashed")
        if known is None or known[0] != versions:
            known = versions, self._hash(parts)
            self.__dict__["_hashed"] = known  # the dataclass is frozen
        return known[1]

    def _hash(self, parts: Sequence[Tensor]) -> str:
        if self.order is not None:
            given = self._renumbered(self.order.argsort())
            return replace(given, order=None).fingerprint()
        digest = hashlib.sha256()
        digest.update(f"{tuple(self.x.shape)}{self.num_links}".encode())
        for part in parts:
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            flat = part.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Graph":
        """A copy on another device."""
        return replace(
            self,
            x=self.x.to(device),
            adjacency=self.adjacency.to(device),
            link=self.link.to(device),
            y=None if self.y is None else self.y.to(device),
            split=None if self.split is None else _moved(self.split, device),
            order=None if self.order is None else self.order.to(device),
        )


def check_graph(graph: Any) -> None:
    """Raise a TypeError unless it is a `Graph`."""
    if not isinstance(graph, Graph):
        raise TypeError(
            f"`graph` must be a gebt.Graph, got a {type(graph).__name__}. Make one of "
            "PyG's data by `gebt.Graph.from_pyg(data)`."
        )


def _parts(matrix: SparseMatrix) -> list[Tensor]:
    return [matrix.pattern.crow, matrix.pattern.col, matrix.value]


def join(low: Tensor, high: Tensor, n: int) -> tuple[Pattern, Tensor]:
    """The adjacency's positions when every link joins both ways.

    Args:
        low: (L,) integers in [0, n), the smaller end of each link.
        high: (L,) integers in [0, n), the larger. The pairs are distinct and sorted.
        n: how many nodes there are.

    Returns:
        The pattern of 2 L entries in row-major order, and (2 L,) int64, which link
        each entry is: its place in the list.
    """
    upper = Pattern.from_sorted(low, high, (n, n))
    below, lower_col, lower_link = upper.transpose
    # A row reads first the nodes below it, then those above.
    col = upper.col.new_empty(2 * upper.nnz)
    link = torch.empty_like(col, dtype=torch.int64)
    each = torch.arange(upper.nnz, device=col.device)
    place = each + below[1:].index_select(0, upper.row)
    col[place], link[place] = upper.col, each
    lower_row = upper.col.index_select(0, lower_link)
    place = each + upper.crow.index_select(0, lower_row)
    col[place], link[place] = lower_col, lower_link.long()
    return Pattern(upper.crow.long() + below, col, (n, n)), link


def _moved(split: Any, device: torch.device | str) -> Any:
    parts = {f.name: getattr(split, f.name).to(device) for f in fields(split)}
    return type(split)(**parts)


def _check_links(name: str, given: Tensor, num_links: int) -> None:
    if given.shape != (num_links,):
        raise ValueError(
            f"`{name}` must have one entry for each of the graph's {num_links} links, "
            f"got shape {tuple(given.shape)}."
        )


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of features; any other becomes float32."""
_FIELDS = ("x", "edge_index", "edge_weight", "edge_attr", "y")
_MASKS = ("train_mask", "val_mask", "test_mask")


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
    tensors = {name: _tensor(f"data.{name}", field) for name, field in given.items()}
    return SimpleNamespace(**tensors)


def _tensor(name: str, given: Any) -> Any:
    """A tensor as it is, NumPy arrays and lists as tensors of their own, or None."""
    if given is None or isinstance(given, Tensor):
        return given
    try:
        tensor = torch.from_numpy(np.array(given, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` must be a tensor, an array or a list of numbers, got a "
            f"{type(given).__name__} ({error})."
        ) from error
    if isinstance(given, np.ndarray) or not tensor.is_floating_point():
        return tensor
    # As torch makes tensors of Python's numbers; of none, whatever is asked for.
    return tensor.to(torch.get_default_dtype() if tensor.numel() else torch.int64)


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
    if not values.isfinite().all():
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


def _edges(data: Any, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
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
    source, target = index.long()
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
                stacklevel=3,
            )
    if weight is None:
        weight = torch.ones(index.shape[1], dtype=dtype, device=index.device)
    if weight.is_complex():
        raise ValueError(f"`data.edge_weight` must be real, got {weight.dtype}.")
    weight = weight.flatten().to(dtype)
    if weight.numel() != index.shape[1]:
        raise ValueError(
            f"`data.edge_weight` must have one entry for each of the {index.shape[1]} "
            f"edges, got {weight.numel()}."
        )
    if not weight.isfinite().all():
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
            stacklevel=3,
        )
    return source[proper], target[proper], weight[proper]


def _first_of_each(key: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct keys, ascending, and where each was listed first."""
    key, order = key.sort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    return key[first], order[first]


def _is_symmetric(source: Tensor, target: Tensor, weight: Tensor, n: int) -> bool:
    there, listed = _first_of_each(source * n + target)
    back, listed_back = _first_of_each(target * n + source)
    return torch.equal(there, back) and torch.equal(weight[listed], weight[listed_back])


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


def _split(
    data: Any, given: Mapping[str, Any] | None, n: int
) -> Split | LinkSplit | None:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            "`split` must be a mapping of 'train', 'val' and 'test' to node indices, "
            f"got a {type(given).__name__}."
        )
    if given is not None and any(isinstance(p, Mapping) for p in given.values()):
        return _link_split(given, n)
    parts: dict[str, Tensor] = {}
    for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        if given is not None:
            index = _tensor(f"split[{part!r}]", given.get(part, given.get(key)))
        else:
            mask = getattr(data, f"{part}_mask", None)
            if mask is not None and (mask.dtype != torch.bool or mask.shape != (n,)):
                raise ValueError(
                    f"`data.{part}_mask` must be boolean of shape ({n},), got "
                    f"{mask.dtype} {tuple(mask.shape)}. Of several splits, pick one "
                    "column first."
                )
            index = None if mask is None else mask.nonzero().squeeze(1)
        if index is None:
            if part == "train":
                if given is None:
                    return None
                raise ValueError(
                    f"`split` must name the training nodes 'train', got {list(given)}."
                )
            index = torch.empty(0, dtype=torch.int64)
        if index.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"the {part} split must hold integer node indices, got {index.dtype}. "
                "Turn a mask into indices with `mask.nonzero().squeeze(1)`."
            )
        if index.dim() != 1:
            raise ValueError(
                f"the {part} split must be one list of node indices, got shape "
                f"{tuple(index.shape)}."
            )
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"the {part} split must hold node indices in [0, {n}), got "
                f"{int(index.min())} to {int(index.max())}."
            )
        parts[part] = index.long()
    return Split(**parts)


def _link_split(given: Mapping[str, Mapping[str, Tensor]], n: int) -> LinkSplit:
    """From OGB's ``dataset.get_edge_split()``."""
    parts: dict[str, Tensor] = {}
    for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        held = given.get(part, given.get(key, {}))
        if held and "edge" not in held:
            raise ValueError(
                f"the {part} split must name its links 'edge', got {list(held)}."
            )
        for name, entry in ((part, "edge"), (f"{part}_negative", "edge_neg")):
            pairs = held.get(entry, torch.empty((0, 2), dtype=torch.int64))
            pairs = _tensor(f"split[{part!r}][{entry!r}]", pairs)
            whole = pairs.dtype in (torch.int32, torch.int64)
            if not whole or pairs.dim() != 2 or pairs.shape[1] != 2:
                raise ValueError(
                    f"{entry!r} of the {part} split must be integers of shape "
                    f"(pairs, 2), got {pairs.dtype} {tuple(pairs.shape)}."
                )
            if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < n:
                raise ValueError(
                    f"{entry!r} of the {part} split must hold node indices in [0, {n})"
                    f", got {int(pairs.min())} to {int(pairs.max())}."
                )
            parts[name] = pairs.long()
    del parts["train_negative"]  # drawn anew each epoch
    return LinkSplit(**parts)
