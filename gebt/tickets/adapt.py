"""One ticket, many tasks: what each adds to weights that never change."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gebt._checks import check_count
from gebt.files import Tensors, read_tensors, write_tensors
from gebt.graph import Graph
from gebt.learn.classes import AmongClasses
from gebt.learn.tasks import NodeClassification, Task
from gebt.learn.training import Epoch, train
from gebt.models import build_model
from gebt.models.heads import head_of, with_outputs
from gebt.options import Fit, chosen
from gebt.prune.channels import masks_without
from gebt.prune.soft import Sharing, SoftMask, are_factors, groups_by_degree
from gebt.prune.weights import apply_masks
from gebt.randomness import Draws
from gebt.tickets.ticket import Ticket

_LR = 0.1  # by the validation nodes of Cora's and CiteSeer's classes, of three rates
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What one task adds to a ticket: all that is stored of it.

    Attributes:
        masks: factors by the names of the ticket's weights, see `SoftMask.factors`;
            boolean where they are binary.
        links: (G,) factors of the groups of links; empty where they have none.
        own: parameters and buffers, by name, that are the task's: the model's head and
            the statistics of batch norms.
        num_outputs: of the head.
        ticket: the ticket's `Ticket.fingerprint`.
        task: the task's name.
        classes: of an `AmongClasses`, in the outputs' order; else empty.
        val: best validation score, percent; NaN without validation nodes.
        best_epoch: at which it was found.
    """

    masks: Mapping[str, Tensor]
    links: Tensor
    own: Mapping[str, Tensor]
    num_outputs: int
    ticket: str
    task: str
    classes: tuple[int, ...]
    val: float
    best_epoch: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors in its file: a bit for each binary factor."""
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    @torch.no_grad()
    def open(self, ticket: Ticket, graph: Graph) -> tuple[nn.Module, Graph]:
        """The task's model and graph, the same bits whatever was learned since.

        Args:
            ticket: that was adapted; not changed.
            graph: that the ticket was drawn on; not changed.

        Returns:
            A plain model in evaluation mode, and the pruned graph.

        Raises:
            ValueError: if the ticket is another, or is for another graph.
        """
        if (found := ticket.fingerprint()) != self.ticket:
            raise ValueError(
                f"the masks are for the ticket {self.ticket[:12]}, but this is "
                f"{found[:12]}, of {ticket.dataset['name']!r}. Open the ticket that "
                "was adapted."
            )
        small = ticket.prune(graph)
        model = _body(ticket, self.num_outputs, small, self.own)
        adjacency, parameters = small.adjacency, dict(model.named_parameters())
        for name, mask in self.masks.items():
            weight = parameters.get(name)
            if weight is None or not are_factors(mask, weight):
                raise ValueError(f"the ticket has no weight for the mask of {name!r}.")
            weight.mul_(mask.to(adjacency.device))
        if self.links.numel():
            group = groups_by_degree(small, self.links.numel())
            links = self.links.to(adjacency.device, adjacency.dtype)
            value = adjacency.times(links, group).value
            small = replace(small, adjacency=adjacency.with_value(value))
        return model.eval(), small

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; all that is not a tensor is in its header."""
        header = {"kind": "adaptation", "format": _FORMAT}
        header |= {name: getattr(self, name) for name in _HEADER}
        header["shapes"] = {name: [*mask.shape] for name, mask in self.masks.items()}
        write_tensors(Path(path), self._tensors(), header)

    def _tensors(self) -> dict[str, Tensor]:
        """What is in the file."""
        found = {f"own/{name}": tensor for name, tensor in self.own.items()}
        for name, mask in self.masks.items():
            if mask.dtype == torch.bool:
                bits = np.packbits(mask.flatten().cpu().numpy())
                found[f"bits/{name}"] = torch.from_numpy(bits)
            else:
                found[f"masks/{name}"] = mask
        return found | {"links": self.links}

    @classmethod
    def load(cls, path: str | Path) -> "Adaptation":
        """Read one; nothing is unpickled.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is truncated, corrupt, or no adaptation of this format.
        """
        tensors, header = read_tensors(Path(path), "adaptation")
        header.whole("format", _FORMAT, _FORMAT)
        shapes, masks = header.fields("shapes"), {}
        packed = tensors.group("bits")
        for name in shapes:
            shape = shapes.wholes(name, 0)
            if name not in packed:
                masks[name] = tensors.numbers(f"masks/{name}", shape)
                continue
            bits, count = packed[name], math.prod(shape)
            if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
                tensors.fail(f"bits/{name}", f"be a bit for each of {count} factors")
            mask = np.unpackbits(bits.numpy(), count=count).astype(bool)
            masks[name] = torch.from_numpy(mask).view(shape)
        return cls(
            masks,
            tensors.numbers("links", (None,)),
            {name: _own(tensors, f"own/{name}") for name in tensors.group("own")},
            header.whole("num_outputs", 1),
            header.text("ticket"),
            header.text("task"),
            tuple(header.wholes("classes", 0)),
            header.number("val", 0, 100, null=True),
            header.whole("best_epoch", 0),
        )


