"""A user's own PyG model, behind gebt's ``forward(x, adjacency)``."""

import inspect
import warnings
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from gebt.models._layers import EPSILON, Features
from gebt.models._stack import Norm, Stack
from gebt.models.gat import GAT
from gebt.models.gcn import GCN
from gebt.models.sage import GraphSAGE
from gebt.sparse import SparseMatrix

_CALLS = "forward(x, edge_index) or forward(x, edge_index, edge_weight)"
_TAKE_WEIGHT = "Give the model's forward an `edge_weight`."
"""What helps where links cannot be told: the model weighs its messages itself."""


class Adapted(nn.Module):
    """What `adapt` returns; ``model`` is the user's.

    Its layers get hooks that do nothing outside this module's forward, so that several
    threads can run it at once, each with an adjacency of its own.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._takes_weight = _takes_edge_weight(model)
        _check_state(model)
        for name, module in model.named_modules():
            if getattr(module, "cached", False):
                raise ValueError(
                    f"{name or 'the model'} is a {type(module).__name__} with "
                    "`cached=True`: it would keep the first edge weights it sees and "
                    "ignore the learned ones. Build it with `cached=False`."
                )
        _check_edge_features(model, self._takes_weight)
        if self._takes_weight:
            return
        if not self._convolutions():
            raise ValueError(
                f"{type(model).__name__} takes no edge weight and has no PyG "
                "`MessagePassing` layer whose messages could be weighted instead. Give "
                "its forward an `edge_weight`."
            )
        for name, module in model.named_modules():
            if module._compiled_call_impl or hasattr(module, "_orig_mod"):
                raise ValueError(
                    f"{name or 'the model'} is compiled: PyG leaves out the hooks that "
                    "would weigh its messages. Adapt the model before it is compiled."
                )
            if getattr(module, "ckpt_grad", False):
                raise ValueError(
                    f"{name or 'the model'} is a {type(module).__name__} with "
                    "`ckpt_grad=True`: it would repeat its messages in the backward "
                    "without their links. Build it with `ckpt_grad=False`."
                )
        self._listen()

    def forward(self, x: Features, adjacency: SparseMatrix) -> Tensor:
        """(N, F), dense or sparse, and (N, N) to the model's outputs (N, ...)."""
        if isinstance(x, SparseMatrix):
            x = x.derived("dense", x.to_dense)
        if not self._takes_weight:
            # PyG's layers call no hooks while they are compiled.
            return torch.compiler.disable(self._weighed)(x, adjacency)
        edges = adjacency.pattern.edge_index
        return self._checked(self.model(x, edges, edge_weight=adjacency.value), x)

    def seen(self, adjacency: SparseMatrix) -> SparseMatrix:
        """The adjacency with the values that reach the model.

        Edge weights of the data reach a model that takes some, no other.
        """
        return adjacency if self._takes_weight else adjacency.without_weight()

    def _weighed(self, x: Tensor, adjacency: SparseMatrix) -> Tensor:
        self._listen()  # layers may have been replaced
        adjacency = self.seen(adjacency)
        token = _links.set(_Links(adjacency))
        try:
            return self._checked(self.model(x, adjacency.pattern.edge_index), x)
        finally:
            _links.reset(token)

    def _checked(self, out: Any, x: Tensor) -> Tensor:
        if not isinstance(out, Tensor) or out.shape[:1] != x.shape[:1]:
            shape = f" {tuple(out.shape)}" if isinstance(out, Tensor) else ""
            raise ValueError(
                f"{type(self.model).__name__} must give one tensor with a row of "
                f"outputs for each of the {x.shape[0]} nodes, got a "
                f"{type(out).__name__}{shape}. Wrap it in a module that returns that."
            )
        return out

    def _listen(self) -> None:
        with _hooking:
            for layer in self._convolutions():
                # Once, also where two adapted models share a layer.
                if _weigh not in layer._message_forward_hooks.values():
                    layer.register_propagate_forward_pre_hook(_enter)
                    layer.register_message_forward_hook(_weigh)
                    layer.register_propagate_forward_hook(_leave)

    def _convolutions(self) -> list[Any]:
        from torch_geometric.nn import MessagePassing

        return [m for m in self.model.modules() if isinstance(m, MessagePassing)]


