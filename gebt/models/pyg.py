"""A user's own PyG model, behind gebt's ``forward(x, adjacency)``."""

import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gebt.models._layers import Features
from gebt.models._stack import LinearStack
from gebt.models.gcn import GCN
from gebt.models.sage import GraphSAGE
from gebt.sparse import SparseMatrix

_CALLS = "forward(x, edge_index) or forward(x, edge_index, edge_weight)"


class Adapted(nn.Module):
    """What `adapt` returns; ``model`` is the user's, unchanged."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._takes_weight = _takes_edge_weight(model)
        for name, module in model.named_modules():
            if getattr(module, "cached", False):
                raise ValueError(
                    f"{name or 'the model'} is a {type(module).__name__} with "
                    "`cached=True`: it would keep the first edge weights it sees and "
                    "ignore the learned ones. Build it with `cached=False`."
                )
        if not self._takes_weight and not self._convolutions():
            raise ValueError(
                f"{type(model).__name__} takes no edge weight and has no PyG "
                "`MessagePassing` layer whose messages could be weighted instead. Give "
                "its forward an `edge_weight`."
            )

    def forward(self, x: Features, adjacency: SparseMatrix) -> Tensor:
        """(N, F), dense or sparse, and (N, N) to whatever the model gives."""
        if isinstance(x, SparseMatrix):
            x = x.derived("dense", x.to_dense)
        edges = adjacency.pattern.edge_index
        if self._takes_weight:
            return self.model(x, edges, edge_weight=adjacency.value)
        with ExitStack() as undo:
            for layer in self._convolutions():
                hook = layer.register_message_forward_hook(_weigh(adjacency.value))
                undo.callback(hook.remove)
            return self.model(x, edges)

    def _convolutions(self) -> list[Any]:
        from torch_geometric.nn import MessagePassing

        return [m for m in self.model.modules() if isinstance(m, MessagePassing)]


def adapt(model: nn.Module) -> Adapted:
    """Let gebt search, prune and retrain a PyG model as it is.

    A model that takes edge weights is given the learned link values. In any other,
    each message of every PyG layer is multiplied by its link's value; self-loops that
    a layer adds count 1. The parameters stay the model's own: train it through gebt,
    then use it as before.

    Args:
        model: with ``forward(x, edge_index)`` or ``forward(x, edge_index,
            edge_weight)``; other arguments must be optional. Features reach it dense.

    Raises:
        ValueError: if its forward takes other arguments, one of its layers caches the
            edge weights, or links could not reach it.
    """
    return Adapted(model)


def _takes_edge_weight(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {n: p for n, p in parameters.items() if p.kind not in unnamed}
    required = [n for n, p in named.items() if p.default is inspect.Parameter.empty]
    others = set(required[2:]) - {"edge_weight"}
    if len(named) < 2 or list(named)[1] != "edge_index" or others:
        raise ValueError(
            f"{type(model).__name__} has forward({', '.join(parameters)}); gebt calls "
            f"{_CALLS}. Wrap it in a module with such a forward."
        )
    # PyG's own models name an edge weight even where their layers ignore it.
    supported = getattr(model, "supports_edge_weight", True)
    return "edge_weight" in named and supported is not False


def _weigh(value: Tensor) -> Any:
    """A hook that multiplies messages by the values of their links."""

    def hook(layer: Any, _: Any, messages: Tensor) -> Tensor:
        dim = layer.node_dim % messages.dim()
        count = messages.shape[dim]
        if count < value.numel():
            raise ValueError(
                f"a {type(layer).__name__} sends {count} messages over "
                f"{value.numel()} edges, so gebt cannot tell their links. Give the "
                "model's forward an `edge_weight`."
            )
        # PyG appends the self-loops that a layer adds.
        factor = torch.cat([value, value.new_ones(count - value.numel())])
        shape = [1] * messages.dim()
        shape[dim] = count
        return messages * factor.view(shape)

    return hook


@torch.no_grad()
def translate(model: nn.Module) -> LinearStack | None:
    """The same model out of gebt's layers, or None where gebt has no such model.

    Knows PyG's ``GCN`` and ``GraphSAGE`` of `torch_geometric.nn.models` with ReLU
    between plain layers.
    """
    from torch_geometric.nn import GCNConv, SAGEConv, models

    kind: Any = {models.GCN: GCN, models.GraphSAGE: GraphSAGE}.get(type(model))
    if kind is None:
        return None
    peer: Any = model
    plain = (
        isinstance(peer.act, nn.ReLU)
        and not peer.act_first
        and all(isinstance(norm, nn.Identity) for norm in peer.norms or [])
        and peer.jk_mode is None
        and not hasattr(peer, "lin")
        and all(
            conv.flow == "source_to_target"
            and (
                conv.normalize
                and conv.add_self_loops
                and not conv.improved
                and conv.aggr == "add"
                if isinstance(conv, GCNConv)
                else isinstance(conv, SAGEConv)
                and not (conv.normalize or conv.project)
                and conv.root_weight
                and conv.aggr == "mean"
            )
            for conv in peer.convs
        )
    )
    if not plain:
        return None
    first, widths = peer.convs[0], [conv.out_channels for conv in peer.convs]
    # Not `in_channels`: that is -1 where PyG found the width at the first call.
    features = (first.lin if kind is GCN else first.lin_l).weight.shape[1]
    out = kind(features, widths[:-1], widths[-1], dropout=float(peer.dropout.p))
    out.to(next(model.parameters()))  # before the copies, which would be rounded
    for layer, conv in zip(out.stacked(), peer.convs, strict=True):
        if isinstance(conv, GCNConv):
            layer.weight.copy_(conv.lin.weight.t())
            bias = conv.bias
        else:
            layer.weight.copy_(conv.lin_l.weight.t())
            layer.own_weight.copy_(conv.lin_r.weight.t())
            bias = conv.lin_l.bias
        if bias is not None:
            layer.bias.copy_(bias)
    return out
