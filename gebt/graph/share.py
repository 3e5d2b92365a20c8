"""A graph cut into the shares of several ranks."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebt.graph.graph import Graph, check_graph
from gebt.graph.splits import LinkSplit, Split
from gebt.sparse import Pattern, SparseMatrix
from gebt.sparse.shard import Halo, Shard
from gebt.world import Ranks

_NODE = 8  # entries of the adjacency that a node is worth in work


@dataclass(frozen=True, eq=False)
class Share:
    """Which share of a graph a rank holds; see `cut`.

    Attributes:
        world: the ranks.
        bounds: (size + 1,) rank k holds the nodes from ``bounds[k]`` to the next.
        nodes: (n,) int64, which of the graph's nodes each of its rows is.
        links: (L,) int64 ascending, which of the graph's links its own are.
        num_nodes: N of the graph.
        num_links: L of the graph.
        num_classes: of the graph; None without labels.
        fingerprint: the graph's.
    """

    world: Ranks
    bounds: Tensor
    nodes: Tensor
    links: Tensor
    num_nodes: int
    num_links: int
    num_classes: int | None
    fingerprint: str

    def place(self, nodes: Tensor) -> Tensor:
        """(k,) the rows here of some of this rank's nodes (k,)."""
        first = int(self.bounds[self.world.rank])
        place = torch.empty_like(self.nodes)
        place[self.nodes - first] = torch.arange(place.numel(), device=place.device)
        return place[nodes - first]

    def to(self, device: torch.device | str) -> "Share":
        """A copy on another device."""
        moved = {k: getattr(self, k).to(device) for k in ("bounds", "nodes", "links")}
        return replace(self, **moved)

    def take(self, own: Tensor, nodes: Tensor) -> Tensor:
        """Rows of any nodes, whoever holds them; differentiable.

        Args:
            own: (n, ...) this rank's.
            nodes: (k, ...) int64, as the graph has them.

        Returns:
            (k, ..., ...).
        """
        wanted, at = torch.unique(nodes, return_inverse=True)
        owner = torch.bucketize(wanted, self.bounds[1:], right=True)
        halo = Halo.of(self.world, owner, wanted, self.place)
        return halo.extend(own)[own.shape[0] :].index_select(0, at.flatten())


def cut(graph: Graph, world: Ranks, fingerprint: str) -> Graph:
    """The share of a graph that is this rank's.

    Ranks hold ranges of nodes of equal work, and the links between these. Of a link
    between two ranks the parity of its ends' numbers says whose it is.
    The rows that read no other rank's come first. Of the graph's large tensors only
    this rank's range is read, so that they may lie in a file.

    Args:
        graph: undirected, the same on every rank.
        world: the ranks.
        fingerprint: of the graph.

    Raises:
        ValueError: if the graph is directed, or has fewer nodes than there are ranks.
    """
    check_graph(graph)
    n, pattern = graph.num_nodes, graph.adjacency.pattern
    if n < world.size:
        raise ValueError(
            f"the graph {graph.name!r} has {n} nodes, and there are more ranks, "
            f"{world.size}. Start fewer."
        )
    bounds = _bounds(pattern, world.size)
    low, high = bounds[world.rank : world.rank + 2].tolist()
    start, end = pattern.crow[[low, high]].tolist()
    crow = pattern.crow[low : high + 1] - start
    mine = Pattern(crow, pattern.col[start:end], (high - low, n))
    outer = torch.zeros(high - low, dtype=torch.bool, device=crow.device)
    outer[mine.row[(mine.col < low) | (mine.col >= high)].long()] = True
    order = outer.to(torch.int8).argsort(stable=True)
    mine, entries = mine.rows(order)
    entries = entries.long()
    nodes = order + low
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)

    row, col = nodes.index_select(0, mine.row), mine.col.long()
    away = (col < low) | (col >= high)
    link = graph.link[start:end].index_select(0, entries).long()
    # Were it always the smaller end's rank, the first ranks would hold most.
    theirs = (away & ((col < row) ^ ((row + col) % 2 == 1))).nonzero().squeeze(1)
    owner = _owner(col[theirs], bounds)
    by_owner = (owner * graph.num_links + link[theirs]).argsort()
    theirs, owner = theirs[by_owner], owner[by_owner]
    ours = torch.ones_like(away).index_fill_(0, theirs, False)
    links = torch.unique(link[ours])
    entries_in_all, links_in_all = map(world.total, (link.numel(), links.numel()))
    _check_undirected(graph, entries_in_all == 2 * links_in_all)

    def find(asked: Tensor) -> Tensor:
        at = torch.searchsorted(links, asked)
        found = torch.cat([links, links.new_tensor([-1])])[at] == asked
        world.attempt(lambda: _check_undirected(graph, bool(found.all())))
        return at

    halo_of_links = Halo.of(world, owner, link[theirs], find)
    here = torch.searchsorted(links, link)
    here[theirs] = links.numel() + torch.arange(theirs.numel(), device=link.device)
    far = torch.unique(col[away])
    halo = Halo.of(world, _owner(far, bounds), far, lambda asked: place[asked - low])
    col[away] = high - low + torch.searchsorted(far, col[away])
    near = ~away
    col[near] = place[col[near] - low]

    shape = (high - low, high - low + far.numel())
    value, weight = graph.adjacency.value, graph.adjacency.weight
    value = value[start:end].index_select(0, entries)
    if weight is not None:
        weight = weight[start:end].index_select(0, entries)
    inner = int(outer.logical_not().count_nonzero())
    parts = halo, halo_of_links, weight
    how: Any = {"inner": inner, "entries": pattern.nnz, "mirrored": True}
    adjacency = Shard(Pattern(mine.crow, col, shape, nodes=nodes), value, *parts, **how)
    once = value.new_zeros(links.numel()).index_copy_(0, here[ours], value[ours])
    same = torch.equal(adjacency.of_links(once, here), value)
    world.attempt(lambda: _check_undirected(graph, same))
    x, y = graph.x, graph.y
    share = Share(
        world=world,
        bounds=bounds,
        nodes=nodes,
        links=links,
        num_nodes=n,
        num_links=graph.num_links,
        num_classes=None if y is None else graph.num_classes,
        fingerprint=fingerprint,
    )
    return replace(
        graph,
        x=x.rows(nodes) if isinstance(x, SparseMatrix) else x.index_select(0, nodes),
        adjacency=adjacency,
        link=here.to(pattern.col.dtype),
        num_links=links.numel(),
        y=None if y is None else y.index_select(0, nodes),
        split=_dealt(graph.split, share),
        order=None if graph.order is None else graph.order.index_select(0, nodes),
        share=share,
    )