def adapt(model: nn.Module) -> Adapted:
    """Let gebt search, prune and retrain a PyG model as it is.

    A model that takes edge weights is given the learned link values, times the edge
    weights of the data. In any other, each message of every PyG layer is multiplied
    by its link's learned value, found by the edge's source and target; self-loops
    that a layer adds count 1, edges that the graph does not have are refused. The
    adapted model may run in several threads at once. The parameters stay the model's
    own: train it through gebt, then use it as before.

    Args:
        model: with ``forward(x, edge_index)`` or ``forward(x, edge_index,
            edge_weight)``; other arguments must be optional. Features reach it dense,
            edge features not at all.

    Raises:
        ValueError: if its forward takes other arguments, one of its layers caches the
            edge weights or reads edge features, or links could not reach it.
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
            f"{_CALLS}{', without edge features' * ('edge_attr' in others)}. Wrap it "
            "in a module with such a forward."
        )
    if isinstance(model, torch.fx.GraphModule) and any(
        getattr(node.target, "__module__", "").startswith("torch_geometric.nn.to_het")
        for node in model.graph.nodes
    ):
        raise ValueError(
            "the model was made by PyG's `to_hetero` and takes several kinds of nodes; "
            "gebt knows one. Adapt the model that it was made from, on "
            "`data.to_homogeneous()`."
        )
    # PyG's own models name an edge weight even where their layers ignore it.
    supported = getattr(model, "supports_edge_weight", True)
    return "edge_weight" in named and supported is not False


def _check_state(model: nn.Module) -> None:
    """Refuse what gebt can neither copy nor write."""
    for name, entry in model.state_dict().items():
        if not isinstance(entry, Tensor) or entry.layout != torch.strided:
            kind = entry.layout if isinstance(entry, Tensor) else type(entry).__name__
            raise ValueError(
                f"{name!r} of the state of {type(model).__name__} is {kind}, not a "
                "dense tensor. Register such a buffer with `persistent=False`."
            )


def _check_edge_features(model: nn.Module, takes_weight: bool) -> None:
    """Refuse a layer that would miss them; warn where they are optional."""
    given = "edge_attr" in inspect.signature(model.forward).parameters
    if takes_weight and not given:
        return  # what its layers read it makes itself, as out of the edge weight
    for name, module in model.named_modules():
        if _reads_edge_features(module):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} that reads edge "
                "features, which gebt does not keep. Build the model without them; if "
                "it makes them itself, of `x` and `edge_index`, let its forward take "
                "an `edge_weight`, too, and no `edge_attr`."
            )
    # PyG's own models name them where their layers take none.
    if given and not hasattr(model, "supports_edge_attr"):
        warnings.warn(
            f"{type(model).__name__} takes an `edge_attr`, which gebt does not keep: "
            "it is called without. If it means edge weights, call it `edge_weight`.",
            stacklevel=4,
        )


def _reads_edge_features(module: Any) -> bool:
    from torch_geometric.nn import (
        CGConv,
        GINEConv,
        GMMConv,
        MessagePassing,
        NNConv,
        SplineConv,
    )

    if not isinstance(module, MessagePassing):
        return False
    own = inspect.signature(module.forward).parameters.get("edge_attr")
    return (
        isinstance(module, GINEConv | GMMConv | NNConv | SplineConv)
        or (isinstance(module, CGConv) and module.dim > 0)
        or (own is not None and own.default is inspect.Parameter.empty)
        or any(getattr(module, name, None) for name in ("edge_dim", "lin_edge"))
    )


class _Links:
    """What the messages of one forward are multiplied by."""

    def __init__(self, adjacency: SparseMatrix):
        self._pattern = adjacency.pattern
        self._value = adjacency.value
        # Layers that pass on the edges they get all read the same.
        self._last = (adjacency.pattern.edge_index, adjacency.value)
        self.factor: dict[Any, Tensor] = {}

    def enter(self, layer: Any, edges: Any) -> None:
        """Find the links of the messages that a layer is about to send."""
        if edges is not self._last[0]:
            if type(edges) is not Tensor or edges.layout != torch.strided:
                layout = f", {edges.layout}" if isinstance(edges, Tensor) else ""
                raise ValueError(
                    f"a {type(layer).__name__} is given its edges as a "
                    f"{type(edges).__name__}{layout}, so gebt cannot weigh its "
                    "messages. Give it an `edge_index` (2, edges), a plain tensor."
                )
            if not torch.equal(edges, self._last[0]):
                self._last = (edges, self._follow(layer, edges))
        self.factor[layer] = self._last[1]

    def _follow(self, layer: Any, edges: Tensor) -> Tensor:
        """(K,) the value of each edge's link, 1 for self-loops that are none."""
        known, value = self._pattern.edge_index, self._value
        count = value.numel()
        start, (more_from, more_to) = edges[:, :count], edges[:, count:]
        if torch.equal(start, known) and torch.equal(more_from, more_to):
            # Only self-loops that the layer added, which PyG appends.
            return torch.cat([value, value.new_ones(more_to.numel())])
        source, target = edges
        place = self._pattern.find(target, source)
        lost = (place < 0) & (source != target)
        if lost.any():
            first = edges[:, lost][:, 0].tolist()
            raise ValueError(
                f"a {type(layer).__name__} sends messages along {int(lost.sum())} "
                f"edges that the graph does not have, such as {first[0]} -> "
                f"{first[1]}: there is no link to weigh them by. If the model makes "
                "its edges undirected, make the graph so, `Graph.from_pyg(data, "
                "directed=False)`. If it reverses, adds or renumbers some: "
                f"{_TAKE_WEIGHT}"
            )
        padded = torch.cat([value, value.new_ones(1)])
        return padded.index_select(0, torch.where(place < 0, count, place))

    def weigh(self, layer: Any, messages: Any) -> Tensor:
        """The messages, multiplied by the values of their links."""
        factor = self.factor[layer]
        sent = f"a {type(messages).__name__}"
        if isinstance(messages, Tensor):
            dim = layer.node_dim % messages.dim()
            sent = f"{messages.shape[dim]} messages"
            if messages.shape[dim] == factor.numel():
                shape = [1] * messages.dim()
                shape[dim] = factor.numel()
                return messages * factor.view(shape)
        raise ValueError(
            f"a {type(layer).__name__} sends {sent} over {factor.numel()} edges, so "
            f"gebt cannot tell their links. {_TAKE_WEIGHT}"
        )

    def leave(self, layer: Any, size: Any) -> None:
        """Check that the messages went from and to all nodes."""
        del self.factor[layer]
        nodes = self._pattern.shape[0]
        if other := [count for count in size if count not in (None, nodes)]:
            raise ValueError(
                f"a {type(layer).__name__} sends messages among {other[0]} nodes, but "
                f"the graph has {nodes}, so gebt cannot tell their links. "
                f"{_TAKE_WEIGHT}"
            )


