"""The co-optimisation loop: train links and weights until their masks settle."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from gebt._checks import check_choice, check_count, check_positive, check_ratio
from gebt._provenance import versions
from gebt._registry import CRITERIA
from gebt.files import is_finite
from gebt.graph import Graph
from gebt.graph.parts import Parts
from gebt.learn.checkpoint import diverged
from gebt.learn.loop import Learner, begin, check_finite, whole
from gebt.learn.precision import lowered
from gebt.learn.tasks import NodeClassification, Task, describe_task
from gebt.learn.training import Epoch, copy_state, evaluate
from gebt.models import describe_model
from gebt.options import EB_TRAIN, Fit, Precision, Scope, Unit, chosen
from gebt.prune.at_init import EVERY, InitLinks, InitWeights, rounds_of
from gebt.prune.channels import PULL, ChannelPruner
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.groups import Group, Hook
from gebt.prune.links import GraphSparsifier, RankedLinks, links_by
from gebt.prune.penalties import ADMM
from gebt.prune.weights import ModelPruner, apply_masks, check_not_pruned
from gebt.sparse import SparseMatrix
from gebt.tickets.ticket import Ticket

Method = Literal["early", "init"]
_MOST_UNSEEN = 0.05  # share of links that may have been in no part
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
        method: ``"early"`` trains weights and link scores until the masks settle;
            ``"init"``, Gem-Miner's, trains none: it chooses among the frozen weights
            of a new model, and among links, see `gebt.prune.at_init`. It takes all
            epochs, ranks all weights together, and has no option of training.
        criterion: which links to keep: ``"learned"`` with the weights, as the paper
            does, or by a criterion of `gebt.criterion`, known before the search.
        graph_lr: learning rate of learned link scores.
        penalty: L_reg of Eq. 3 on them, or none.
        update_weights: False freezes the weights.
        alternate: update the weights, then run forward again for the scores.
        mask_weights: multiply the weights by their masks each epoch, as the paper's
            code does.
        scope: how weights are ranked, see `ModelPruner`.
        unit: what is pruned of a weight, see `ModelPruner`; or ``"channel"``, whole
            hidden units, see `ChannelPruner`: ``weight_ratio`` is the share of those.
        precision: of the weights, activations and gradients, see
            `gebt.learn.precision`.
        parts: of the graph, which each epoch goes through one by one; more than one
            where the whole does not fit, see `gebt.graph.parts`.
        detector: a new detector; its ``watch`` chooses the stop criterion among the
            groups ``"graph"`` and ``"weights"``, or ``"channels"``.
        keep: boolean masks by parameter name of an earlier pruning; what they drop
            stays zero, counts towards the weights' ratio, and is dropped by the
            ticket's masks too; by default those that the graph carries. An earlier
            pruning of links is in the graph.
        groups: what is pruned, each at its own ratio, instead of links and weights as
            all of the above says; with a `GraphSparsifier`, say, and a `ModelPruner`.

    Raises:
        ValueError: at birth, naming what is out of range.
    """

    method: Method = "early"
    criterion: str = "learned"
    graph_lr: float = 0.001
    penalty: ADMM | None = None
    update_weights: bool = True
    alternate: bool = False
    mask_weights: bool = False
    scope: Scope = "global"
    unit: Unit = "element"
    precision: Precision = "full"
    parts: int = 1
    detector: MaskDistanceDetector | None = None
    keep: Mapping[str, Tensor] | None = None
    groups: Sequence[Group] | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, Method)
        check_positive("graph_lr", self.graph_lr)
        check_choice("scope", self.scope, Scope)
        check_choice("unit", self.unit, Unit)
        check_choice("precision", self.precision, Precision)
        CRITERIA.check(self.criterion)
        check_count("parts", self.parts)
        if self.penalty is not None and self.criterion != "learned":
            raise ValueError(
                "`penalty` pulls learned scores, but links are chosen by the criterion "
                f"{self.criterion!r}."
            )
        if self.precision == "bfp8" and not self.update_weights:
            raise ValueError(
                '`precision="bfp8"` rounds the weights in place, and with '
                "`update_weights=False` they shall stay. Leave out either."
            )
        if self.unit == "channel" and self.mask_weights:
            raise ValueError(
                '`mask_weights` is of single weights: with `unit="channel"` leave it '
                "out."
            )
        usual = {field.name: field.default for field in fields(self)}
        for name in _OF_TRAINING if self.method == "init" else ():
            if (given := getattr(self, name)) != usual[name]:
                raise ValueError(
                    f'a search with `method="init"` trains no weights, and has no '
                    f"`{name}`, got {given!r}. Leave it out."
                )

    def to_dict(self) -> dict[str, Any]:
        """As numbers, names and objects of them; without masks and groups."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        del found["keep"], found["groups"]
        for name, usual in _LATER.items():
            if found[name] == usual:
                del found[name]
        described = {name: found[name].options() for name in _OBJECTS if found[name]}
        return found | described

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """From a mapping that may hold other things, too."""
        found = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        for name, kind in _OBJECTS.items():
            if found.get(name):
                options = {k: v for k, v in found[name].items() if k != "name"}
                found[name] = kind(**options)
        return cls(**found)


_OF_TRAINING = (
    *("graph_lr", "penalty", "update_weights", "alternate"),
    *("mask_weights", "scope", "unit", "precision"),
)
"""Options that a search at initialisation does not have."""
_LATER = {"parts": 1, "method": "early", "precision": "full"}
"""Options that files lack where they are usual: they were not there always."""
_OBJECTS: dict[str, Any] = {"detector": MaskDistanceDetector, "penalty": ADMM}


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
    3. the mask distance is not the paper's, which depends on the first one seen
       (`MaskDistanceDetector` has the paper's rules).

    Algorithm 1 (GEB) is ``train`` and then this with ``update_weights=False`` and
    ``weight_ratio=0``. With a criterion known before the search nothing moves then: the
    ticket is drawn at once, of the model as it is.

    With ``method="init"`` (Gem-Miner) the model's weights become constants, and
    none is trained before the ticket is.

    Args:
        model: as for `train`; trained in place, as far as the search gets.
        graph: with a training split.
        graph_ratio: share of the full graph's links to remove, in [0, 1).
        weight_ratio: share of all prunable weights to remove, in [0, 1).
        fit: how weights are trained, and epochs allowed; by default `Fit`'s own.
        search: all else; by default `Search`'s own.
        seed: for dropout and the order of equal link scores; torch's own state stays.
        task: what to learn; by default one class per node.
        on_epoch: called after each epoch; only for it is the validation score computed.
        **options: fields of `Fit` and `Search` to change, such as ``epochs=200``.

    Returns:
        The ticket; of the last epoch, with a warning, if the masks never settle.

    Raises:
        ValueError: if an option, graph or mask does not fit, or the loss diverges.
    """
    both = fit or Fit(), search or Search()
    fit, search = chosen(*both, given=options, of="find_ticket")
    task = task or NodeClassification()
    check_not_pruned(model)
    masks, hooks = begin(model, graph, task, search.keep)
    how: Any = (search, masks, seed)
    ratios = graph_ratio, weight_ratio, fit.epochs
    groups = _groups(model, graph, task, *ratios, *how)
    drawing = _Drawing(model, groups, search, fit.epochs)
    first_weights = copy_state(model)
    epoch = 0
    trains = search.update_weights and search.method == "early"
    if moves := trains or any(group.scores() for group in groups):
        parts = _Seen(graph, search.parts, seed) if search.parts > 1 else None
        with lowered(model, search.precision, seed) as rounding:
            hooks += rounding
            learner = Learner(
                *(model, task, fit if trains else None),
                seed=seed,
                groups=groups,
                hooks=[*hooks, parts] if parts else hooks,
                alternate=search.alternate,
            )
            learner.add(drawing)
            if on_epoch:
                drawing.tell(learner, graph, on_epoch)
            for _ in learner.epochs(parts.parts if parts else whole(graph), fit.epochs):
                pass
        epoch = learner.epoch
        if parts:
            parts.check()
        drawing.check(graph, fit.epochs)
    else:
        drawing.draw()
    model.eval()
    return Ticket(
        masks={n: m for n, m in {"weights": masks, **drawing.masks}.items() if m},
        scores={group.name: group.learned() for group in groups if group.learned()},
        weights=copy_state(model),
        first_weights=first_weights,
        epoch=epoch,
        settled=drawing.detector.settled or not moves,
        share_untouched=drawing.share_untouched(),
        distances=tuple(drawing.distances),
        options=drawing.options(task, fit),
        seed=seed,
        dataset={"name": graph.name, "fingerprint": graph.fingerprint()},
        model=describe_model(model),
        versions=versions(),
        fitted=drawing.fitted(),
        share=graph.share,
    )


