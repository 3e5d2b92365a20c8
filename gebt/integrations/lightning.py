"""Lightning callbacks: one draws a ticket in `fit`, one keeps its masks in the next."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Lightning is not installed: pip install 'gebt[lightning]'",
            name="lightning",
        ) from error

from gebt._checks import check_positive, check_ratio
from gebt._provenance import versions
from gebt.graph import Graph
from gebt.integrations.pyg import link_of_edges, weigh, weights_of
from gebt.learn.tasks import task_for
from gebt.learn.training import copy_state
from gebt.models import describe_model
from gebt.options import Fit
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.groups import Group
from gebt.prune.links import GraphSparsifier
from gebt.prune.weights import ModelPruner, apply_masks, check_masks
from gebt.tickets.search import Search, describe_search
from gebt.tickets.ticket import Ticket


class EarlyBird(Callback):
    """Draws a joint ticket while a module trains, and ends `fit` when it has settled.

    `gebt.find_ticket` around a ``training_step`` of your own. Every training batch is
    the whole graph as PyG's data. While the step runs, its ``edge_weight`` (its
    ``edge_attr``, where that is one floating column and there is no ``edge_weight``)
    has each edge's own weight times its link's learned score, so the step must give it
    to the network. The scores have an Adam of their own; loss, optimisers and schedules
    stay the module's. Mask distances are logged as ``distance_graph``,
    ``distance_weights`` and ``distance_joint``. Lightning's checkpoints hold all that a
    resumed `fit` needs.

    The ticket's weights have the module's names: `Ticket.open` takes the module, or
    what has a network under the same attribute.

    Args:
        graph_ratio: share of the graph's links to remove, in [0, 1); at 0 the batches
            are left as they are.
        weight_ratio: share of all two-dimensional weights to remove, in [0, 1).
        graph_lr: learning rate of the links' scores; one so large that they turn
            negative is not for `GCNConv`, whose degrees would, too.
        detector: a new one, with other options than the default ones.
        seed: of the order of equal scores.

    Attributes:
        ticket: after `fit` the `gebt.Ticket`; that of the last epoch, with a warning,
            if the masks have not settled.
        detector: what saw the masks of each epoch.

    Raises:
        ValueError: at birth, naming what is out of range; in `fit`, if several
            processes train, a batch is another graph than the first, or no gradient
            reaches the links.
    """

    def __init__(
        self,
        *,
        graph_ratio: float = 0.2,
        weight_ratio: float = 0.9,
        graph_lr: float = 0.001,
        detector: MaskDistanceDetector | None = None,
        seed: int = 0,
    ):
        check_ratio("graph_ratio", graph_ratio)
        check_ratio("weight_ratio", weight_ratio)
        check_positive("graph_lr", graph_lr)
        if graph_ratio == 0 and weight_ratio == 0:
            raise ValueError(
                "`graph_ratio` and `weight_ratio` are both 0: there is nothing to "
                "prune."
            )
        if detector is not None and detector.history:
            raise ValueError(
                f"`detector` has already seen {len(detector.history)} updates. Give "
                "each search a new one."
            )
        self.ticket: Ticket | None = None
        self.detector = detector or MaskDistanceDetector()
        self._ratios = graph_ratio, weight_ratio
        self._graph_lr = graph_lr
        self._seed = seed
        self._graph: Graph | None = None
        self._links: GraphSparsifier | None = None
        self._restored: Mapping[str, Any] | None = None
        self._changed: tuple[Any, str, Tensor | None] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be searched."""
        if trainer.world_size > 1:
            raise ValueError(
                f"{trainer.world_size} processes train, and each would draw a ticket "
                "of its own. Search in one, `Trainer(devices=1)`."
            )
        if stage == "fit" and self.ticket is not None:
            raise ValueError(
                "this EarlyBird has drawn its ticket. Give each search a new one; "
                "`KeepMasks(ticket.weight_masks)` is for the ticket's own training."
            )

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give the edges their links' scores."""
        if self._graph is None:
            self._begin(pl_module, batch)
        elif not torch.equal(batch.edge_index, self._edges):
            raise ValueError(
                f"batch {batch_idx} has other edges than the first of the search. "
                "Every batch must be the whole graph: `DataLoader([data])`."
            )
        if self._links is not None:
            self._changed = batch, *weights_of(batch)
            weigh(batch, self._links.score, self._link)

    def _begin(self, module: Any, batch: Any) -> None:
        if not hasattr(batch, "edge_index"):
            raise ValueError(
                "EarlyBird needs the whole graph as PyG's `Data` in every batch, got a "
                f"{type(batch).__name__}. `DataLoader([data])` of torch_geometric "
                "gives that."
            )
        graph_ratio, weight_ratio = self._ratios
        graph = self._graph = Graph.from_pyg(batch)
        self._edges = batch.edge_index
        self._groups: list[Group] = []
        if graph_ratio:
            how: Any = {"prune_ratio": graph_ratio, "lr": self._graph_lr}
            self._links = GraphSparsifier(graph, self._seed, **how)
            self._link = link_of_edges(graph, batch.edge_index)
            self._adam = torch.optim.Adam(self._links.scores())
            self._groups.append(self._links)
        if weight_ratio:
            self._groups.append(ModelPruner(module, weight_ratio))
        self._first_weights = copy_state(module)
        if self._restored is not None:
            self._first_weights = self._restored["first_weights"]
            if self._links is not None:
                self._links.load_state_dict(self._restored["links"])
                self._adam.load_state_dict(self._restored["adam"])

    def on_train_batch_end(self, *_: Any) -> None:
        """Give the batch back as it was."""
        if self._changed is not None:
            batch, name, own = self._changed
            batch[name] = own
            self._changed = None

    def on_exception(self, *_: Any) -> None:
        """Give the batch back as it was."""
        self.on_train_batch_end()

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Step the links' scores, where a gradient has reached them."""
        if self._links is not None and self._links.score.grad is not None:
            self._links.after_backward()
            self._adam.step()
            self._adam.zero_grad()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare the masks with the earlier epochs'; stop when they have settled."""
        if self._links is not None and not self._adam.state:
            raise ValueError(
                "no gradient reached the links' scores. Let `training_step` give "
                "`batch.edge_weight` to the network, and that to its layers; or set "
                "`graph_ratio=0`."
            )
        reading = self.detector.update({g.name: g.masks() for g in self._groups})
        distances = {**reading.distances, "joint": reading.joint}
        pl_module.log_dict({f"distance_{name}": d for name, d in distances.items()})
        if reading.settled:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the ticket."""
        if self._graph is None or not self.detector.history:
            return
        self.ticket = self._drawn(trainer, pl_module, self._graph)
        if not self.ticket.settled:
            warnings.warn(
                f"the masks did not settle within {self.ticket.epoch} epochs (distance "
                f"{self.detector.history[-1].joint:.3g}, threshold "
                f"{self.detector.threshold:g}): the ticket is the last epoch's. Allow "
                "more epochs.",
                stacklevel=2,
            )

    def _drawn(self, trainer: Any, module: Any, graph: Graph) -> Ticket:
        links, history = self._links, self.detector.history
        search = Search(graph_lr=self._graph_lr, detector=self.detector)
        fit = Fit(epochs=len(history), decay="all")
        options = describe_search(task_for(graph), *self._ratios, fit, search)
        used = trainer.optimizers[0].param_groups[0]
        options |= {k: float(used[k]) for k in ("lr", "weight_decay") if k in used}
        every = graph.present
        masks = {"graph": {"link": every}} | {g.name: g.masks() for g in self._groups}
        score = {"link": every.to(graph.adjacency.dtype)}
        return Ticket(
            masks=masks,
            scores={"graph": links.learned() if links else score},
            weights=copy_state(module),
            first_weights=self._first_weights,
            epoch=len(history),
            settled=self.detector.settled,
            share_untouched=links.share_untouched() if links else 0.0,
            distances=tuple({**r.distances, "joint": r.joint} for r in history),
            options=options,
            seed=self._seed,
            dataset={"name": graph.name, "fingerprint": graph.fingerprint()},
            model=describe_model(module),
            versions=versions(),
        )

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        state: dict[str, Any] = {"detector": self.detector.state_dict()}
        if self._graph is not None:
            state["first_weights"] = self._first_weights
        if self._links is not None:
            state["links"] = self._links.state_dict()
            state["adam"] = self._adam.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was taken; the rest waits for the graph."""
        self.detector.load_state_dict(state_dict["detector"])
        if "first_weights" in state_dict:
            self._restored = state_dict


class KeepMasks(Callback):
    """Keeps what is pruned at zero, while a module trains.

    Args:
        masks: boolean masks by the module's parameter names, True = kept, such as a
            ticket's ``weight_masks``.

    Raises:
        ValueError: when `fit` starts, if a mask fits no parameter of the module.
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        self._masks = masks

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Prune the module."""
        check_masks(pl_module, self._masks)
        self._masks = {n: m.to(pl_module.device) for n, m in self._masks.items()}
        apply_masks(pl_module, self._masks)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Prune what the optimiser has changed."""
        apply_masks(pl_module, self._masks)