_links: ContextVar[_Links | None] = ContextVar("_links", default=None)
_hooking = Lock()


# Functions of the module, so that a model with these hooks is copied and pickled.
def _enter(layer: Any, inputs: Any) -> None:
    links = _links.get()
    if torch._C._current_autograd_node() is None:
        layer.__dict__["_gebt_weighed"] = links is not None
    elif layer.__dict__.get("_gebt_weighed"):
        raise ValueError(
            f"a {type(layer).__name__} repeats its messages in the backward, as "
            "activation checkpointing does, where gebt cannot weigh them by their "
            f"links. Turn checkpointing off. Or: {_TAKE_WEIGHT}"
        )
    if links is not None:
        links.enter(layer, inputs[0])


def _weigh(layer: Any, _: Any, messages: Any) -> Tensor | None:
    links = _links.get()
    return None if links is None else links.weigh(layer, messages)


def _leave(layer: Any, inputs: Any, _: Any) -> None:
    if (links := _links.get()) is not None:
        links.leave(layer, inputs[1])


@torch.no_grad()
def translate(model: nn.Module) -> Stack[Any] | None:
    """The same model out of gebt's layers, or None where gebt has no such model.

    Knows PyG's ``GCN``, ``GraphSAGE`` and ``GAT`` of `torch_geometric.nn.models`, with
    ReLU between the layers of the first two and ELU between GAT's, whose heads are
    side by side; a batch norm or a layer norm of each node after them or none; and
    ``jk="last"``, which is a linear map at the end, or none.
    """
    from torch_geometric.nn import GATConv, GCNConv, models

    ours = {models.GCN: GCN, models.GraphSAGE: GraphSAGE, models.GAT: GAT}
    kind: Any = ours.get(type(model))
    if kind is None:
        return None
    peer: Any = model
    last = peer.jk_mode == "last"
    plain = (
        isinstance(peer.act, nn.ELU if kind is GAT else nn.ReLU)
        and getattr(peer.act, "alpha", 1) == 1
        and not peer.act_first
        and peer.jk_mode in (None, "last")
        and all(
            _is_plain(conv, side_by_side=last or conv is not peer.convs[-1])
            for conv in peer.convs
        )
    )
    norms = list(peer.norms or [])[: len(peer.convs) - (not last)]
    kinds = {_norm_kind(norm) for norm in norms} or {"none"}
    if not plain or len(kinds) > 1 or None in kinds:
        return None
    first, widths = peer.convs[0], [conv.out_channels for conv in peer.convs]
    if last:
        widths.append(peer.lin.out_features)
    # Not `in_channels`: that is -1 where PyG found the width at the first call.
    features = (first.lin_l if kind is GraphSAGE else first.lin).weight.shape[1]
    shape: Any = {"norm": kinds.pop(), "output_map": last}
    shape["dropout"] = float(peer.dropout.p)
    if kind is GAT:
        shape |= {"heads": first.heads, "residual": first.residual}
        shape["output_heads"] = 1 if last else first.heads
    out = kind(features, widths[:-1], widths[-1], **shape)
    out.to(next(model.parameters()))  # before the copies, which would be rounded
    for norm, theirs in zip(out.norms, norms, strict=False):
        norm.load_state_dict(getattr(theirs, "module", theirs).state_dict())
    maps = [*peer.convs, peer.lin] if last else peer.convs
    for layer, conv in zip(out.stacked(), maps, strict=True):
        if isinstance(conv, nn.Linear):
            layer.weight.copy_(conv.weight.t())
            bias = conv.bias
        elif isinstance(conv, GCNConv):
            layer.weight.copy_(conv.lin.weight.t())
            bias = conv.bias
        elif isinstance(conv, GATConv):
            layer.weight.copy_(conv.lin.weight.t())
            layer.source.copy_(conv.att_src)
            layer.target.copy_(conv.att_dst)
            if conv.residual:
                layer.own_weight.copy_(conv.res.weight.t())
            bias = conv.bias
        else:
            layer.weight.copy_(conv.lin_l.weight.t())
            layer.own_weight.copy_(conv.lin_r.weight.t())
            bias = conv.lin_l.bias
        if bias is not None:
            layer.bias.copy_(bias)
    return out


