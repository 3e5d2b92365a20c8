"""What pruning really saves: a smaller model and graph with the same outputs."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from gebt.graph import Graph, PrunedGraph, check_graph
from gebt.models import CLASSES, Adapted, translate
from gebt.prune.weights import check_not_compiled, check_not_pruned
from gebt.sparse import SparseMatrix


@torch.no_grad()
def compact(model: nn.Module, graph: Graph) -> tuple[nn.Module, Graph]:
    """Drop what no output depends on; the outputs in evaluation mode stay the same.

    What a model drops it knows itself, in its ``shrink``: stacks of layers batch norms,
    which become part of the weights, and hidden units that nothing reads or that are
    constant (before a layer norm: that are both), `GAT` whole heads of them; `ResGCN`
    channels and blocks; and all the input features that no weight reads, which leave
    ``x``, too. Edges of value 0 leave
    the adjacency of GCN and GIN; in the others they count as neighbours. Of what is
    left, wide weights of mostly zeros are multiplied as sparse matrices, where extra
    `fast` is installed and no gradient is wanted: `gebt.kernels.times_sparse_pays`.

    PyG's own GCN, GraphSAGE and GAT (with ELU), adapted, become gebt's, which are
    faster, where gebt has their shape: see `gebt.models.translate`. Any other
    adapted model, and a registered one without a ``shrink``, stays as it is, on the
    graph that the ticket left.

    Args:
        model: one of gebt's, `register`'s or `adapt`'s, with pruned weights set to
            zero; not changed.
        graph: the graph it runs on; not changed.

    Returns:
        The smaller model, in evaluation mode, and the smaller graph.

    Raises:
        ValueError: if gebt does not know the model, or it does not fit the graph.
    """
    check_graph(graph)
    check_not_compiled(model)
    if isinstance(model, Adapted):
        # PyG divides by the sum of the values, gebt by the sum of their magnitudes.
        adjacency = model.seen(graph.adjacency)
        signed = bool((adjacency.value < 0).any())
        translated = None if signed else translate(model.model)
        if translated is None:
            return _copy(model).eval(), graph
        model, graph = translated, replace(graph, adjacency=adjacency)
    check_not_pruned(model)
    shrink = getattr(model, "shrink", None)
    if shrink is None and type(model) in CLASSES.values():
        return _copy(model).eval(), graph
    if shrink is None:
        raise ValueError(
            f"cannot compact a {type(model).__name__}: gebt knows the structure of "
            f"{', '.join(CLASSES)}. For a PyG model use `gebt.models.adapt`."
        )
    if isinstance(graph, PrunedGraph):  # whose masks fit the larger model
        graph = graph.without_masks()
    small, reads = shrink()
    check_features(reads.numel(), graph)
    adjacency, link = graph.adjacency, graph.link
    counts = adjacency.value != 0
    if getattr(model, "ignores_zeros", False) and not counts.all():
        adjacency, link = adjacency.select(counts), link[counts]
    x, columns = graph.x, graph.columns
    if not reads.all():
        x = x.select_columns(reads) if isinstance(x, SparseMatrix) else x[:, reads]
        left = reads.nonzero().squeeze(1)
        columns = left if columns is None else columns[left]
    return small, replace(graph, x=x, adjacency=adjacency, link=link, columns=columns)


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; tensors that a layer keeps of its last forward lose their history.

    Such tensors (SuperGATConv has some) cannot be copied with it.
    """
    kept = [t for module in model.modules() for t in vars(module).values()]
    known = {id(t): t.detach() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    return deepcopy(model, known)


def check_features(read: int, graph: Graph) -> None:
    """Raise a ValueError unless a model reads as many features as the graph has."""
    if read != graph.num_features:
        raise ValueError(
            f"the model reads {read} features, but the graph has {graph.num_features}."
        )
