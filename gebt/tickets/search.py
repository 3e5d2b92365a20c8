"""The co-optimisation loop: train links and weights until their masks settle."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_ratio
from gebt._provenance import versions
from gebt.graph import Graph, check_graph, masks_of
from gebt.learn.loop import (
    BLIND,
    Learner,
    check_trains,
    parameter_groups,
    trainable,
)
from gebt.learn.tasks import NodeClassification, Task, describe_task
from gebt.learn.training import Epoch, check_finite, copy_state, evaluate
from gebt.models import describe_model
from gebt.options import Fit, Scope, Unit, chosen
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.links import GraphSparsifier
from gebt.prune.masks import NAN
from gebt.prune.penalties import ADMM
from gebt.prune.weights import (
    ModelPruner,
    apply_masks,
    check_masks,
    take_dtype,
)
from gebt.sparse import SparseMatrix
from gebt.tickets.ticket import Ticket

FROZEN_THRESHOLD = 0.04
"""Default detector threshold when the weights are frozen (Algorithm 1).

Distances start small there: at ratio 0.5 at 0.13 on Cora and 0.06 on CiteSeer, so
that the joint threshold would fire at once. Epochs drawn with this one are in
``benchmarks/results/fig1/runs.csv``.
"""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a ticket is searched, beside its ratios and how weights are trained.

    Attributes:
        graph_lr: learning rate of the link scores.
        update_weights: False freezes the weights.
        alternate: update the weights, then run forward again for the scores.
        mask_weights: multiply the weights by their masks each epoch, as the paper's
            code does.
        scope: how weights are ranked, see `ModelPruner`.
        unit: what is pruned of a weight, see `ModelPruner`.
        detector: a new detector; its ``watch`` chooses the stop criterion among the
            groups ``"graph"`` and ``"weights"``.
        penalty: L_reg of Eq. 3, or none.
        keep: boolean masks by parameter name of an earlier pruning; what they drop
            stays zero, counts towards the weights' ratio, and is dropped by the
            ticket's masks too; by default those that the graph carries. An earlier
            pruning of links is in the graph.
    """

    graph_lr: float = 0.001
    update_weights: bool = True
    alternate: bool = False
    mask_weights: bool = False
    scope: Scope = "global"
    unit: Unit = "element"
    detector: MaskDistanceDetector | None = None
    penalty: ADMM | None = None
    keep: Mapping[str, Tensor] | None = None