def _is_plain(conv: Any, side_by_side: bool) -> bool:
    """Whether a convolution is one of gebt's; how its heads stand, if it has some."""
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv

    if conv.flow != "source_to_target":
        return False
    if isinstance(conv, GCNConv):
        own = conv.normalize and conv.add_self_loops and not conv.improved
        return own and conv.aggr == "add"
    if isinstance(conv, SAGEConv):
        own = conv.root_weight and not (conv.normalize or conv.project)
        return own and conv.aggr == "mean"
    return (
        isinstance(conv, GATConv)
        and conv.lin is not None
        and conv.lin_edge is None
        and conv.concat == side_by_side
        and conv.negative_slope == 0.2
        and conv.add_self_loops
        and conv.aggr == "add"
    )


def _norm_kind(norm: Any) -> Norm | None:
    """What gebt calls one of PyG's norms; None for one it has not."""
    from torch_geometric.nn import BatchNorm, LayerNorm

    if isinstance(norm, nn.Identity):
        return "none"
    if isinstance(norm, LayerNorm):
        same = norm.mode == "node" and norm.eps == EPSILON and norm.affine
        return "layer" if same else None
    if not isinstance(norm, BatchNorm):
        return None
    # As torch makes them: the translation has no other.
    inner = norm.module
    same = inner.eps == EPSILON and inner.momentum == 0.1
    return "batch" if same and inner.affine and inner.track_running_stats else None
