"""The graph a model learns on: features, adjacency, labels, split.

Links, not edges, are what is scored and pruned: both directed entries of an
undirected edge carry the same link id, so the adjacency stays symmetric by
construction. Link ids are those of the full graph, in every part of it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebt.graph.from_others import (
    fields_of_dgl,
    fields_of_scipy,
    tables_of_networkx,
)
from gebt.graph.from_pyg import Metric, read_pyg
from gebt.graph.from_tables import read_tables
from gebt.graph.held_out import hold_out
from gebt.graph.splits import LinkSplit, Split, moved
from gebt.sparse import SparseMatrix
from gebt.sparse.order import community_order
from gebt.sparse.pattern import BLOCK, INT32_MAX
from gebt.world import ALONE, World

if TYPE_CHECKING:
    from gebt.graph.share import Share


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with N nodes, E directed entries and L links.

    Attributes:
        x: (N, F) features, dense or sparse.
        adjacency: (N, N) without self-loops; ``row`` is the target of a message,
            ``col`` its source, values are edge weights (1 where there are none).
        link: (E,) link id of each adjacency entry; int32 where that is enough.
        num_links: L of the full graph, also after links were dropped.
        y: (N,) int64 classes, (N, C) boolean labels, or None.
        split: the nodes, or the links, to train, validate and test on, or None.
        name: what the graph is called in reports.
        order: (N,) int64, which of the given graph's nodes each row is, after
            `reorder`; None in the given order.
        columns: (F,) int64, which of the given graph's features each column of x is,
            after `compact`; None for all of them.
        metric: how predicted classes are scored, ``"accuracy"`` or, of two classes,
            ``"ROC-AUC"`` or ``"AP"``, average precision. The data set's, so that all
            its parts are scored alike.
        share: where this is one rank's share of a graph, which; N, E and L are then the
            its own, and so are the numbers of nodes and links.
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
    share: "Share | None" = None
    columns: Tensor | None = None

    @property
    def world(self) -> World:
        """Who holds the graph's parts."""
        return ALONE if self.share is None else self.share.world

    def __post_init__(self) -> None:
        if self.link.dtype != torch.int32 and self.num_links <= INT32_MAX:
            object.__setattr__(self, "link", self.link.to(torch.int32))

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
        if self.share is not None and self.share.num_classes is not None:
            return self.share.num_classes
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
        return self.world.total(int(self.present.count_nonzero()))

    @property
    def links_in_all(self) -> int:
        """L of the graph, of which this may be one rank's share."""
        return self.num_links if self.share is None else self.share.num_links

    @property
    def nodes_in_all(self) -> int:
        """N of the graph, of which this may be one rank's share."""
        return self.num_nodes if self.share is None else self.share.num_nodes

    def of_links(self, values: Tensor) -> Tensor:
        """(E, ...) of each entry, what ``values`` (L, ...) has for its link."""
        return self.adjacency.of_links(values, self.link)

    def by_links(self, edge: Tensor, how: str) -> Tensor:
        """(L,) of entries (E,) not below 0, each link's sum or ``"amax"``; else 0."""
        return self.adjacency.by_links(edge, self.link, self.num_links, how)

    def of_nodes(self, values: Tensor, nodes: Tensor) -> Tensor:
        """Of any nodes (k,), as the split of links has them, the rows of (N, ...)."""
        if self.share is not None:
            return self.share.take(values, nodes)
        return values.index_select(0, nodes)

    def link_ids(self) -> Tensor:
        """(L,) integers, which of the graph's links each is; see `share`."""
        if self.share is not None:
            return self.share.links
        return torch.arange(self.num_links, dtype=torch.int32, device=self.link.device)

    @property
    def present(self) -> Tensor:
        """(L,) boolean, which of the full graph's links this graph has."""
        # A rank's entries may be of links that another holds; these come last.
        found = self.link.new_zeros(self.num_links + 1, dtype=torch.bool)
        for part in self.link.split(BLOCK):  # as int64 in between
            found[part.clamp(max=self.num_links)] = True
        return found[:-1]

    def __repr__(self) -> str:
        part = "" if self.share is None else f"rank {self.world.rank}'s part, "
        kept = int(self.present.count_nonzero())
        return (
            f"Graph({self.name!r}, {part}{self.num_nodes} nodes, {kept} of "
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
            metric: how predicted classes are scored: ``"accuracy"``; or, of class 1
                against class 0, ``"ROC-AUC"``, as Platonov et al. 2023 do, or ``"AP"``,
                average precision, as Bazhenov et al. 2025 do.

        Raises:
            ValueError: naming what is wrong and the value seen.
        """
        return cls(**read_pyg(data, split, directed, name, metric))

    @classmethod
    def from_tables(
        cls,
        edges: Any,
        nodes: Any,
        *,
        label: str | None = None,
        directed: bool = False,
        seed: int | None = None,
        name: str = "graph",
        metric: Metric = "accuracy",
    ) -> "Graph":
        """Take over a table of edges and one of nodes.

        Each is a mapping of columns, or a frame of pandas, polars or pyarrow. Ids may
        be whole numbers or text. What becomes of classes, of a split that is drawn, and
        of columns of text is told on the logger ``gebt``.

        Args:
            edges: a row for each edge: columns ``source`` and ``target``, or the first
                two; ``weight``, where there is one of that name.
            nodes: a row for each node: ``id`` or ``node``, or the first column; the
                label; ``split``, of train, val and test, where there is one of that
                name; all other columns of numbers, or (N, D) of vectors, are features.
            label: the column of classes, whole numbers or text, numbered in their
                order where they are not 0 to C - 1; a node without one, or with a
                negative one, has none. None for a graph without labels.
            directed: whether an edge leads one way only.
            seed: of the split that is drawn, 60, 20 and 20% of each class, where
                ``nodes`` have none; by default 0.
            name: what to call it.
            metric: as for `from_pyg`.

        Raises:
            ValueError: naming the column, the row and the value of what does not fit:
                unknown or repeated nodes, text among numbers, missing values.
        """
        data, split = read_tables(edges, nodes, label, seed)
        return cls(**read_pyg(data, split, directed, name, metric))

    @classmethod
    def from_networkx(
        cls,
        graph: Any,
        *,
        label: str | None = None,
        seed: int | None = None,
        name: str = "graph",
        metric: Metric = "accuracy",
    ) -> "Graph":
        """Take over a NetworkX graph with what its nodes have, in their order.

        Numbers and vectors of numbers are features; ``label``, ``split`` and the
        edges' ``weight`` are as for `from_tables`. A ``Graph`` is undirected, a
        ``DiGraph`` directed.

        Raises:
            ValueError: as `from_tables`; row 1 is the first node.
        """
        edges, nodes = tables_of_networkx(graph)
        data, split = read_tables(edges, nodes, label, seed)
        return cls(**read_pyg(data, split, graph.is_directed(), name, metric))

    @classmethod
    def from_scipy(
        cls,
        adjacency: Any,
        x: Any,
        y: Any = None,
        *,
        split: Mapping[str, Any] | None = None,
        directed: bool | None = None,
        name: str = "graph",
        metric: Metric = "accuracy",
    ) -> "Graph":
        """Take over an adjacency of SciPy.

        Args:
            adjacency: (N, N) sparse; the entry (i, j) is the weight of the edge from i
                to j.
            x: (N, F) features, sparse of SciPy's, or as for `from_pyg`.
            y: labels, as for `from_pyg`.
            split: as for `from_pyg`; without, the graph has none.
            directed: as for `from_pyg`; by default what the matrix says.
            name: what to call it.
            metric: as for `from_pyg`.

        Raises:
            ValueError: naming what is wrong and the value seen.
        """
        fields = fields_of_scipy(adjacency, x, y)
        return cls(**read_pyg(fields, split, directed, name, metric))

    @classmethod
    def from_dgl(
        cls,
        graph: Any,
        *,
        x: str = "feat",
        y: str = "label",
        split: Mapping[str, Any] | None = None,
        directed: bool | None = None,
        name: str = "graph",
        metric: Metric = "accuracy",
    ) -> "Graph":
        """Take over a DGL graph of one kind of nodes and edges.

        Args:
            graph: with ``train_mask`` and the like in ``ndata``, where there is no
                ``split``, and ``weight`` in ``edata``, where edges have one.
            x: the features' name in ``ndata``.
            y: the labels' name in ``ndata``.
            split: as for `from_pyg`.
            directed: as for `from_pyg`.
            name: what to call it.
            metric: as for `from_pyg`.

        Raises:
            ValueError: naming what is wrong and the value seen.
        """
        fields = fields_of_dgl(graph, x, y)
        return cls(**read_pyg(fields, split, directed, name, metric))

    def keep_links(self, keep: Tensor, value: Tensor | None = None) -> "Graph":
        """The graph with only some links.

        Args:
            keep: (L,) boolean, True = kept.
            value: (L,) a factor for each link's edge weights, or None.
        """
        _check_links("keep", keep, self.num_links)
        if keep.dtype != torch.bool:
            raise ValueError(f"`keep` must be boolean, True = kept, got {keep.dtype}.")
        adjacency = self.adjacency
        if value is not None:
            _check_links("value", value, self.num_links)
            adjacency = adjacency.times(value, self.link)
        stays = self.of_links(keep)
        return replace(
            self,
            adjacency=adjacency.select(stays),
            link=self.link[stays],
        )

    def reorder(self, seed: int = 0) -> "Graph":
        """The same graph with its nodes renumbered for locality, see `restore`.

        Products with the adjacency then read rows that lie close together: forward
        and backward 1.1 to 1.3 times as fast on communities in random order, after
        seconds of looking for them. Link ids stay, and so does the fingerprint:
        tickets fit either order.

        Args:
            seed: for `gebt.sparse.order.community_order`.
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
        pattern, entries = self.adjacency.pattern.renumbered(order)
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
        shares = (val, test) if possible else (0.0, 0.0)
        counts = [int(share * self.num_links) for share in shares]
        if 0 in counts:
            raise ValueError(
                "`val` and `test` must be positive shares that add up to less than 1 "
                f"and hold at least one of {self.num_links} links each, got {val} and "
                f"{test}."
            )
        stays, split = hold_out(
            self.name, self.adjacency.pattern, self.link, counts, seed
        )
        device = self.adjacency.device
        kept = self.keep_links(stays.to(device))
        number = (stays.cumsum(0) - 1).to(device)
        return replace(
            kept,
            link=number.index_select(0, kept.link),
            num_links=self.num_links - sum(counts),
            split=moved(split, device),
        )

    def fingerprint(self) -> str:
        """A hash of features, adjacency, link ids and labels, not of the split.

        Of one rank's share it is the graph's from which it was cut.

        Taken in the given order of the nodes, and once: torch counts the changes of a
        tensor, so that a changed graph is hashed anew. Changes past torch, as by a
        NumPy array that shares the memory, are not seen.
        """
        if self.share is not None:
            return self.share.fingerprint
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
        digest = hashlib.sha256()
        digest.update(f"{tuple(self.x.shape)}{self.num_links}".encode())
        for part, given in zip(parts, self._in_given_order(parts), strict=True):
            # Link ids were int64 when the first tickets were drawn.
            dtype = torch.int64 if part is self.link else part.dtype
            digest.update(f"{dtype}{tuple(part.shape)}".encode())
            for piece in given:
                flat = piece.detach().to("cpu", dtype).contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _in_given_order(self, parts: Sequence[Tensor]) -> Iterator[Iterable[Tensor]]:
        """Each part as pieces of a few million numbers, rows in their given order."""
        if self.order is None:
            for part in parts:
                yield part.split(_rows_of(part))
            return
        back = self.order.argsort()
        pattern, entries = self.adjacency.pattern.renumbered(back)
        yield pattern.crow.split(BLOCK)
        yield pattern.col.split(BLOCK)
        for part in (self.adjacency.value, self.link):
            yield _taken(part, entries)
        if isinstance(self.x, SparseMatrix):
            rows = self.x.rows(back)
            for part in _parts(rows):
                yield part.split(BLOCK)
        else:
            yield _taken(self.x, back)
        if self.y is not None:
            yield _taken(self.y, back)

    def to(self, device: torch.device | str) -> "Graph":
        """A copy on another device."""
        return replace(
            self,
            x=self.x.to(device),
            adjacency=self.adjacency.to(device),
            link=self.link.to(device),
            y=None if self.y is None else self.y.to(device),
            split=None if self.split is None else moved(self.split, device),
            order=None if self.order is None else self.order.to(device),
            columns=None if self.columns is None else self.columns.to(device),
            share=None if self.share is None else self.share.to(device),
        )


@dataclass(frozen=True, eq=False)
class PrunedGraph(Graph):
    """What `Ticket.open` gives: the smaller graph, and the masks that go with it.

    `train` and `find_ticket` keep to the masks unless told otherwise, so that pruned
    weights do not grow back because they were forgotten.

    Attributes:
        weight_masks: boolean masks by parameter name, True = kept.
    """

    weight_masks: Mapping[str, Tensor] = field(default_factory=dict)

    def without_masks(self) -> Graph:
        """The graph alone."""
        return Graph(**{part.name: getattr(self, part.name) for part in fields(Graph)})


def masks_of(graph: Graph, keep: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """The masks that were given, else those that a pruned graph carries."""
    if keep is None and isinstance(graph, PrunedGraph):
        return graph.weight_masks
    return keep or {}


def check_graph(graph: Any) -> None:
    """Raise a TypeError unless it is a `Graph`."""
    if not isinstance(graph, Graph):
        raise TypeError(
            f"`graph` must be a gebt.Graph, got a {type(graph).__name__}. Make one of "
            "PyG's data by `gebt.Graph.from_pyg(data)`."
        )


def _check_links(name: str, given: Tensor, num_links: int) -> None:
    if given.shape != (num_links,):
        raise ValueError(
            f"`{name}` must have one entry for each of the graph's {num_links} links, "
            f"got shape {tuple(given.shape)}."
        )


def _parts(matrix: SparseMatrix) -> list[Tensor]:
    return [matrix.pattern.crow, matrix.pattern.col, matrix.value]


def _taken(part: Tensor, order: Tensor) -> Iterator[Tensor]:
    """Some rows of a tensor, piece by piece."""
    return (part.index_select(0, piece) for piece in order.split(_rows_of(part)))


def _rows_of(part: Tensor) -> int:
    """How many rows make a piece."""
    return max(1, BLOCK // max(1, part[:1].numel()))