def describe_search(
    task: Task, graph_ratio: float, weight_ratio: float, fit: Fit, search: Search
) -> dict[str, Any]:
    """All options of a search, for the ticket."""
    return {
        "task": describe_task(task),
        "graph_ratio": graph_ratio,
        "weight_ratio": weight_ratio,
        **fit.to_dict(),
        **search.to_dict(),
    }


def _groups(
    model: nn.Module,
    graph: Graph,
    task: Task,
    graph_ratio: float,
    weight_ratio: float,
    epochs: int,
    search: Search,
    masks: Mapping[str, Tensor],
    seed: int,
) -> Sequence[Group]:
    """What the search prunes: links, and weights if any."""
    if search.groups is not None:
        names = [group.name for group in search.groups]
        if len({*names}) < len(names) or any("/" in name for name in names):
            raise ValueError(
                f"groups need names that differ, without '/', got {names}."
            )
        if any(group.name == "graph" for group in search.groups):
            return search.groups
        return [_every_link(graph), *search.groups]
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
    if search.method == "init" and graph.share is not None:
        raise ValueError(
            'a search with `method="init"` needs the whole graph, and this is one '
            "rank's share. Search in one process."
        )
    links: Group
    at_init: Any = {"epochs": epochs, "seed": seed}
    if search.criterion != "learned":
        links = links_by(search.criterion, graph, model, graph_ratio, seed, task)
    elif search.method == "early":
        how: Any = {"lr": search.graph_lr, "penalty": search.penalty}
        links = GraphSparsifier(graph, seed, prune_ratio=graph_ratio, **how)
    elif graph_ratio:
        links = InitLinks(graph, graph_ratio, **at_init)
    else:
        links = _every_link(graph)
    if weight_ratio == 0:
        return [links]
    if search.method == "init":
        return [links, InitWeights(model, weight_ratio, keep=masks, **at_init)]
    if search.unit == "channel":
        pull = PULL / graph.world.size  # each rank adds its own
        return [links, ChannelPruner(model, weight_ratio, pull=pull)]
    how = {"scope": search.scope, "unit": search.unit, "keep": masks}
    return [links, ModelPruner(model, weight_ratio, **how)]


