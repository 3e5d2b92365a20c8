"""The criterion that keeps a graph connected, and then its longest ways round."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.graph import Graph
from gebt.prune.criteria import Context, criterion

Ints = NDArray[np.int64]


@criterion("forest")
def forest(graph: Graph, context: Context) -> Tensor:
    """A spanning forest first, then links by how far round it their ends would be.

    The forest is Kruskal's on random weights: no node that has a link loses all, and
    no component falls apart. A link outside scores the length of the path that the
    forest has between its ends, times 1 + log(1 + the l2 norm over the path of how many
    such paths share each of its links) ("Scaffold-fast"). Directions do not matter.
    """
    row, col = (end.cpu().numpy() for end in graph.adjacency.pattern.edge_index.flip(0))
    present, first = np.unique(graph.link.long().cpu().numpy(), return_index=True)
    u, v = row[first], col[first]
    order = torch.randperm(present.size, generator=context.generator).numpy()
    inside = _kruskal(u, v, order, graph.num_nodes)
    scores = np.zeros(present.size)
    scores[~inside] = _stretch(u, v, inside, graph.num_nodes)
    scores[inside] = scores.max(initial=0) + 1
    found = torch.zeros(graph.num_links, dtype=torch.float64)
    return found.index_copy(0, torch.from_numpy(present), torch.from_numpy(scores))


def _kruskal(u: Ints, v: Ints, order: Ints, nodes: int) -> NDArray[np.bool_]:
    """Which links (u, v) are in the forest that takes them in that order."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    inside = np.zeros(u.size, dtype=bool)
    weight = np.empty(u.size)
    weight[order] = np.arange(1, u.size + 1)
    tree = minimum_spanning_tree(_matrix(weight, u, v, nodes))
    inside[order[tree.data.astype(np.int64) - 1]] = True
    return inside


def _stretch(u: Ints, v: Ints, inside: NDArray[np.bool_], nodes: int) -> NDArray:
    """The scores of the links outside the forest."""
    above = _parents(u[inside], v[inside], nodes)
    ups = [above]  # of each node the 1st, 2nd, 4th, ... above it; the root is its own
    while (ups[-1] != nodes).any():
        ups.append(ups[-1][ups[-1]])
    u, v = u[~inside], v[~inside]
    depth = _summed_to_root((above != np.arange(nodes + 1)).astype(float), ups)
    meet = _where_they_meet(u, v, depth, ups)
    # A node's link to what is above it lies on the paths that begin below and do not
    # turn there.
    shared = np.bincount(u, minlength=nodes + 1) + np.bincount(v, minlength=nodes + 1)
    shared = (shared - 2 * np.bincount(meet, minlength=nodes + 1)).astype(float)
    deepest_first = np.argsort(-depth, kind="stable")
    levels = np.flatnonzero(np.diff(depth[deepest_first])) + 1
    for level in np.split(deepest_first, levels)[:-1]:
        np.add.at(shared, above[level], shared[level])
    shared[nodes] = 0
    squares = _summed_to_root(shared**2, ups)
    length = depth[u] + depth[v] - 2 * depth[meet]
    norm = np.sqrt(squares[u] + squares[v] - 2 * squares[meet])
    return length * (1 + np.log1p(norm))


def _parents(u: Ints, v: Ints, nodes: int) -> Ints:
    """(N + 1,) what is above each node of a forest; node N is above all trees."""
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    joined = _matrix(np.ones(u.size), u, v, nodes + 1)
    _, tree = connected_components(joined, directed=False)
    _, tops = np.unique(tree[:nodes], return_index=True)
    u, v = np.r_[u, np.full(tops.size, nodes)], np.r_[v, tops]
    rooted = _matrix(np.ones(u.size), u, v, nodes + 1)
    _, above = breadth_first_order(rooted, nodes, directed=False)
    above = above.astype(np.int64)
    above[nodes] = nodes
    return above


def _matrix(value: NDArray, u: Ints, v: Ints, nodes: int) -> Any:
    """Sparse, (nodes, nodes); of 32 bits, all that older SciPy takes for a graph."""
    from scipy.sparse import coo_array

    ends = u.astype(np.int32), v.astype(np.int32)
    return coo_array((value, ends), (nodes, nodes)).tocsr()


def _summed_to_root(value: NDArray, ups: list[Ints]) -> NDArray:
    """Of each node, the sum over it and all above it; the root's own must be 0."""
    for up in ups:
        value = value + value[up]
    return value


def _where_they_meet(u: Ints, v: Ints, depth: NDArray, ups: list[Ints]) -> Ints:
    """The lowest node that is above, or is, both."""
    lower = depth[u] < depth[v]
    a, b = np.where(lower, v, u), np.where(lower, u, v)
    surplus = (depth[a] - depth[b]).astype(np.int64)
    for power, up in enumerate(ups):
        a = np.where(surplus >> power & 1, up[a], a)
    for up in reversed(ups):
        apart = up[a] != up[b]
        a, b = np.where(apart, up[a], a), np.where(apart, up[b], b)
    return np.where(a == b, a, ups[0][a])
