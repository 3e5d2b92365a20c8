"""Parts of a graph, drawn anew each epoch: for searches of what does not fit whole.

Parts change what is learned. Links found on them are nearly as good as those found on
the whole graph, weights are not.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from gebt._checks import check_count
from gebt.graph.graph import Graph
from gebt.graph.splits import Split
from gebt.kernels.hashing import hashed
from gebt.sparse import Pattern, SparseMatrix

_CLUSTERS = 16  # of METIS for each part
_log = logging.getLogger("gebt")


class Parts:
    """Given an epoch, the graph in so many parts, each of clusters drawn at random.

    Clusters are METIS', few of whose links lead out of them, where pymetis is
    installed; single nodes otherwise. Links between two parts are not there in that
    epoch. Parts without training nodes are left out.

    Args:
        graph: with a split of its nodes.
        count: K, of parts.
        seed: of who is with whom; the epoch is another.

    Attributes:
        seen: (L,) boolean, which links were in some part.

    Raises:
        ValueError: if there are more parts than nodes, or the split is of links.

    Source: Chiang et al. 2019, Cluster-GCN, "stochastic multiple partitions".
    """

    def __init__(self, graph: Graph, count: int, seed: int = 0):
        check_count("parts", count, most=graph.num_nodes)
        if not isinstance(graph.split, Split):
            raise ValueError(
                "`parts` are of graphs whose nodes are split; the graph "
                f"{graph.name!r} is split by links, which lie between parts."
            )
        if graph.share is not None:
            raise ValueError(
                "`parts` go through a graph on one process; several ranks hold it "
                "whole, each a share. Leave out `parts`."
            )
        self._graph, self._count, self._seed = graph, count, seed
        self._cluster = clusters(graph.adjacency.pattern, count)
        self.seen = graph.link.new_zeros(graph.num_links, dtype=torch.bool)

    def __call__(self, epoch: int) -> Iterator[Graph]:
        """The parts of an epoch, counted from 0, each built when it is asked for."""
        device = self._graph.link.device
        lot = hashed(self._cluster, (self._seed << 32) + epoch)
        order = lot.argsort(stable=True)
        for nodes in order.tensor_split(self._count):
            part = part_of(self._graph, nodes.sort().values.to(device))
            self.seen |= part.present
            assert isinstance(part.split, Split)
            if part.split.train.numel():
                yield part

    def share_unseen(self) -> float:
        """Share of the graph's links that were in no part yet."""
        present = self._graph.present
        return int((present & ~self.seen).sum()) / max(1, int(present.sum()))


def part_of(graph: Graph, nodes: Tensor) -> Graph:
    """Some nodes of a graph, and the links between them, which keep their ids.

    Args:
        graph: with a split of its nodes, or none.
        nodes: (R,) int64, ascending.
    """
    n, adjacency, x = graph.num_nodes, graph.adjacency, graph.x
    place = nodes.new_full((n,), -1)
    place[nodes] = torch.arange(nodes.numel(), device=nodes.device)
    block, entries = adjacency.pattern.take_rows(nodes)
    col = place.index_select(0, block.col)
    stays = (col >= 0).nonzero().squeeze(1)
    pattern = Pattern.from_sorted(
        block.row.index_select(0, stays), col[stays], (nodes.numel(), nodes.numel())
    )
    pattern.nodes = block.nodes
    at = entries.index_select(0, stays)
    value, weight = adjacency.value.index_select(0, at), adjacency.weight
    if weight is not None:
        weight = weight.index_select(0, at)
    split = graph.split
    if isinstance(split, Split):
        inside = {part: place.index_select(0, at) for part, at in vars(split).items()}
        split = Split(**{part: at[at >= 0] for part, at in inside.items()})
    if isinstance(x, SparseMatrix):
        features, of = x.pattern.take_rows(nodes)
        x = SparseMatrix(features, x.value.index_select(0, of))
    else:
        x = x.index_select(0, nodes)
    return replace(
        graph,
        x=x,
        adjacency=SparseMatrix(pattern, value, weight),
        link=graph.link.index_select(0, at),
        y=None if graph.y is None else graph.y.index_select(0, nodes),
        split=split,
        order=None,
    )


def clusters(pattern: Pattern, parts: int) -> Tensor:
    """(N,) int64, the cluster of each node: METIS', or each node by itself."""
    n = pattern.shape[0]
    if parts == 1 or find_spec("pymetis") is None:
        if parts > 1:
            _log.info(
                "parts of nodes drawn one by one; of METIS' clusters they keep more "
                "links: pip install 'gebt[parts]'"
            )
        return torch.arange(n, device=pattern.col.device)
    import pymetis

    # Weak clusters hold fewer links than parts can: no more of them than this.
    number = min(n, _CLUSTERS * parts)
    starts, neighbours = pattern.crow.cpu().numpy(), pattern.col.cpu().numpy()
    adjacency = pymetis.CSRAdjacency(adj_starts=starts, adjacent=neighbours)
    _, found = pymetis.part_graph(number, adjacency=adjacency)
    return torch.from_numpy(np.asarray(found, dtype=np.int64)).to(pattern.col.device)
