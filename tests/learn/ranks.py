"""What tests ask of several ranks: `python ranks.py FILE` under torchrun writes it."""

import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gebt
from gebt.graph import Graph, cut
from gebt.learn.tasks import LinkPrediction, MultiLabel, Task
from gebt.models import GAT, GCN, GIN, GraphSAGE
from gebt.prune.links import top_links
from gebt.sparse.shard import Shard
from gebt.world import ALONE, World

Part = Callable[[Graph], Graph]  # what a rank holds of a graph


def graph(dtype: torch.dtype, *, nodes: int = 300, several: bool = False) -> Graph:
    """Undirected, weighted, with three classes or labels, and nodes without links."""
    draw = torch.Generator().manual_seed(nodes)
    ends = torch.randint(nodes - 9, (2, 6 * nodes), generator=draw)
    near = (ends[0] + ends[1] % 7).clamp(max=nodes - 9)
    ends[1] = torch.where(torch.rand(6 * nodes, generator=draw) < 0.7, near, ends[1])
    y = torch.arange(nodes) * 3 // nodes
    x = torch.randn(nodes, 6, generator=draw, dtype=torch.float64)
    x[:, :3] += 0.7 * torch.eye(3, dtype=torch.float64)[y]
    part = torch.rand(nodes, generator=draw)
    labels = torch.stack([y == 0, y > 0], dim=1)
    data = {
        "x": x.to(dtype),
        "edge_index": ends,
        "edge_weight": torch.rand(6 * nodes, generator=draw, dtype=torch.float64),
        "y": labels if several else y,
        "train_mask": part < 0.2,
        "val_mask": (part >= 0.2) & (part < 0.5),
        "test_mask": part >= 0.8,
    }
    data["edge_weight"] = data["edge_weight"].to(dtype)
    return Graph.from_pyg(data, directed=False)


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "gcn": lambda: GCN(6, 8, 3, dropout=0.3),
    "residual": lambda: GCN(6, 8, 3, layers=3, residual=True, norm="batch"),
    "maps": lambda: GCN(6, 8, 3, norm="layer", input_map=True, output_map=True),
    "gin": lambda: GIN(6, [8, 5], 3, dropout=0.2),
    "sage": lambda: GraphSAGE(6, 8, 3, dropout=0.2),
}


def made(name: str, dtype: torch.dtype, outputs: int = 3) -> torch.nn.Module:
    """A model, always the same."""
    torch.manual_seed(1)
    model = MODELS[name]() if outputs == 3 else GCN(6, 8, outputs, dropout=0.2)
    return model.to(dtype)


def of_all(part: Graph, links: Tensor) -> Tensor:
    """What every rank has of its links (L,), as one process has it."""
    if part.share is None:
        return links
    ids, found = part.world.gather(part.share.links), part.world.gather(links)
    return torch.empty_like(found).index_copy_(0, ids, found)


def work(mine: Part, world: World) -> dict[str, Any]:
    """By a rank or a single process, by name what must be the same.

    Three ranks take long to start, and do the least.
    """
    found: dict[str, Any] = {}
    kernels: Any = importlib.import_module("gebt.kernels.propagate")
    usual = kernels._LARGE
    part = mine(graph(torch.float64))
    found["written out, gcn"] = ticket(part, "gcn", torch.float64)
    found["ties"] = ties(part)
    found["refusals"] = refusals(mine, world)
    kernels._LARGE = 0
    found["fused, gcn"] = ticket(part, "gcn", torch.float64)
    found["fused, residual"] = ticket(part, "residual", torch.float64)
    found["float32"] = ticket(mine(graph(torch.float32)), "gcn", torch.float32)
    if world.size == 3:
        return found
    found["fused, gin"] = ticket(part, "gin", torch.float64)
    found["fused, gradients"] = gradients(part)
    kernels._LARGE = usual
    found["written out, gradients"] = gradients(part)
    found["written out, sage"] = ticket(part, "sage", torch.float64)
    found["student"] = student(part)
    several = mine(graph(torch.float64, several=True))
    found["labels"] = trained(several, MultiLabel(), outputs=2)
    two = graph(torch.float64)
    two = replace(two, y=(two.y == 0).long(), metric="ROC-AUC")
    found["ROC-AUC"] = trained(mine(two), gebt.NodeClassification(), outputs=2)
    links = graph(torch.float64).hold_out_links()
    found["pairs"] = trained(mine(links), LinkPrediction(k=5, width=4), outputs=4)
    return found


