"""Channels of any torch module that can leave it: found by tracing, dropped physically.

A chain is what belongs to the channels of one batch norm: the convolutions and linear
maps that write them, the norm, and those that read what it gives.
"""

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

_CONV = nn.Conv1d, nn.Conv2d, nn.Conv3d
_MAPS = *_CONV, nn.Linear
# What gives 0 of 0, each channel by itself.
_KEEPS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_KEEP = (
    *(torch.relu, F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, torch.tanh, F.dropout),
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool2d),
)
_SUMS = operator.add, operator.iadd, torch.add


@dataclass(frozen=True)
class Chain:
    """What belongs to the channels of a batch norm, by the modules' names.

    Attributes:
        norm: of the batch norm.
        writers: whose outputs they are.
        readers: whose inputs they are, and how many inputs each channel is.
    """

    norm: str
    writers: tuple[str, ...]
    readers: Mapping[str, int]


def find_chains(model: nn.Module) -> list[Chain]:
    """The chains of a module, in the order in which they run.

    A batch norm whose channels something else reads or writes too, as a residual sum
    does, has none.

    Raises:
        ValueError: if there are none, or torch cannot trace the module.
    """
    name = type(model).__name__
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # whatever the module's own code raises for a proxy
        raise ValueError(
            f"gebt does not know the channels of a {name}: torch.fx cannot trace it: "
            f"{error}"
        ) from error
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    found = []
    for node in graph.nodes:
        norm = _module(model, node)
        if not isinstance(norm, _BatchNorm) or norm.weight is None:
            continue
        written = _written(model, node)
        widths = [_width(model, writer) for writer in written]
        if any(width != norm.num_features for width in widths):
            continue  # it is over another axis
        spatial = any(isinstance(_module(model, n), _CONV) for n in written or ())
        read = dict(_read(model, node, norm.num_features, spatial, False))
        if written and read and all(read.values()):
            chain = Chain(
                str(node.target),
                tuple(str(n.target) for n in written),
                {str(reader.target): each for reader, each in read.items()},
            )
            if all(calls[n] == 1 for n in (chain.norm, *chain.writers, *chain.readers)):
                found.append(chain)
    if not found:
        raise ValueError(
            f"gebt finds no channels that could leave a {name}: it knows those of a "
            "batch norm after convolutions or linear maps whose outputs, by "
            "activations, pooling, dropout or flattening, only such maps read. Prune "
            "its weights instead."
        )
    return found


def _module(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _written(model: nn.Module, norm: fx.Node) -> list[fx.Node]:
    """The maps whose sum a norm reads, if nothing else does; else none."""
    writers, seen, ahead = [], {norm}, [norm.args[0]]
    while ahead:
        node: Any = ahead.pop()
        module = _module(model, node) if isinstance(node, fx.Node) else None
        if not isinstance(node, fx.Node) or not set(node.users) <= seen:
            return []
        seen.add(node)
        if isinstance(module, _MAPS) and getattr(module, "groups", 1) == 1:
            writers.append(node)
        elif node.target in _SUMS and len(node.args) == 2 and not node.kwargs:
            ahead += node.args
        elif node.target is operator.matmul:  # a graph's matrix, from the left
            ahead.append(node.args[1])
        else:
            return []
    return writers


def _width(model: nn.Module, writer: fx.Node) -> int:
    module: Any = _module(model, writer)
    return module.out_channels if isinstance(module, _CONV) else module.out_features


def _read(
    model: nn.Module, node: fx.Node, channels: int, spatial: bool, flat: bool
) -> Iterator[tuple[fx.Node, int]]:
    """The nodes where a norm's channels end: how many inputs each is, or 0."""
    for user in node.users:
        module = _module(model, user)
        flattened = flat or _flattens(module, user)
        if isinstance(module, nn.Linear) and (flat or not spatial):
            yield user, module.in_features // channels
        elif isinstance(module, _CONV) and spatial and not flat and module.groups == 1:
            yield user, 1
        elif (
            isinstance(module, _KEEPS)
            or user.target in (*_KEEP, "relu", "relu_", "tanh", "contiguous")
            or (user.target is operator.matmul and user.args[1] is node)
            or flattened != flat
        ):
            yield from _read(model, user, channels, spatial, flattened)
        else:
            yield user, 0


def _flattens(module: nn.Module | None, node: fx.Node) -> bool:
    """Whether a node makes one axis of all but the first."""
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target not in (torch.flatten, "flatten"):
        return False
    return node.args[1:] == (1,) or dict(node.kwargs) == {"start_dim": 1}


@torch.no_grad()
def drop_chains(model: nn.Module, keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with fewer channels, which keep their weights.

    Args:
        model: not changed.
        keep: (H,) boolean by the norm's name, True = kept; others stay whole.
    """
    small = deepcopy(model)
    for chain in find_chains(model):
        if chain.norm not in keep:
            continue
        stay = keep[chain.norm]
        norm: Any = small.get_submodule(chain.norm)
        _cut(norm, stay, 0, "weight", "bias", "running_mean", "running_var")
        norm.num_features = int(stay.sum())
        for name in chain.writers:
            writer: Any = small.get_submodule(name)
            _cut(writer, stay, 0, "weight", "bias")
            width = "out_channels" if isinstance(writer, _CONV) else "out_features"
            setattr(writer, width, int(stay.sum()))
        for name, each in chain.readers.items():
            reader: Any = small.get_submodule(name)
            inputs = stay.repeat_interleave(each)
            _cut(reader, inputs, 1, "weight")
            width = "in_channels" if isinstance(reader, _CONV) else "in_features"
            setattr(reader, width, int(inputs.sum()))
    return small


def _cut(module: nn.Module, keep: Tensor, axis: int, *names: str) -> None:
    """Keep some places along an axis of tensors that a module has, in place."""
    places = keep.nonzero().squeeze(1)
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        cut = tensor.detach().index_select(axis, places)
        if isinstance(tensor, nn.Parameter):
            cut = nn.Parameter(cut, tensor.requires_grad)
        setattr(module, name, cut)