def adapt_ticket(
    ticket: Ticket,
    graph: Graph,
    task: Task | None = None,
    *,
    unit: Sharing | None = "row",
    binary: bool = False,
    link_groups: int = 0,
    fit: Fit | None = None,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Adaptation:
    """Learn a task over a ticket whose weights stay as they are.

    Learned are a factor for each unit, where asked for one for each group of the
    ticket's links, and a head of the task's own: the parameters whose shape depends on
    the number of outputs. So nothing that was learned before is forgotten.

    Args:
        ticket: not changed. `Ticket.with_weights` gives one that was trained on.
        graph: that the ticket was drawn on, whose split may be another.
        task: what is learned; by default one class per node. Some classes of the
            graph's are `AmongClasses`.
        unit: what shares a factor, see `SoftMask`; None for a linear probe.
        binary: factors are 0 or 1.
        link_groups: how many, see `groups_by_degree`; 0 leaves the links as they are.
        fit: by default the ticket's, at a learning rate of 0.1, without weight decay.
        seed: of the head's first weights and of dropout.
        on_epoch: called after each epoch.
        **options: fields of `Fit` to change, such as ``epochs=200``.

    Raises:
        ValueError: if the ticket is for another graph or of a model that gebt cannot
            build, or as `train` raises.
    """
    task = task or NodeClassification()
    task.check(graph)
    if link_groups:
        check_count("link_groups", link_groups)
    usual = replace(Fit.from_dict(ticket.options), lr=_LR, weight_decay=0.0)
    [fit] = chosen(fit or usual, given=options, of="adapt_ticket")
    small = ticket.prune(graph)
    outputs = task.num_outputs(graph)
    model = _body(ticket, outputs, small, seed=seed)
    head = head_of(ticket.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    group = groups_by_degree(small, link_groups) if link_groups else None
    soft = SoftMask(model, unit=unit, binary=binary, link_group=group)
    found = train(soft, small, fit=fit, seed=seed, task=task, on_epoch=on_epoch)
    factors = {name: factor.detach() for name, factor in soft.factors().items()}
    links = factors.pop("links", torch.empty(0))
    if binary:
        factors = {name: factor != 0 for name, factor in factors.items()}
    own = head | {name for name, _ in model.named_buffers()}
    return Adaptation(
        factors,
        links,
        {name: t for name, t in model.state_dict().items() if name in own},
        outputs,
        ticket.fingerprint(),
        task.name,
        task.classes if isinstance(task, AmongClasses) else (),
        found.val,
        found.best_epoch,
    )


def _body(
    ticket: Ticket,
    outputs: int,
    graph: Graph,
    own: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The ticket's model with its pruned weights, and another head: given, or drawn."""
    described, head = with_outputs(ticket.model, outputs), head_of(ticket.model)
    if own is None:
        with Draws(seed).used():
            fresh = build_model(described).state_dict()
        own = {name: fresh[name] for name in head}
    state = {n: own.get(n, t).clone() for n, t in ticket.weights.items()}
    model = build_model(described, state).to(graph.adjacency.device, graph.x.dtype)
    masks = {n: m for n, m in ticket.weight_masks.items() if n not in head}
    apply_masks(model, {n: m.to(graph.adjacency.device) for n, m in masks.items()})
    if ticket.channel_masks:
        apply_masks(model, masks_without(model, ticket.channel_masks))
    return model


def _own(tensors: Tensors, name: str) -> Tensor:
    found = tensors.content[name]  # of whole numbers: a norm's count of batches
    return tensors.numbers(name, found.shape) if found.is_floating_point() else found


_HEADER = ("num_outputs", "ticket", "task", "classes", "val", "best_epoch")
