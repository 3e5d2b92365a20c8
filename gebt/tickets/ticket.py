"""The ticket: the only thing that passes from search to retraining."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gebt._checks import check_choice, check_ratio
from gebt._registry import ASK_A_MODEL, CRITERIA
from gebt.files import Fields, Tensors, hash_of, shown
from gebt.graph import Graph, PrunedGraph, Share, check_graph
from gebt.graph.pieces import read_pieces, scattered, write_pieces
from gebt.learn.tasks import find_task
from gebt.models import build_model, can_build, describe_model
from gebt.prune.channels import drop_channels, masks_without
from gebt.prune.links import links_by
from gebt.prune.weights import (
    apply_masks,
    check_masks,
    check_not_compiled,
    take_dtype,
)
from gebt.randomness import Draws
from gebt.world import ALONE

Weights = Literal["inherit", "rewind", "fresh"]
Links = Literal["learned", "binary"]
FILE = "ticket.safetensors"
"""What a ticket's file is called where nobody names it."""
_FORMAT = 3
_OF_LINKS = "masks/graph/link", "scores/graph/link"
"""The tensors of which each rank has its own links'."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """A joint early-bird ticket.

    Attributes:
        masks: boolean masks, True = kept, by group and name: ``"graph"`` has ``"link"``
            (L,), ``"weights"`` one for each pruned parameter, ``"channels"`` one (H,)
            for each layer, see `ChannelPruner`.
        scores: what was learned beside the weights, by group and name: ``"graph"`` has
            ``"link"`` (L,), the factor of each link's edge weights.
        weights: the model's state when the ticket was drawn, unpruned.
        first_weights: its state when the search began.
        epoch: completed search epochs when it was drawn; 0 if there was nothing to
            search.
        settled: whether the masks had settled; False says that the epochs ran out.
        share_untouched: share of links that no gradient of the loss ever reached,
            whose order therefore carries no information.
        distances: per epoch, each group's mask distance and ``joint``.
        options: the options of the search.
        seed: its seed.
        dataset: the graph's ``name`` and ``fingerprint``.
        model: a description of the model, see `gebt.models.describe_model`.
        versions: of gebt, torch and Python that drew it.
        fitted: what the criterion has learned from the searched graph, by name, for
            `links_for`; empty for most.
        share: of the graph that its links are of, where that is one rank's.
    """

    masks: Mapping[str, Mapping[str, Tensor]]
    scores: Mapping[str, Mapping[str, Tensor]]
    weights: Mapping[str, Tensor]
    first_weights: Mapping[str, Tensor]
    epoch: int
    settled: bool
    share_untouched: float
    distances: tuple[Mapping[str, float], ...]
    options: Mapping[str, Any]
    seed: int
    dataset: Mapping[str, str]
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    fitted: Mapping[str, Tensor] = field(default_factory=dict)
    share: Share | None = None

    @property
    def link_mask(self) -> Tensor:
        """(L,) boolean, True = kept."""
        return self.masks["graph"]["link"]

    @property
    def link_score(self) -> Tensor:
        """(L,) learned factor of each link's edge weights."""
        return self.scores["graph"]["link"]

    @property
    def weight_masks(self) -> Mapping[str, Tensor]:
        """Boolean masks by parameter name; empty if none were pruned."""
        return self.masks.get("weights", {})

    @property
    def channel_masks(self) -> Mapping[str, Tensor]:
        """(H,) boolean mask of each layer's channels; empty if none were pruned."""
        return self.masks.get("channels", {})

    def with_links(self, mask: Tensor) -> "Ticket":
        """The same weights on other links, of unchanged value: for comparison.

        Args:
            mask: (L,) boolean, True = kept.
        """
        ones = torch.ones_like(self.link_score)
        return replace(
            self,
            masks={**self.masks, "graph": {"link": mask}},
            scores={**self.scores, "graph": {"link": ones}},
        )

    def with_weights(self, model: nn.Module) -> "Ticket":
        """The same links and masks over weights that were trained on.

        Args:
            model: that `open` loaded; its state is copied.

        Raises:
            ValueError: if it is of another shape.
        """
        self._check_model(model)
        state = {n: t.detach().clone() for n, t in model.state_dict().items()}
        return replace(self, weights=state)

    def fingerprint(self) -> str:
        """A hash of all its tensors: masks, scores and weights."""
        return hash_of(self._tensors())

    @property
    def links_kept(self) -> int:
        """Number of kept links, of all ranks."""
        return self._over_ranks(int(self.link_mask.count_nonzero()))

    @property
    def num_links(self) -> int:
        """L of the searched graph."""
        return self._over_ranks(self.link_mask.numel())

    def _over_ranks(self, number: int) -> int:
        return number if self.share is None else self.share.world.total(number)

    @property
    def links_untouched(self) -> int:
        """Number of links that no gradient ever reached."""
        # Links that the searched graph lacked have the score 0.
        present = self._over_ranks(int(self.link_score.count_nonzero()))
        return round(self.share_untouched * present)

    @property
    def weights_kept(self) -> int:
        """Number of kept weights, of all that could be pruned."""
        return sum(int(m.count_nonzero()) for m in self.weight_masks.values())

    @property
    def num_weights(self) -> int:
        """Number of weights that could be pruned."""
        return sum(m.numel() for m in self.weight_masks.values())

    def __repr__(self) -> str:
        weights = f", {self.weights_kept} of {self.num_weights} weights"
        channels = [mask.tolist() for mask in self.channel_masks.values()]
        kept, all_of_them = sum(map(sum, channels)), sum(map(len, channels))
        return (
            f"Ticket({self.dataset['name']!r}, epoch {self.epoch}"
            f"{'' if self.settled else ', not settled'}, {self.links_kept} of "
            f"{self.num_links} links{weights * bool(self.weight_masks)}"
            f"{f', {kept} of {all_of_them} channels' * bool(channels)})"
        )

    def prune(self, graph: Graph, *, links: Links = "learned") -> Graph:
        """The graph with the ticket's links, for any model; `open` is this and weights.

        Args:
            graph: the graph that was searched; not changed.
            links: as for `open`.

        Raises:
            ValueError: if the ticket is for another graph.
        """
        check_choice("links", links, Links)
        check_graph(graph)
        if (found := graph.fingerprint()) != self.dataset["fingerprint"]:
            raise ValueError(
                f"the ticket was drawn on the graph {self.dataset['name']!r} with the "
                f"fingerprint {self.dataset['fingerprint'][:12]}, but this is "
                f"{graph.name!r} with {found[:12]}. Load the graph it was drawn on."
            )
        score = self._own(self.link_score, graph) if links == "learned" else None
        return graph.keep_links(self._own(self.link_mask, graph), score)

    def open(
        self,
        model: nn.Module,
        graph: Graph,
        *,
        weights: Weights = "inherit",
        links: Links = "learned",
        seed: int | None = None,
    ) -> PrunedGraph:
        """Prune a graph and load the ticket's pruned weights into a model.

        Args:
            model: of the searched model's shape; changed in place. Where none of its
                parameters is of the features' dtype, it takes that.
            graph: the graph that was searched; not changed.
            weights: ``"inherit"`` those of the draw, as the paper does;
                ``"rewind"`` to those the search began with; ``"fresh"`` draws them
                again, by every ``reset_parameters`` in the model.
            links: ``"learned"`` keeps the learned link values, ``"binary"`` sets
                kept links back to the graph's own edge weights.
            seed: for fresh weights; by default the search's seed plus 1.

        Returns:
            The pruned graph, with the weights' masks. Channels that the ticket drops
            are masked, too, by all weights into them and out of them; `slim` lets
            them go.

        Raises:
            ValueError: if the ticket is for another graph or another model.
        """
        check_choice("weights", weights, Weights)
        small = self.prune(graph, links=links)
        check_not_compiled(model)
        self._check_model(model)
        take_dtype(model, graph.x.dtype)
        if others := self.masks.keys() - {"graph", "weights", "channels"}:
            warnings.warn(
                f"the masks of {', '.join(sorted(others))} are not applied: gebt knows "
                "what those of links, weights and channels mean. They are in `masks`.",
                stacklevel=2,
            )
        device = graph.adjacency.device
        state = {"inherit": self.weights, "rewind": self.first_weights}.get(weights)
        if state is not None:
            model.load_state_dict(dict(state))
        else:
            _reinitialise(model, self.seed + 1 if seed is None else seed)
        masks = self._masks_for(model)
        apply_masks(model, {n: m.to(device) for n, m in masks.items()})
        parts = {part.name: getattr(small, part.name) for part in fields(Graph)}
        return PrunedGraph(**parts, weight_masks=masks)

    def _masks_for(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The weights' masks and, where channels go, those of all that is theirs."""
        masks = dict(self.weight_masks)
        if self.channel_masks:
            for name, mask in masks_without(model, self.channel_masks).items():
                masks[name] = mask & masks.get(name, mask).to(mask.device)
        return masks

    def slim(self, model: nn.Module, graph: Graph) -> tuple[nn.Module, Graph]:
        """Let the channels that the ticket drops go, from an opened model.

        The smaller model is to be trained on: that costs less, too. Other weights are
        as they were.

        Args:
            model: that `open` has loaded; not changed.
            graph: what `open` gave.

        Returns:
            The smaller model, and the graph, without the larger model's masks.

        Raises:
            ValueError: if the ticket has no masks of channels, or weights' as well.
        """
        if not self.channel_masks or self.weight_masks:
            has = "weights' masks, too" if self.channel_masks else "none"
            raise ValueError(
                "a ticket is slimmed by its masks of channels alone, and this one has "
                f"{has}. Train it as `open` leaves it, masked."
            )
        small = drop_channels(model, self.channel_masks)
        return small, graph.without_masks() if isinstance(graph, PrunedGraph) else graph

    def _own(self, links: Tensor, graph: Graph) -> Tensor:
        """Of the ticket's links (L,) those that a graph, or one rank's share, has."""
        if graph.share is not None and self.share is None:
            links = links[graph.share.links.to(links.device)]
        return links.to(graph.adjacency.device)

    def links_for(
        self,
        graph: Graph,
        *,
        graph_ratio: float | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """Which links to keep of a graph with nodes that training never saw.

        The ticket's criterion is a function of a graph, so it scores the links of any
        that has the same features: of the searched one with more nodes, or of another.
        Nothing is trained, and gebt's own criteria read no label. The links go by
        ``graph.keep_links(mask)``.

        On the searched graph this is the ticket's own mask where the criterion asks no
        model, and for ``voi`` if the weights were not trained on after their links were
        scored (`find_cheapest`, ``find_ticket(update_weights=False)``): it asks the
        ticket's weights, `find_ticket` asks those it is given. ``expected-gradient``
        scores validation nodes by the other half of them while the ticket is drawn,
        and here by the mean of both halves.

        Args:
            graph: to prune; whole, not pruned before.
            graph_ratio: share of its links to remove, in [0, 1); by default the
                ticket's.
            model: to ask, as it is; by default one with the ticket's pruned weights.
                Give one that was trained on, or that gebt cannot rebuild, after
                `open` has loaded it. Criteria that read the graph alone ask none.

        Returns:
            (L,) boolean mask of that graph's links, True = kept.

        Raises:
            ValueError: if the criterion knows nothing of other graphs (``learned``,
                ``grow``), the graph has no links, other features or other numbers than
                the model, or the ticket lacks what its criterion has fitted.
        """
        check_graph(graph)
        ratio = self.options["graph_ratio"] if graph_ratio is None else graph_ratio
        check_ratio("graph_ratio", ratio)
        check_unseen(graph, self.model if model is None else describe_model(model))
        name = CRITERIA.check(self.options.get("criterion", "learned"))
        if not ratio:
            return graph.present
        asked, task = nn.Module(), None
        if name in ASK_A_MODEL or name not in CRITERIA.homes:
            asked = self._to_ask(name, graph, model)
            task = find_task(self.options["task"])
        how = (asked, ratio, self.seed, task)
        return links_by(name, graph, *how, fitted=self.fitted).masks()["link"]

    def _to_ask(self, name: str, graph: Graph, given: nn.Module | None) -> nn.Module:
        """The model that was given, or one with the pruned weights."""
        if given is not None:
            found = {p.dtype for p in given.parameters() if p.is_floating_point()}
            if found and graph.x.dtype not in found:
                raise ValueError(
                    f"`model` computes in {found.pop()}, but the features of "
                    f"{graph.name!r} are {graph.x.dtype}. Convert one of them."
                )
            return given
        if not can_build(self.model):
            raise ValueError(
                f"the criterion {name!r} asks a model, and gebt cannot rebuild one of "
                f"class {shown(self.model.get('class'))}. Load one by `Ticket.open` "
                "and give it as `model`."
            )
        device = graph.adjacency.device
        state = {n: t.to(device, copy=True) for n, t in self.weights.items()}
        model = build_model(self.model, state)
        masks = self._masks_for(model)
        apply_masks(model, {n: m.to(device) for n, m in masks.items()})
        return model

    def _check_model(self, model: nn.Module) -> None:
        found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        wanted = {name: tuple(t.shape) for name, t in self.weights.items()}
        if found != wanted:
            differing = sorted(set(found.items()) ^ set(wanted.items()))
            raise ValueError(
                f"the ticket was drawn for a model {self.model['class']} whose "
                f"parameters differ from this {type(model).__name__}'s: {differing}."
            )
        check_masks(model, self.weight_masks)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; all that is not a tensor is in its header.

        Where its links are one rank's, all ranks write theirs, to a file each; `load`
        puts them together: see `gebt.graph.pieces`.
        """
        tensors = self._tensors()
        world, own = ALONE, {}
        if self.share is not None:
            world, own = self.share.world, {"links": self.share.links}
            own |= {name: tensors.pop(name) for name in _OF_LINKS}
        header = {
            "kind": "ticket",
            "format": _FORMAT,
            **{name: getattr(self, name) for name in _HEADER},
        }
        write_pieces(Path(path), world, own, tensors, header)

    def _tensors(self) -> dict[str, Tensor]:
        """What is in the file, by its names there."""
        return {
            f"{part}/{name}": tensor
            for part, found in self._parts().items()
            for name, tensor in found.items()
        }

    def _parts(self) -> dict[str, Mapping[str, Tensor]]:
        """What is in the file: names below each part's."""
        masks = {f"masks/{group}": found for group, found in self.masks.items()}
        scores = {f"scores/{group}": found for group, found in self.scores.items()}
        weights = {"weights": self.weights, "first_weights": self.first_weights}
        return masks | scores | weights | {"fitted": self.fitted}

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket; nothing is unpickled.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is truncated, corrupt, not a ticket, or of a format
                that this version does not know.
        """
        pieces, header = read_pieces(Path(path), "ticket")
        tensors = scattered(pieces, [*_OF_LINKS]) if len(pieces) > 1 else pieces[0]
        found = header.content.get("format")
        if found == 2:
            _update_format_2(tensors, header)
        elif found != _FORMAT:
            raise ValueError(
                f"{path} has the ticket format {shown(found)}, this version of gebt "
                f"reads 2 and {_FORMAT}. Draw it again or install the matching gebt."
            )
        mask = tensors.mask("masks/graph/link", (None,))
        tensors.numbers("scores/graph/link", mask.shape)
        weights = tensors.group("weights")
        ticket = cls(
            masks=_read_masks(tensors, weights),
            scores=_nested(tensors, "scores"),
            weights=weights,
            first_weights=_like(tensors, "first_weights", weights),
            epoch=header.whole("epoch", 0),
            settled=header.flag("settled"),
            share_untouched=header.number("share_untouched", 0, 1),
            distances=tuple(
                {group: each.number(group, 0, null=True) for group in each}
                for each in header.each("distances")
            ),
            options=_checked_options(header.fields("options")),
            # One less than torch takes: fresh weights are drawn from the next.
            seed=header.whole("seed", -(2**63), 2**64 - 2),
            dataset=_texts(header.fields("dataset"), "name", "fingerprint"),
            model=header.fields("model").content,
            versions=_texts(header.fields("versions"), "gebt", "torch", "python"),
            fitted={
                name: tensors.numbers(f"fitted/{name}", tensor.shape)
                for name, tensor in tensors.group("fitted").items()
            },
        )
        header.fields("model").text("class")
        if can_build(ticket.model):
            try:
                build_model(ticket.model, weights)
            except ValueError as error:
                raise ValueError(f"{path} is not a whole ticket: {error}") from error
        return ticket

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write `save`'s file and a model card into a folder; needs huggingface_hub.

        Args:
            folder: made where there is none.
            **options: of ``ModelHubMixin.save_pretrained``, as of the next two.
        """
        from gebt.tickets.hub import HubTicket

        HubTicket.of(self).save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub.

        Args:
            repo_id: ``"user/name"``; made where there is none.
            **options: such as ``private``, ``token``, ``commit_message``.

        Returns:
            The address of what it has uploaded.
        """
        from gebt.tickets.hub import HubTicket

        return HubTicket.of(self).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "Ticket":
        """Load what `push_to_hub` or `save_pretrained` wrote.

        Args:
            name: ``"user/name"`` on the Hugging Face Hub, or a folder.
            **options: for the Hub, such as ``revision``, ``token``.

        Raises:
            ValueError: as `load`.
        """
        if Path(name).is_dir():
            return cls.load(Path(name) / FILE)
        from gebt.tickets.hub import HubTicket

        return HubTicket.from_pretrained(name, **options).ticket


def check_unseen(graph: Graph, model: Mapping[str, Any]) -> None:
    """Refuse a graph without links, or that a model, as described, cannot be for."""
    if not graph.link.numel():
        raise ValueError(f"the graph {graph.name!r} has no links to choose from.")
    numbers = {graph.x.dtype, graph.adjacency.dtype}
    if len(numbers) > 1 or not graph.x.dtype.is_floating_point:
        raise ValueError(
            "features and edge weights must be of one floating dtype, but those of "
            f"{graph.name!r} are {graph.x.dtype} and {graph.adjacency.dtype}."
        )
    arguments = model.get("arguments")
    wanted = arguments.get("num_features") if isinstance(arguments, Mapping) else None
    if isinstance(wanted, int) and wanted != graph.num_features:
        raise ValueError(
            f"the model reads {wanted} features, but {graph.name!r} has "
            f"{graph.num_features}. The features must be those of the searched graph."
        )


def _update_format_2(tensors: Tensors, header: Fields) -> None:
    """Give what gebt 0.1 wrote today's names."""
    new = {"link_mask": "masks/graph/link", "link_score": "scores/graph/link"}
    tensors.content = {
        new.get(name) or re.sub("^weight_masks/", "masks/weights/", name): tensor
        for name, tensor in tensors.content.items()
    }
    if isinstance(options := header.content.get("options"), dict):
        options.setdefault("criterion", "learned")


def _nested(tensors: Tensors, part: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a part by group and name."""
    groups: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.group(part).items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def _read_masks(
    tensors: Tensors, weights: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    groups = _nested(tensors, "masks")
    for group, masks in groups.items():
        for name, mask in masks.items():
            at = f"masks/{group}/{name}"
            if group == "weights" and name not in weights:
                tensors.fail(at, "be of one of the ticket's weights")
            like = weights[name] if group == "weights" else mask
            tensors.mask(at, like.shape)
    return groups


def _like(
    tensors: Tensors, prefix: str, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a group that has the names, shapes and dtypes of the weights."""
    found = tensors.group(prefix)
    for name in sorted(weights.keys() | found.keys()):
        both = weights.get(name), found.get(name)
        kinds = {None if t is None else (t.dtype, t.shape) for t in both}
        if len(kinds) > 1:
            tensors.fail(f"{prefix}/{name}", f"be like weights/{name}")
    return found


def _texts(given: Fields, *names: str) -> dict[str, str]:
    for name in names:
        given.text(name)
    return given.content


def _checked_options(options: Fields) -> dict[str, Any]:
    """All options; those that gebt itself reads again are checked."""
    for name in ("graph_ratio", "weight_ratio"):
        options.number(name, 0, 1)
    for name in ("lr", "weight_decay"):
        options.number(name, 0)
    options.whole("epochs", 1)
    # Files of gebt 0.1 and 0.2 have none.
    patience = options.whole("patience", 0) if "patience" in options else 0
    options.content["patience"] = patience
    options.text("decay", ("first", "all"))
    options.fields("detector").number("threshold", 0)
    # A name, or an object of the name and what it was built with.
    if isinstance(options.content.get("task"), dict):
        task = options.fields("task")
        task.text("name")
        for name in ("k", "width"):
            if name in task:
                task.whole(name, 1)
        if "spread" in task:
            task.number("spread", 0)
        for name in ("coarse", "classes"):
            if name in task:
                task.wholes(name, 0)
    else:
        options.text("task")
    if "criterion" in options.content:
        options.text("criterion")
    if isinstance(options.content.get("penalty"), dict):
        options.fields("penalty")
    elif "penalty" in options:
        options.text("penalty")
    return options.content


def _reinitialise(model: nn.Module, seed: int) -> None:
    resets: list[Any] = [
        module.reset_parameters
        for module in model.modules()
        if hasattr(module, "reset_parameters")
    ]
    if not resets:
        raise ValueError(
            f"no part of {type(model).__name__} has a `reset_parameters` to draw fresh "
            'weights with. Use `weights="rewind"`.'
        )
    with Draws(seed, model).used():
        for reset in resets:
            reset()


_HEADER = (
    "epoch",
    "settled",
    "share_untouched",
    "distances",
    "options",
    "seed",
    "dataset",
    "model",
    "versions",
)
