"""A ticket as a transform of PyG's data."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from gebt._checks import check_choice
from gebt.graph import Graph
from gebt.tickets.ticket import Links, Ticket


class ApplyTicket(BaseTransform):
    """Prunes the edges of PyG's data to a ticket's links, and carries their values.

    Edges of dropped links leave ``edge_index`` and every attribute of edges, and so do
    edges that are listed again, as in `gebt.Graph.from_pyg`. Each edge that stays has
    its own weight times its link's learned value, where the weights were, in a
    one-column ``edge_attr``, else in ``edge_weight``. `GCNConv` normalises these as
    gebt's models do, unless a value is negative: then gebt counts its magnitude to the
    degree. Self-loops stay as they are.

    It reads and hashes the whole graph: apply it once, before any sampling.

    Args:
        ticket: drawn on that data.
        links: ``"learned"``, or ``"binary"`` for the data's own weights, if it has
            any; for layers that take none.

    Raises:
        ValueError: when applied to another graph.
    """

    def __init__(self, ticket: Ticket, *, links: Links = "learned"):
        self.ticket = ticket
        check_choice("links", links, Links)
        self.links = links

    def forward(self, data: Data) -> Data:
        """The pruned data; what was given is not changed."""
        graph = Graph.from_pyg(data)
        present = self.ticket.prune(graph).present
        link = link_of_edges(graph, data.edge_index)
        keep = torch.cat([present, present.new_ones(1)])[link] & _first(data.edge_index)
        pruned = data.edge_subgraph(keep)
        if self.links == "learned":
            weigh(pruned, self.ticket.link_score, link[keep])
        return pruned

    def __repr__(self) -> str:
        # PyG's data sets tell by it whether what they have on disk is still right.
        found = f"{self.ticket}, {self.ticket.dataset['fingerprint'][:12]}"
        return f"{type(self).__name__}({found}, links={self.links!r})"


def link_of_edges(graph: Graph, edge_index: Tensor) -> Tensor:
    """(E,) the link of each edge that PyG's data lists; L for self-loops.

    Args:
        graph: made of that data.
        edge_index: (2, E) of the data.
    """
    source, target = edge_index.long()
    entry = graph.adjacency.pattern.find(target, source)
    return torch.cat([graph.link, graph.link.new_tensor([graph.num_links])])[entry]


def _first(edge_index: Tensor) -> Tensor:
    """(E,) whether an edge is the first of its kind; self-loops all count."""
    edges, kind = edge_index.unique(dim=1, return_inverse=True)
    place = torch.arange(kind.numel(), device=kind.device)
    first = place.new_full((edges.shape[1],), kind.numel())
    first.scatter_reduce_(0, kind, place, "amin")
    return (place == first[kind]) | (edge_index[0] == edge_index[1])


def weigh(data: Data, score: Tensor, link: Tensor) -> None:
    """Multiply the edges' weights by their links' scores, in place, differentiably.

    Args:
        data: its weights are where `gebt.Graph.from_pyg` reads them.
        score: (L,).
        link: (E,) of each edge, L for self-loops.
    """
    padded = torch.cat([score, score.new_ones(1)]).to(link.device)
    factor = padded.index_select(0, link)  # its gradient repeats on several threads
    name, own = weights_of(data)
    if own is None:
        data[name] = factor.to(data.x.dtype)
    else:
        data[name] = own * factor.to(own.dtype).view(own.shape)


def weights_of(data: Data) -> tuple[str, Tensor | None]:
    """The attribute that holds, or is to hold, the edges' weights, and these."""
    attribute = data.edge_attr
    if data.edge_weight is None and attribute is not None:
        if attribute.is_floating_point() and attribute.numel() == data.num_edges:
            return "edge_attr", attribute
    return "edge_weight", data.edge_weight