def _bounds(pattern: Pattern, ranks: int) -> Tensor:
    """(ranks + 1,) where ranges of nodes of equal work begin; each holds a node."""
    n = pattern.shape[0]
    work = pattern.crow.long() + _NODE * torch.arange(n + 1, device=pattern.crow.device)
    shares = torch.arange(ranks + 1, device=work.device)
    found = torch.searchsorted(work, work[-1] * shares // ranks)
    return found.clamp(min=shares).minimum(n - ranks + shares)


def _owner(nodes: Tensor, bounds: Tensor) -> Tensor:
    return torch.bucketize(nodes, bounds[1:], right=True)


def _dealt(split: Any, share: Share) -> Any:
    """What of a split is this rank's: its nodes, or an equal share of the pairs."""
    if split is None:
        return None
    rank, size = share.world.rank, share.world.size
    if isinstance(split, LinkSplit):
        return LinkSplit(**{k: pairs[rank::size] for k, pairs in vars(split).items()})
    mine = {
        k: nodes[_owner(nodes, share.bounds) == rank]
        for k, nodes in vars(split).items()
    }
    return Split(**{k: share.place(nodes) for k, nodes in mine.items()})


def _check_undirected(graph: Graph, undirected: bool) -> None:
    if not undirected:
        raise ValueError(
            f"the graph {graph.name!r} is directed, and several ranks take undirected "
            "ones. Run one process, or pass `directed=False` to `Graph.from_pyg`."
        )


def as_whole(graph: Graph) -> Graph:
    """One rank's rows as the graph numbers nodes and links, ascending; for files."""
    share, shard = graph.share, graph.adjacency
    if share is None or not isinstance(shard, Shard):
        return graph
    order = share.nodes.argsort()
    names = torch.cat([share.nodes, shard.halo.start(share.nodes)()])
    pattern, entries = shard.pattern.rows(order)
    col = names.index_select(0, pattern.col)
    pattern = Pattern(pattern.crow, col, (share.nodes.numel(), share.num_nodes))
    link = shard.of_links(share.links, graph.link)
    split = graph.split
    if isinstance(split, Split):
        split = Split(**{k: share.nodes[at] for k, at in vars(split).items()})
    x = graph.x
    return replace(
        graph,
        x=x.rows(order) if isinstance(x, SparseMatrix) else x.index_select(0, order),
        adjacency=SparseMatrix(pattern, shard.value.index_select(0, entries)),
        link=link.index_select(0, entries),
        num_links=share.num_links,
        y=None if graph.y is None else graph.y.index_select(0, order),
        split=split,
        order=None if graph.order is None else graph.order.index_select(0, order),
        share=None,
    )