def find_ticket(
    model: nn.Module,
    graph: Graph,
    *,
    graph_ratio: float = 0.2,
    weight_ratio: float = 0.9,
    fit: Fit | None = None,
    search: Search | None = None,
    seed: int = 0,
    task: Task | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Ticket:
    """Draw a joint early-bird ticket (Algorithm 2 of You et al. 2022).

    Trains one score per link together with the weights, and stops when the masks
    that pruning would give have stopped changing. Departs from the paper in that

    1. one score belongs to each undirected link, so that A stays symmetric;
    2. weights and scores take one shared backward (``alternate`` for the paper's);
    3. the mask distance is the detector's default, not the paper's, which depends
       on the first distance seen (`MaskDistanceDetector` has the paper's rules).

    Algorithm 1 (GEB) is ``train`` and then this with ``update_weights=False`` and
    ``weight_ratio=0``.

    Args:
        model: as for `train`; trained in place, as far as the search gets;
            left in evaluation mode.
        graph: with a training split.
        graph_ratio: share of the full graph's links to remove, in [0, 1).
        weight_ratio: share of all prunable weights to remove, in [0, 1).
        fit: how weights are trained, and epochs allowed; by default `Fit`'s own.
        search: all else; by default `Search`'s own.
        seed: for dropout and the order of equal link scores; torch's own random state
            is left as it was.
        task: what to learn; by default one class per node.
        on_epoch: called after each epoch; only for it is the validation score computed.
        **options: fields of `Fit` and `Search` to change, such as ``epochs=200``.

    Returns:
        The ticket. If the masks never settle within ``epochs``, it is drawn at the
        last one, says so in ``settled``, and a warning is given.

    Raises:
        ValueError: if an option is out of range, the graph lacks what the task
            needs, or the loss stops being finite.
    """
    fit, search = chosen(
        fit or Fit(), search or Search(), given=options, of="find_ticket"
    )
    epochs, detector, penalty = fit.epochs, search.detector, search.penalty
    task = task or NodeClassification()
    check_ratio("graph_ratio", graph_ratio)
    check_ratio("weight_ratio", weight_ratio)
    if graph_ratio == 0 and weight_ratio == 0:
        raise ValueError(
            "`graph_ratio` and `weight_ratio` are both 0: there is nothing to prune."
        )
    if not search.update_weights and weight_ratio > 0:
        raise ValueError(
            f"`weight_ratio` is {weight_ratio}, but with `update_weights=False` the "
            "weights' mask never changes. Set `weight_ratio=0`."
        )
    check_trains(model)
    check_graph(graph)
    task.check(graph)
    take_dtype(model, graph.x.dtype)
    if detector is None:
        detector = MaskDistanceDetector(
            threshold=0.1 if search.update_weights else FROZEN_THRESHOLD
        )
    elif detector.history:
        raise ValueError(
            f"`detector` has already seen {len(detector.history)} updates. "
            "Give each search a new one."
        )
    watched = [g for g, r in (("graph", graph_ratio), ("weights", weight_ratio)) if r]
    if detector.watch is not None and not set(detector.watch) & set(watched):
        raise ValueError(
            f"the detector watches {list(detector.watch)}, but only {watched} can "
            "change at these ratios."
        )
    sparsifier = GraphSparsifier(graph, seed)
    if penalty is not None:
        penalty.reset(sparsifier.project)
    check_masks(model, keep := masks_of(graph, search.keep))
    keep = {n: m.to(graph.adjacency.device) for n, m in keep.items()}
    pruner = None
    if weight_ratio:
        how: Any = {"scope": search.scope, "unit": search.unit, "keep": keep}
        pruner = ModelPruner(model, weight_ratio, **how)
    apply_masks(model, keep)
    first_weights = copy_state(model)
    weights = trainable(model) if search.update_weights else []
    scores: list[Tensor] = [sparsifier.score]
    groups = parameter_groups(model, fit) if search.update_weights else []
    groups.append({"params": scores, "lr": search.graph_lr})

    def after_backward() -> None:
        """Of links: whom the loss reached; then the penalty, which reaches all."""
        if not sparsifier.score.requires_grad:
            return
        sparsifier.count_gradient()
        if sparsifier.score.grad is None and (graph_ratio or penalty):
            raise ValueError(BLIND.format(type(model).__name__))
        if penalty is not None:
            penalty(sparsifier.score).backward()

    learner = Learner(
        model,
        task,
        groups,
        seed=seed,
        keep=keep,
        sparsifier=sparsifier,
        turns=[weights, scores] if search.alternate and search.update_weights else None,
        after_backward=after_backward,
    )
    if graph_ratio:
        sparsifier.mask(graph_ratio)  # refuses what the graph has lost already
    distances: list[dict[str, float]] = []
    masks: dict[str, Tensor] = keep
    link_mask = sparsifier.score.detach() != 0
    settled = False
    ranked = scores if graph_ratio else []
    if pruner:
        ranked = [*ranked, *pruner.weights.values()]
    for loss in learner.epochs(graph, until=epochs):
        epoch = learner.epoch
        # A GPU is waited for once an epoch, when all that it has to do is queued.
        value = check_finite(loss, epoch) if loss.is_cpu else math.nan
        if penalty is not None:
            penalty.update(sparsifier.score)
        found: dict[str, Any] = {}
        if graph_ratio:
            found["graph"] = link_mask = sparsifier.mask(graph_ratio)
        if pruner:
            found["weights"] = masks = pruner.masks()
        numbers = None if loss.is_cpu else _loss_and_nan(loss, ranked)
        reading = detector.update(found)
        if numbers is not None:
            value = _check(numbers.cpu(), epoch)
        if search.mask_weights:
            apply_masks(model, masks)
        distances.append({**reading.distances, "joint": reading.joint})
        if on_epoch:
            adjacency = sparsifier().detach()
            with learner.drawing():
                val = evaluate(model, graph, "val", adjacency=adjacency, task=task)
            on_epoch(Epoch(epoch, value, val, distances[-1]))
        if settled := reading.settled:
            break
    model.eval()
    # Not sooner: behind a layer that starts at zero the first gradients are zero too.
    if graph_ratio and sparsifier.share_untouched() == 1:
        raise ValueError(_unreached(model, graph))
    if not settled:
        warnings.warn(
            f"the masks did not settle within {epochs} epochs (distance "
            f"{detector.history[-1].joint:.3g}, threshold {detector.threshold:g}): "
            "the ticket is the last epoch's. Allow more epochs.",
            stacklevel=2,
        )
    return Ticket(
        link_mask=link_mask,
        link_score=sparsifier.score.detach().clone(),
        weight_masks=masks,
        weights=copy_state(model),
        first_weights=first_weights,
        epoch=epoch,
        settled=settled,
        share_untouched=sparsifier.share_untouched(),
        distances=tuple(distances),
        options={
            "task": describe_task(task),
            "graph_ratio": graph_ratio,
            "weight_ratio": weight_ratio,
            **fit.to_dict(),
            "graph_lr": search.graph_lr,
            "update_weights": search.update_weights,
            "alternate": search.alternate,
            "mask_weights": search.mask_weights,
            "scope": search.scope,
            "unit": search.unit,
            "penalty": None if penalty is None else penalty.options(),
            "detector": detector.options(),
        },
        seed=seed,
        dataset={"name": graph.name, "fingerprint": graph.fingerprint()},
        model=describe_model(model),
        versions=versions(),
    )


def _loss_and_nan(loss: Tensor, ranked: Sequence[Tensor]) -> Tensor:
    """(2,) the loss, and 1 if something ranked holds NaN; nothing waits for a GPU.

    There masks do not look for NaN. With the detector's counts, which it copies itself,
    this is the second transfer of an epoch, and waits no second time.
    """
    broken = torch.stack([scores.isnan().any() for scores in ranked]).any()
    return torch.stack([loss.detach(), broken.to(loss.dtype)])


def _check(numbers: Tensor, epoch: int) -> float:
    """The loss, on CPU, or the errors that an epoch on CPU would have raised."""
    value = check_finite(numbers[0], epoch)
    if numbers[1]:
        raise ValueError(NAN)
    return value


def _unreached(model: nn.Module, graph: Graph) -> str:
    """Why every link's gradient was zero, as far as model and graph tell."""
    x = graph.x.value if isinstance(graph.x, SparseMatrix) else graph.x
    zero = [n for n, p in model.named_parameters() if p.dim() > 1 and not p.any()]
    if graph.num_features == 0:
        why = "the graph has no features. Give each node some."
    elif not x.any():
        why = "all features are zero. Give the nodes some that differ."
    elif not graph.adjacency.value.any():
        why = "all edge weights are zero. Give the edges others, or none."
    elif graph.y is not None and graph.num_classes == 1:
        why = "all nodes are of one class, so that the loss is 0 whatever the model."
    elif zero:
        why = f"all of the weight {zero[0]!r} is zero. Draw it anew."
    else:
        why = (
            f"the outputs of {type(model).__name__} for the training nodes do not "
            "change with the adjacency's values. Set `graph_ratio=0`, or let the model "
            "use the values."
        )
    return f"no link received a gradient, so links cannot be learned: {why}"