def _every_link(graph: Graph) -> Group:
    every = torch.ones(graph.num_links, device=graph.link.device)
    return RankedLinks(graph, 0.0, every)


def _detector_of(search: Search, epochs: int) -> MaskDistanceDetector:
    """The default one; at initialisation masks have settled with the last round."""
    if search.method == "init":
        last = EVERY * rounds_of(epochs)
        return MaskDistanceDetector(window=1, warmup=last)
    return MaskDistanceDetector(
        threshold=0.1 if search.update_weights else FROZEN_THRESHOLD,
        **(EB_TRAIN if search.unit == "channel" else {}),
    )


class _Drawing(Hook):
    """Masks after each epoch, until the detector finds that they have settled."""

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], search: Search, until: int
    ):
        self.detector = search.detector or _detector_of(search, until)
        self.masks: dict[str, Mapping[str, Tensor]] = {}
        self.distances: list[dict[str, float]] = []
        self._history: list[tuple[float, float]] = []  # losses and validation scores
        self._val: Callable[[], float] | None = None
        self._on_epoch: Callable[[Epoch], None] | None = None
        self._until = until
        self._model = model
        self._groups = groups
        self._search = search
        self._watched = [group for group in groups if group.prune_ratio]
        names = [group.name for group in self._watched]
        watch = self.detector.watch
        if self.detector.history:
            raise ValueError(
                f"`detector` has already seen {len(self.detector.history)} updates. "
                "Give each search a new one."
            )
        if watch is not None and not set(watch) & set(names):
            raise ValueError(
                f"the detector watches {list(watch)}, but only {names} can change at "
                "these ratios."
            )

    def tell(
        self, learner: Learner, graph: Graph, on_epoch: Callable[[Epoch], None]
    ) -> None:
        """Score each epoch of a learner on the validation part, and tell of it."""

        def val() -> float:
            adjacency, weights = learner.adjacency(graph).detach(), learner.weights()
            how: Any = {"adjacency": adjacency, "weights": weights}
            how["task"] = learner.task
            with learner.drawing():
                return evaluate(self._model, graph, "val", **how)

        self._val, self._on_epoch = val, on_epoch

    def draw(self) -> None:
        """The masks of all groups, as they are now."""
        self.masks = {group.name: group.masks() for group in self._groups}

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """The masks of all groups; whether they have settled."""
        ranked = {group.name: group.ranked() for group in self._watched}
        if loss.is_cpu:
            for name, scores in ranked.items():
                _check_scores(name, all(map(is_finite, scores)), epoch)
        self.draw()
        # A GPU is waited for once an epoch, when all that it has to do is queued.
        numbers = None if loss.is_cpu else _loss_and_finite(loss, ranked.values())
        watched = {group.name: self.masks[group.name] for group in self._watched}
        try:
            reading = self.detector.update(watched, self._total)
        finally:  # what diverged is named first: it leaves masks that cannot change
            if numbers is None:
                value = float(loss)
            else:
                value = _check(numbers.cpu(), ranked, epoch)
        if self._search.mask_weights and "weights" in self.masks:
            apply_masks(self._model, self.masks["weights"])
        self.distances.append({**reading.distances, "joint": reading.joint})
        self._tell(value, self._val() if self._val else math.nan)
        return reading.settled

    def _tell(self, loss: float, val: float) -> None:
        self._history.append((loss, val))
        epoch = len(self._history)
        if self._on_epoch:
            distances = self.distances[epoch - 1]
            self._on_epoch(Epoch(epoch, loss, val, distances, self._until))

    def state_dict(self) -> dict[str, Any]:
        """The detector, the last masks, and each epoch's loss and score."""
        return {
            "detector": self.detector.state_dict(),
            "masks": self.masks,
            "distances": self.distances,
            "history": torch.tensor(self._history, dtype=torch.float64).view(-1, 2),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; who is told of epochs is told again."""
        self.detector.load_state_dict(state["detector"])
        self.masks, self.distances = state["masks"], state["distances"]
        for loss, val in state["history"].tolist():
            self._tell(loss, val)

    def _total(self, name: str, counts: list[int]) -> list[int]:
        """Counts of a group's masks, of all ranks that hold parts of them."""
        [group] = [group for group in self._watched if group.name == name]
        return group.world.sum(torch.tensor(counts)).tolist()

    def options(self, task: Task, fit: Fit) -> dict[str, Any]:
        """As the groups and the detector have them."""
        ratios = {group.name: group.prune_ratio for group in self._groups}
        search = replace(self._search, detector=self.detector)
        weights = ratios.get("weights", ratios.get("channels", 0.0))
        both = ratios.get("graph", 0.0), weights
        return describe_search(task, *both, fit, search)

    def share_untouched(self) -> float:
        """Share of links that no gradient reached, of those that are learned."""
        links = [g for g in self._groups if isinstance(g, GraphSparsifier)]
        return links[0].share_untouched() if links else 0.0

    def fitted(self) -> Mapping[str, Tensor]:
        """What a criterion has learned from the graph."""
        links = [group for group in self._groups if isinstance(group, RankedLinks)]
        return links[0].fitted if links else {}

    def check(self, graph: Graph, epochs: int) -> None:
        """Refuse links that nothing reached; warn if the epochs ran out."""
        # Not sooner: behind a layer that starts at zero the first gradients are zero.
        ranked = any(group.name == "graph" for group in self._watched)
        if ranked and self.share_untouched() == 1:
            raise ValueError(_unreached(self._model, graph))
        if not self.detector.settled:
            warnings.warn(
                f"the masks did not settle within {epochs} epochs (distance "
                f"{self.detector.history[-1].joint:.3g}, threshold "
                f"{self.detector.threshold:g}): the ticket is the last epoch's. Allow "
                "more epochs.",
                stacklevel=3,
            )


class _Seen(Hook):
    """Parts of a graph, and which links have been in one."""

    def __init__(self, graph: Graph, count: int, seed: int):
        self.parts = Parts(graph, count, seed)

    def state_dict(self) -> dict[str, Any]:
        """(L,) boolean."""
        return {"seen": self.parts.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.parts.seen.copy_(state["seen"])

    def check(self) -> None:
        """Warn of links that lay between parts at every epoch."""
        share = self.parts.share_unseen()
        if share > _MOST_UNSEEN:
            warnings.warn(
                f"{share:.0%} of the links were never in a part: nothing was learned "
                "of them, and their order is random. Use fewer parts, or more epochs.",
                stacklevel=3,
            )


def _loss_and_finite(loss: Tensor, ranked: Iterable[Sequence[Tensor]]) -> Tensor:
    """The loss, and 1 for each group whose scores are finite; nothing waits for a GPU.

    There masks do not look for NaN. With the detector's counts, which it copies itself,
    this is the second transfer of an epoch, and waits no second time.
    """
    finite = [
        torch.stack([each.isfinite().all() for each in scores]).all()
        if scores
        else torch.ones_like(loss, dtype=torch.bool)
        for scores in ranked
    ]
    return torch.stack([loss.detach(), *(each.to(loss.dtype) for each in finite)])


def _check(numbers: Tensor, names: Iterable[str], epoch: int) -> float:
    """The loss, on CPU, or the errors that an epoch on CPU would have raised."""
    value = check_finite(numbers[0], epoch)
    for name, finite in zip(names, numbers[1:].tolist(), strict=True):
        _check_scores(name, bool(finite), epoch)
    return value


def _check_scores(name: str, finite: bool, epoch: int) -> None:
    if not finite:
        raise diverged(f"scores of the group {name!r} became nan or infinite", epoch)


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