def ticket(part: Graph, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """A search, the ticket opened, and a retraining."""
    model = made(name, dtype)
    drawn = gebt.find_ticket(
        model, part, graph_ratio=0.4, weight_ratio=0.5, epochs=8, seed=3
    )
    small = drawn.open(model, part)
    training = gebt.train(model, small, epochs=2)
    return {
        "epoch": drawn.epoch,
        "links": of_all(part, drawn.link_mask),
        "weights": dict(drawn.weight_masks),
        "distances": drawn.distances,
        "untouched": drawn.share_untouched,
        "counts": (drawn.links_kept, drawn.num_links, small.links_kept),
        "losses": [epoch.loss for epoch in training.history],
    }


def gradients(part: Graph) -> dict[str, Tensor]:
    """Of every model's loss, for weights and for each link."""
    found = {}
    for name in MODELS:
        model = made(name, torch.float64).eval()
        draw = torch.Generator().manual_seed(2)
        every = torch.rand(part.links_in_all, generator=draw, dtype=torch.float64)
        own = every if part.share is None else every[part.share.links]
        score = (own + 0.5).requires_grad_()
        assert part.split is not None
        out = model(part.x, part.adjacency.times(score, part.link), part.split.train)
        gebt.NodeClassification().loss(out, part, "train").backward()
        assert score.grad is not None
        found[f"{name}, links"] = of_all(part, score.grad)
        for key, weight in model.named_parameters():
            if weight.grad is not None:
                found[f"{name}, {key}"] = part.world.sum(weight.grad)
    return found


def ties(part: Graph) -> dict[str, Tensor]:
    """Which of few different scores are kept; all alike at the end."""
    ids = part.link_ids()
    return {
        f"{ratio:g} of {kinds}": of_all(
            part, top_links((ids % kinds - 1).double(), ratio, 5, part)
        )
        for ratio in (0.0, 0.3, 0.5, 0.9)
        for kinds in (1, 2, 3, 50)
    }


def student(part: Graph) -> dict[str, Any]:
    """A student of a trained teacher."""
    model = made("gcn", torch.float64)
    gebt.train(model, part, epochs=5)
    with torch.no_grad():
        logits = model(part.x, part.adjacency)
    done = gebt.train_student(model, part, logits, weight_ratio=0.6, epochs=7)
    losses = [epoch.loss for epoch in done.history]
    return {"weights": dict(done.masks), "losses": losses, "val": done.val}


def trained(part: Graph, task: Task, outputs: int) -> dict[str, Any]:
    """A search and scores of another task."""
    model = made("", torch.float64, outputs)
    how: Any = {"task": task, "epochs": 4, "seed": 2}
    drawn = gebt.find_ticket(model, part, graph_ratio=0.3, weight_ratio=0.5, **how)
    scores = [gebt.evaluate(model, part, p, task=task) for p in ("val", "test")]
    return {
        "links": of_all(part, drawn.link_mask),
        "weights": dict(drawn.weight_masks),
        "scores": scores,
    }


def refusals(mine: Part, world: World) -> dict[str, str]:
    """What several ranks do not take, in words; nothing of a single process."""
    if world.size == 1:
        return {}
    part = mine(graph(torch.float64))
    directed = gebt.Graph.from_pyg(
        {"x": torch.ones(9, 1), "edge_index": torch.tensor([[0, 1, 5], [1, 2, 7]])}
    )
    few = gebt.Graph.from_pyg(
        {"x": torch.ones(2, 1), "edge_index": torch.tensor([[0, 1], [1, 0]])}
    )
    asked: dict[str, Callable[[], Any]] = {
        "directed": lambda: mine(directed),
        "few": lambda: mine(few) if world.size > 2 else None,
        "gat": lambda: gebt.train(GAT(6, 2, 3).double(), part, epochs=1),
        "criterion": lambda: gebt.find_ticket(
            made("gcn", torch.float64), part, criterion="k-neighbour", epochs=1
        ),
        "at init": lambda: gebt.find_ticket(
            made("gcn", torch.float64), part, method="init", graph_ratio=0, epochs=6
        ),
        "one fails": lambda: world.attempt(lambda: [1][world.rank :].index(1)),
    }
    found = {}
    for name, action in asked.items():
        try:
            action()
            found[name] = "nothing"
        except ValueError as error:
            found[name] = str(error)
    return found


def main() -> None:
    """Write what all ranks find together."""
    from torch import distributed as dist

    from gebt.world import Ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = Ranks()

    def mine(whole: Graph) -> Graph:
        part = cut(whole, world, whole.fingerprint())
        assert isinstance(part.adjacency, Shard)
        return part

    warnings.simplefilter("ignore")
    found = work(mine, world)
    if world.rank == 0:
        torch.save(found, Path(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()


def alone() -> dict[str, Any]:
    """The same in this process."""
    with warnings.catch_warnings(action="ignore"):
        return work(lambda whole: whole, ALONE)


if __name__ == "__main__":
    main()
