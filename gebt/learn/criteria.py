"""Criteria that ask a trained model which links it needs.

They work for any model of classes of nodes, by its outputs and their gradients alone:
with some links, or with none. Train the model first, best as a student
(`gebt.train_student`), whose answers hold with whichever links are left: of a new model
these criteria learn nothing.

A link brings each of its ends a message; in a directed graph one end alone. All scores
are sums over the messages that a link brings.

Gradients are those of the links' values. GCN and GIN do not tell a link of value 0 from
one that is gone; models that count links (GraphSAGE's mean, the softmax of GAT) still
count it, so that theirs are approximations.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from gebt.graph import Graph, Split
from gebt.learn.loop import run
from gebt.learn.tasks import NodeClassification, Task
from gebt.prune.criteria import (
    Context,
    criterion,
    in_rounds,
    sum_of_ends,
    transductive,
)
from gebt.prune.weights import take_dtype
from gebt.sparse import SparseMatrix

_SAME = 0.8  # how far a neighbour's class is believed to be one's own
_SPREAD = 0.02  # weight of reaching many nodes, beside the value of information
_DRAWS = 24  # of links, over which gradients are averaged
_DENSITIES = 0.05, 0.5  # between which their densities are drawn
_RIDGE = 0.01
_FADES = 0.3  # what the next message of a node is worth, of the one before
_ABSENT = 1e-6  # value of an absent link: unlike |0|, |value| has a derivative there
_CHUNK = 2**18  # entries whose features are in memory at a time


@criterion("voi", by_ratio=True)
def voi(graph: Graph, context: Context) -> Tensor:
    """Value of information: messages that change what a node would answer.

    The model is asked once, without links, what each node is; the answers are taken for
    independent evidence of neighbours, which are of one class in 4 cases of 5. A
    message is worth how much surer of its best class that makes the node. Chosen in
    12 rounds; after each, nodes believe what the links chosen so far bring.

    Never computes the model's outputs on the full graph, and reads no label.
    """
    _classification("voi", context)
    adjacency = graph.adjacency
    alone = log_softmax(_outputs(graph, context, _no_links(graph)), dim=1)
    evidence = _SAME * alone.exp() + (1 - _SAME) / alone.shape[1]
    degree = adjacency.row_counts().clamp(min=1)
    weight = adjacency.at_rows(degree.to(alone.dtype).rsqrt())

    def score(chosen: Tensor) -> Tensor:
        among = adjacency.with_value(chosen[graph.link].to(alone.dtype))
        belief = (alone + among @ evidence.log()).softmax(dim=1)
        ends = adjacency.at_rows(belief), adjacency.at_columns(evidence)
        _, gain = _posterior(*ends)
        spread = _SPREAD / (degree * (1 + among.row_sum_of_magnitudes()))
        return sum_of_ends(graph, gain * weight + adjacency.at_rows(spread))

    return in_rounds(graph, context, score)


@criterion("expected-gradient", by_ratio=True)
def expected_gradient(graph: Graph, context: Context) -> Tensor:
    """What a message is expected to take off the loss, by what is known of its ends.

    The gradients of the validation loss for the links, averaged over random links of
    random densities, are regressed on the ends' degrees and on the model's answers for
    them without links. So it is a function of a link's ends, and scores links that
    touch no validation node, too. Chosen in 12 rounds; a node's next message is worth
    0.3 of the one before.

    Cross-fitted: a message to a node in one half of the validation nodes is scored by
    the regression on the other half, so that comparing pruned models by their
    validation scores stays fair; all other messages by the mean of both.

    Both regressions are saved with a ticket. On an unseen graph every message is scored
    by their mean, and no label and no gradient is asked for.
    """
    task = _classification("expected-gradient", context)
    adjacency = graph.adjacency
    halves = () if context.unseen else _halves(graph, context, task)
    alone = log_softmax(_outputs(graph, context, _no_links(graph)), dim=1)
    if context.unseen:
        fitted = _kept(graph, context, alone)
    else:
        fitted = [
            _regressed(graph, alone, half, -gradient)
            for half, gradient in zip(
                halves, _gradients(graph, context, task, halves), strict=True
            )
        ]
        parts = zip(_FITTED, zip(*fitted, strict=True), strict=True)
        context.fitted.update({name: torch.stack(both) for name, both in parts})
    both = torch.stack([_predicted(adjacency, alone, *each) for each in fitted])
    gain = both.mean(dim=0)
    if not gain.isfinite().all():
        raise ValueError(
            "what 'expected-gradient' has fitted gives no finite scores. Draw the "
            "ticket again."
        )
    for half, other in zip(halves, both.flip(0), strict=not context.unseen):
        gain = torch.where(_into(adjacency, half), other, gain)
    gain = gain.clamp(min=0) + 1e-6

    def score(chosen: Tensor) -> Tensor:
        among = adjacency.with_value(chosen[graph.link].to(gain.dtype))
        faded = _FADES ** among.row_sum_of_magnitudes()
        return sum_of_ends(graph, gain * adjacency.at_rows(faded))

    return in_rounds(graph, context, score)


@criterion("grow", by_ratio=True)
def grow(graph: Graph, context: Context) -> Tensor:
    """Links that bring back the model's own answers on the full graph.

    From none on, each of 12 rounds adds the links whose values most lower the
    cross-entropy to those answers (their probabilities where the metric ranks nodes).

    Transductive: it keeps the answers for the nodes that the graph has now, those to
    test on included, and says nothing of nodes that come later.
    """
    if context.unseen:
        raise ValueError(transductive("grow", "the model's answers for the nodes"))
    _classification("grow", context)
    answers = _outputs(graph, context, graph.adjacency).softmax(dim=1)
    if graph.metric == "accuracy":
        answers = one_hot(answers.argmax(dim=1), answers.shape[1]).to(answers.dtype)

    def score(chosen: Tensor) -> Tensor:
        with torch.enable_grad():
            value = chosen.to(graph.adjacency.dtype).clamp(min=_ABSENT).requires_grad_()
            output = run(context.model, graph.x, _scaled(graph, value), None)
            loss = cross_entropy(output, answers, reduction="sum")
            return -_gradient(context, loss, value)

    return in_rounds(graph, context, score)


def _classification(name: str, context: Context) -> Task:
    """The task; refuse any but classes of nodes."""
    task = context.task or NodeClassification()
    if task.name != NodeClassification.name:
        raise ValueError(
            f"the criterion {name!r} asks a model for the classes of nodes, but the "
            f"task is {task.name!r}. Choose another criterion."
        )
    return task


@torch.no_grad()
def _outputs(graph: Graph, context: Context, adjacency: SparseMatrix) -> Tensor:
    """(N, C) of the model, in evaluation mode."""
    take_dtype(context.model, graph.x.dtype)
    output = run(context.model.eval(), graph.x, adjacency, None)
    if not output.isfinite().all():
        raise ValueError(
            f"the outputs of {type(context.model).__name__} are not finite, so no "
            "criterion can ask it. Has its training diverged?"
        )
    return output


def _no_links(graph: Graph) -> SparseMatrix:
    none = torch.zeros(graph.num_links, dtype=torch.bool, device=graph.link.device)
    return graph.keep_links(none).adjacency


def _scaled(graph: Graph, value: Tensor) -> SparseMatrix:
    """The adjacency, each value times its link's."""
    adjacency = graph.adjacency
    return adjacency.with_value(adjacency.value * value.index_select(0, graph.link))


