"""The same networks out of PyG's layers, and what every model's tests share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import shaken
from torch import Tensor, nn
from torch_geometric.nn import (
    BatchNorm,
    DeepGCNLayer,
    GATConv,
    GCNConv,
    GENConv,
    GINConv,
    LayerNorm,
    MessagePassing,
    SAGEConv,
)

from gebt import Graph, SparseMatrix
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN
from gebt.models._stack import MapLayer

SMALL: dict[str, Callable[..., nn.Module]] = {
    "GCN": lambda f, c, **options: GCN(f, [9, 5], c, **options),
    "GIN": lambda f, c, **options: GIN(f, [9, 5], c, **options),
    "GraphSAGE": lambda f, c, **options: GraphSAGE(f, [9, 5], c, **options),
    "GAT": lambda f, c, **options: GAT(f, 5, c, heads=3, output_heads=2, **options),
    "ResGCN": lambda f, c, **options: ResGCN(f, 6, c, layers=3, **options),
}
"""Every model, small: ``SMALL[name](num_features, num_outputs, **options)``."""

SHAPES: list[dict[str, Any]] = [
    {"residual": residual, "norm": norm, "input_map": first, "output_map": last}
    for residual in (False, True)
    for norm in ("none", "batch", "layer")
    for first, last in ((False, False), (True, False), (False, True), (True, True))
][1:]
"""What stacks can have beside their layers, all combinations but none."""


def said(shape: dict[str, Any]) -> str:
    """A shape as the name of a test's case."""
    return "-".join(name if v is True else str(v) for name, v in shape.items() if v)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def double(graph: Graph) -> Graph:
    """The graph in float64, with random positive edge weights; nodes 0, 57, 119 alone.

    Of a smaller graph, those of them that it has.
    """
    pattern = graph.adjacency.pattern
    alone = torch.zeros(graph.num_nodes, dtype=torch.bool)
    alone[[i for i in (0, 57, 119) if i < graph.num_nodes]] = True
    keep = torch.ones(graph.num_links, dtype=torch.bool)
    keep[graph.link[alone[pattern.row] | alone[pattern.col]]] = False
    graph = graph.keep_links(keep)
    draw = torch.Generator().manual_seed(3)
    count = graph.adjacency.pattern.nnz
    weight = 0.2 + torch.rand(count, generator=draw, dtype=torch.float64)
    x = graph.x
    x = x.with_value(x.value.double()) if isinstance(x, SparseMatrix) else x.double()
    return replace(graph, x=x, adjacency=graph.adjacency.with_value(weight))


def dense(x: Tensor | SparseMatrix) -> Tensor:
    return x.to_dense() if isinstance(x, SparseMatrix) else x


def edge_index(graph: Graph) -> Tensor:
    pattern = graph.adjacency.pattern
    return torch.stack([pattern.col, pattern.row]).long()


def weighted(conv: MessagePassing, x: Tensor, edges: Tensor, value: Tensor) -> Tensor:
    """A convolution whose messages are multiplied; self-loops at the end count 1."""

    def multiply(conv: MessagePassing, inputs: object, messages: Tensor) -> Tensor:
        loops = value.new_ones(messages.shape[0] - value.numel())
        factor = torch.cat([value, loops])
        return (messages.transpose(0, -1) * factor).transpose(0, -1)

    hook = conv.register_message_forward_hook(multiply)
    try:
        return conv(x, edges)
    finally:
        hook.remove()


class Peer(nn.Module):
    """Holds copies of a gebt model's parameters.

    Attributes:
        pairs: the model's parameters with the peer's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []

    def give(self, module: nn.Module, **parameters: nn.Parameter) -> nn.Module:
        """Copy parameters in; ``lin__weight`` is PyG's ``lin.weight``, transposed."""
        module.double()
        for name, ours in parameters.items():
            theirs = module.get_parameter(name.replace("__", "."))
            copy = turned(ours.detach())
            assert theirs.shape == copy.shape
            theirs.data = copy.clone()
            self.pairs.append((ours, theirs))
        assert len(parameters) == len(list(module.parameters()))
        return module


def turned(weight: Tensor) -> Tensor:
    """From gebt's (in, out) to PyG's (out, in), and back; vectors stay."""
    return weight.t() if weight.dim() == 2 else weight