def _gradient(
    context: Context, loss: Tensor, value: Tensor, again: bool = False
) -> Tensor:
    """Of a loss, for the links' values."""
    found = None
    if loss.requires_grad:
        [found] = torch.autograd.grad(
            loss, [value], allow_unused=True, retain_graph=again
        )
    if found is None:
        raise ValueError(
            f"no link received a gradient: the outputs of "
            f"{type(context.model).__name__} do not depend on the adjacency's values. "
            "Choose another criterion."
        )
    return found


def _posterior(belief: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """What a node believes after one message more (E, C), and the gain (E,) of that.

    The gain is how much surer it is of its best class than of what was its best before.
    """
    joint = belief * evidence
    after = joint / joint.sum(dim=1, keepdim=True)
    before = belief.argmax(dim=1, keepdim=True)
    return after, after.amax(dim=1) - after.gather(1, before).squeeze(1)


def _gradients(
    graph: Graph, context: Context, task: Task, halves: Sequence[Tensor]
) -> Tensor:
    """(2, L) of each half's total loss for the links, on average over random links."""
    assert isinstance(graph.split, Split)
    parts = [replace(graph, split=replace(graph.split, val=half)) for half in halves]
    rows = torch.cat([*halves])
    device, dtype = rows.device, graph.adjacency.dtype
    least, most = _DENSITIES
    total = torch.zeros(2, graph.num_links, dtype=dtype, device=device)
    for _ in range(_DRAWS):
        draw = torch.rand(1 + graph.num_links, generator=context.generator).to(device)
        present = draw[1:] < least + (most - least) * draw[0]
        value = present.to(dtype).clamp(min=_ABSENT)
        with torch.enable_grad():
            value.requires_grad_()
            output = run(context.model, graph.x, _scaled(graph, value), rows)
            outputs = output.split([half.numel() for half in halves])
            for gradient, out, part in zip(total, outputs, parts, strict=True):
                loss = task.loss(out, part, "val") * out.shape[0]
                gradient += _gradient(context, loss, value, again=True) / _DRAWS
    return total


Regression = tuple[Tensor, Tensor, Tensor]
"""Weights, and the means and deviations of the features."""
_FITTED = ("weights", "means", "deviations")
"""The same of both halves (2, ...), as they are saved with a ticket."""


def _halves(graph: Graph, context: Context, task: Task) -> tuple[Tensor, ...]:
    """The validation nodes, parted by chance."""
    task.check(graph)
    known = task.rows(graph, "val")
    if known is None or known.numel() < 2:
        raise ValueError(
            "the criterion 'expected-gradient' learns from validation nodes, at least "
            f"2, but {graph.name!r} has {0 if known is None else known.numel()}."
        )
    order = torch.randperm(known.numel(), generator=context.generator)
    return known[order.to(known.device)].tensor_split(2)


def _kept(graph: Graph, context: Context, alone: Tensor) -> list[Regression]:
    """Both halves' regressions, as the ticket has them; refused unless they fit."""
    if missing := [name for name in _FITTED if name not in context.fitted]:
        raise ValueError(
            f"the ticket lacks the {', '.join(missing)} that 'expected-gradient' has "
            "fitted, as those of earlier versions do. Draw it again."
        )
    none = torch.empty(0, dtype=torch.int64, device=alone.device)
    width = _features(graph.adjacency, alone, none).shape[1]
    for name, size in zip(_FITTED, (width + 1, width, width), strict=True):
        if (found := tuple(context.fitted[name].shape)) != (2, size):
            raise ValueError(
                f"the {name} that 'expected-gradient' has fitted must have the shape "
                f"(2, {size}), as the model has {alone.shape[1]} outputs, got {found}."
            )
    weights, means, deviations = (context.fitted[name].to(alone) for name in _FITTED)
    if not (deviations > 0).all():
        raise ValueError(
            "the deviations that 'expected-gradient' has fitted must be positive."
        )
    return [*zip(weights, means, deviations, strict=True)]


def _regressed(
    graph: Graph, alone: Tensor, nodes: Tensor, target: Tensor
) -> Regression:
    """Ridge regression of the links' targets (L,) on their messages to some nodes."""
    entries = _into(graph.adjacency, nodes).nonzero().squeeze(1)
    if entries.numel() < 2:
        raise ValueError(
            "the criterion 'expected-gradient' learns from links of validation nodes, "
            f"but {graph.name!r} has next to none. Choose another criterion."
        )
    seen, link = graph.link[entries].unique(return_inverse=True)
    features = _features(graph.adjacency, alone, entries)
    scale = features.mean(dim=0), features.std(dim=0) + 1e-6
    x = _standard(features, *scale)
    x = x.new_zeros(seen.numel(), x.shape[1]).index_add(0, link, x)
    y = target[seen].to(x.dtype)
    most = y.abs().sort().values[int(0.99 * (y.numel() - 1))]  # rare ones are huge
    gram = x.t() @ x
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    moment = x.t() @ y.clamp(-most, most)
    return torch.linalg.solve(gram + ridge, moment), *scale


def _predicted(
    adjacency: SparseMatrix, alone: Tensor, weights: Tensor, *scale: Tensor
) -> Tensor:
    """(E,) what the regression says of each message."""
    every = torch.arange(adjacency.pattern.nnz, device=alone.device)
    return torch.cat(
        [
            _standard(_features(adjacency, alone, entries), *scale) @ weights
            for entries in every.split(_CHUNK)
        ]
    )


def _features(adjacency: SparseMatrix, alone: Tensor, entries: Tensor) -> Tensor:
    """(K, D) of some messages: degrees, and the model's answers without links."""
    own = adjacency.pattern.row.index_select(0, entries)
    other = adjacency.pattern.col.index_select(0, entries)
    degree = adjacency.row_counts().clamp(min=1).to(alone.dtype)
    surprise = -(alone.exp() * alone).sum(dim=1)
    du, dv, hu, hv = degree[own], degree[other], surprise[own], surprise[other]
    log_u, qu, qv = alone[own], alone[own].exp(), alone[other].exp()
    after, gain = _posterior(qu, _SAME * qv + (1 - _SAME) / qv.shape[1])
    shift = (after * (after.clamp(min=1e-9).log() - log_u)).sum(dim=1)
    columns = [
        *(1 / du, 1 / dv, du.log(), dv.log(), hu, hv, hu / du, hv / du),
        *((hu - hv).clamp(min=0), qv.amax(dim=1), (qu * qv).sum(dim=1)),
        *(gain, gain / du, gain / du.sqrt(), shift, shift / du),
    ]
    return torch.cat([torch.stack(columns, dim=1), qu, qv], dim=1)


def _standard(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Of mean 0 and deviation 1, outliers cut, and a constant beside them."""
    cut = ((features - mean) / deviation).clamp(-4, 4)
    return torch.cat([cut, cut.new_ones(cut.shape[0], 1)], dim=1)


def _into(adjacency: SparseMatrix, nodes: Tensor) -> Tensor:
    """(E,) which messages go to these nodes."""
    flag = torch.zeros(adjacency.shape[0], dtype=torch.bool, device=nodes.device)
    return adjacency.at_rows(flag.index_fill_(0, nodes, True))