class StackPeer(Peer):
    """`GCN`, `GIN`, `GraphSAGE` and `GAT` out of PyG's convolutions."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.act = nn.ELU() if isinstance(model, GAT) else nn.ReLU()
        convs = {GCN: self.gcn, GIN: self.gin, GraphSAGE: self.sage, GAT: self.gat}
        self.own: dict[int, nn.Module] = {}
        self.convs = nn.ModuleList()
        for k, layer in enumerate(model.layers):
            if isinstance(layer, MapLayer):
                self.convs.append(self.map(layer.weight, bias=layer.bias))
                continue
            self.convs.append(convs[type(model)](layer))
            # PyG's other layers have one themselves.
            if isinstance(model, GCN | GIN) and layer.own_weight is not None:
                self.own[k] = self.map(layer.own_weight)
        self.norms = {k: self.norm(norm) for k, norm in model.normed().items()}
        self.beside = nn.ModuleList([*self.own.values(), *self.norms.values()])

    def map(self, weight, **bias):
        linear = nn.Linear(*weight.shape, bias=bool(bias))
        return self.give(linear, weight=weight, **bias)

    def norm(self, norm):
        if not isinstance(norm, nn.BatchNorm1d):
            layer = LayerNorm(norm.over, mode="node")
            return self.give(layer, weight=norm.weight, bias=norm.bias)
        copy = BatchNorm(norm.num_features).double()
        copy.module.load_state_dict(norm.state_dict())
        return self.give(copy, module__weight=norm.weight, module__bias=norm.bias)

    def gcn(self, layer):
        conv = GCNConv(*layer.weight.shape)
        return self.give(conv, lin__weight=layer.weight, bias=layer.bias)

    def gin(self, layer):
        conv = GINConv(nn.Linear(*layer.weight.shape))
        return self.give(conv, nn__weight=layer.weight, nn__bias=layer.bias)

    def sage(self, layer):
        return self.give(
            SAGEConv(*layer.weight.shape),
            lin_l__weight=layer.weight,
            lin_l__bias=layer.bias,
            lin_r__weight=layer.own_weight,
        )

    def gat(self, layer):
        _, heads, width = layer.source.shape
        own = {} if layer.own_weight is None else {"res__weight": layer.own_weight}
        options = {"heads": heads, "concat": layer.concat, "residual": bool(own)}
        return self.give(
            GATConv(layer.weight.shape[0], width, **options),
            lin__weight=layer.weight,
            att_src=layer.source,
            att_dst=layer.target,
            bias=layer.bias,
            **own,
        )

    def forward(self, x: Tensor, edges: Tensor, value: Tensor) -> Tensor:
        for depth, conv in enumerate(self.convs):
            x = self.act(x) if depth else x
            if isinstance(conv, nn.Linear):
                out = conv(x)
            elif isinstance(conv, GCNConv):
                out = conv(x, edges, value)
            else:
                out = weighted(conv, x, edges, value)
            if depth in self.own:
                out = out + self.own[depth](x)
            x = self.norms[depth](out) if depth in self.norms else out
        return x


class ResGCNPeer(Peer):
    """`ResGCN` out of PyG's ``GENConv`` and ``DeepGCNLayer``, for links of value 1."""

    def __init__(self, model: ResGCN):
        super().__init__()
        first, *others = (self.convolution(layer) for layer in model.layers)
        *norms, last = (self.norm(norm) for norm in model.norms)
        self.encoder = self.linear(model.encoder)
        self.first = first
        self.blocks = nn.ModuleList(
            DeepGCNLayer(conv, norm, nn.ReLU(), block="res+", dropout=0.0)
            for conv, norm in zip(others, norms, strict=True)
        )
        self.norms = [*norms, last]
        self.output = self.linear(model.output)

    def linear(self, layer):
        linear = nn.Linear(*layer.weight.shape)
        return self.give(linear, weight=layer.weight, bias=layer.bias)

    def convolution(self, layer):
        conv = GENConv(*layer.weight.shape, aggr="softmax", num_layers=1, bias=True)
        lin = {"mlp__0__weight": layer.weight, "mlp__0__bias": layer.bias}
        return self.give(conv, **lin)

    def norm(self, norm):
        copy = nn.BatchNorm1d(norm.num_features).double()
        copy.load_state_dict(norm.state_dict())
        return self.give(copy, weight=norm.weight, bias=norm.bias)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(self.encoder(x), edges)
        for block in self.blocks:
            h = block(h, edges)
        return self.output(self.norms[-1](h).relu())


def assert_gradients_agree(
    model: nn.Module,
    peer: Peer,
    out: Tensor,
    expected: Tensor,
    *inputs: tuple[Tensor, Tensor],
) -> None:
    """Of every parameter and of pairs of inputs, for a random weighing of outputs."""
    weigh = torch.randn_like(expected)
    (out * weigh).sum().backward()
    (expected * weigh).sum().backward()
    for ours, theirs in inputs:
        assert ours.grad.count_nonzero() > 0
        close(ours.grad, theirs.grad)
    assert len(peer.pairs) == len(list(model.parameters()))
    for ours, theirs in peer.pairs:
        close(ours.grad, turned(theirs.grad))


def assert_equals_pyg(
    model: nn.Module, graph: Graph, training: bool = False
) -> StackPeer:
    """A stack: outputs and gradients of parameters, link values, dense features."""
    peer = StackPeer(shaken(model)).train(training)
    model.train(training).zero_grad()
    value = graph.adjacency.value
    ours, theirs = (value.detach().clone().requires_grad_() for _ in range(2))
    inputs = [(ours, theirs)]
    x, y = graph.x, dense(graph.x)
    if isinstance(x, Tensor):
        x, y = (x.clone().requires_grad_() for _ in range(2))
        inputs.append((x, y))
    out = model(x, graph.adjacency.with_value(ours))
    expected = peer(y, edge_index(graph), theirs)
    close(out, expected)
    assert_gradients_agree(model, peer, out, expected, *inputs)
    return peer


def largest_saved_tensor(run: Callable[[], Tensor]) -> int:
    """Elements of the largest tensor that a forward keeps for its backward."""
    sizes = [0]

    def pack(tensor: Tensor) -> Tensor:
        # A view keeps what it views.
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return max(sizes)
