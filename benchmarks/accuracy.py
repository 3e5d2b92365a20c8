"""How accurate tickets are, beside their controls, on real graphs.

Per graph and seed: the dense model; joint tickets at the paper's ratios, retrained
with their inherited weights on the learned links, on as many random links and on all
links; and the paper's Fig. 1, GEB tickets retrained from scratch, with random links.
Test accuracy at the best validation epoch; nothing is chosen on test.

    python benchmarks/accuracy.py [--seeds 10] [--graphs cora citeseer] [--root DIR]

Writes one row per run to results/accuracy.csv and prints the summary.
"""

import argparse
import csv
import multiprocessing
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, environment
from rich.console import Console
from rich.table import Table

import gebt
from gebt.pipeline import new_gcn

JOINT = [(0.2, 0.5), (0.4, 0.7), (0.6, 0.9), (0.8, 0.9), (0.2, 0.9)]
FIG1_RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9]
FIG1_PAPER = {"cora": [81, 78, 75, 71.5, 64], "citeseer": [70, 69.5, 69, 66, 61]}
HIDDEN = 16
COLUMNS = (
    "graph recipe links graph_ratio weight_ratio seed epoch settled untouched val test"
).split()


def one_seed(task: tuple[str, int, str | None]) -> list[dict]:
    """Every recipe on one graph with one seed."""
    name, seed, root = task
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # unsettled tickets are a column
    return list(_rows(gebt.load(name, root), seed))


def _rows(graph: gebt.Graph, seed: int) -> Iterator[dict]:
    def row(recipe: str, links: str, model, small, val: float, ticket=None) -> dict:
        options = ticket.options if ticket else {}
        return {
            "graph": graph.name,
            "recipe": recipe,
            "links": links,
            "graph_ratio": options.get("graph_ratio", 0),
            "weight_ratio": options.get("weight_ratio", 0),
            "seed": seed,
            "epoch": ticket.epoch if ticket else "",
            "settled": ticket.settled if ticket else "",
            "untouched": round(ticket.share_untouched, 4) if ticket else "",
            "val": round(val, 2),
            "test": round(gebt.evaluate(model, small, "test"), 2),
        }

    dense = new_gcn(graph, HIDDEN, seed)
    done = gebt.train(dense, graph, seed=seed)
    yield row("dense", "all", dense, graph, done.val)

    for graph_ratio, weight_ratio in JOINT:
        model = new_gcn(graph, HIDDEN, seed)
        ticket = gebt.find_ticket(
            model, graph, graph_ratio=graph_ratio, weight_ratio=weight_ratio, seed=seed
        )
        for links, variant in _with_controls(ticket, seed).items():
            model = new_gcn(graph, HIDDEN, seed)
            small = variant.open(model, graph)
            done = gebt.train(model, small, keep=variant.weight_masks, seed=seed)
            yield row("joint, inherited", links, model, small, done.val, ticket)

    for graph_ratio in FIG1_RATIOS:
        ticket = gebt.find_ticket(
            new_gcn_like(dense, graph, seed),
            graph,
            graph_ratio=graph_ratio,
            weight_ratio=0,
            update_weights=False,
            seed=seed,
        )
        for links, variant in _with_controls(ticket, seed).items():
            if links == "all":
                continue
            model = new_gcn(graph, HIDDEN, seed)
            small = variant.open(model, graph, weights="fresh", seed=seed + 1000)
            done = gebt.train(model, small, seed=seed)
            yield row("GEB, from scratch", links, model, small, done.val, ticket)


def new_gcn_like(model: torch.nn.Module, graph: gebt.Graph, seed: int):
    """A copy: the search may change what it is given."""
    copy = new_gcn(graph, HIDDEN, seed)
    copy.load_state_dict(model.state_dict())
    return copy


def _with_controls(ticket: gebt.Ticket, seed: int) -> dict[str, gebt.Ticket]:
    """The ticket, and the same with random links and with all links."""
    generator = torch.Generator().manual_seed(seed)
    ratio = ticket.options["graph_ratio"]
    ones = torch.ones_like(ticket.link_score)
    random = gebt.random_links(ticket.link_mask.numel(), ratio, generator)
    every = torch.ones_like(ticket.link_mask)
    return {
        "learned": ticket,
        "random": replace(ticket, link_mask=random, link_score=ones),
        "all": replace(ticket, link_mask=every, link_score=ones),
    }


def summarise(rows: list[dict], seeds: int) -> None:
    """Print mean and standard deviation of every recipe."""
    console = Console(width=110)

    def pick(**wanted: object) -> list[dict]:
        return [r for r in rows if all(r[k] == v for k, v in wanted.items())]

    def text(found: list[dict]) -> str:
        scores = [r["test"] for r in found]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        return f"{statistics.fmean(scores):.2f} ± {spread:.2f}"

    def epochs(found: list[dict]) -> str:
        drawn = sorted(r["epoch"] for r in found)
        settled = sum(r["settled"] for r in found)
        middle = statistics.median(drawn)
        return f"{middle:g} [{drawn[0]}-{drawn[-1]}] {settled}/{len(found)}"

    for name in dict.fromkeys(r["graph"] for r in rows):
        dense = pick(graph=name, recipe="dense")
        console.print(f"\n[bold]{name}[/], n = {seeds}; dense {text(dense)}")
        table = Table(title="joint tickets, inherited weights", title_justify="left")
        for title in ("links/weights removed", "epoch, settled", "learned", "random"):
            table.add_column(title)
        table.add_column("all links")
        for graph_ratio, weight_ratio in JOINT:
            found = {
                links: pick(
                    graph=name,
                    recipe="joint, inherited",
                    links=links,
                    graph_ratio=graph_ratio,
                    weight_ratio=weight_ratio,
                )
                for links in ("learned", "random", "all")
            }
            table.add_row(
                f"{graph_ratio:g} / {weight_ratio:g}",
                epochs(found["learned"]),
                *(text(f) for f in found.values()),
            )
        console.print(table)
        table = Table(title="GEB tickets, from scratch (Fig. 1)", title_justify="left")
        for title in ("links removed", "epoch, settled", "learned", "random", "paper"):
            table.add_column(title)
        for ratio, paper in zip(FIG1_RATIOS, FIG1_PAPER.get(name, []), strict=False):
            found = {
                links: pick(
                    graph=name,
                    recipe="GEB, from scratch",
                    links=links,
                    graph_ratio=ratio,
                )
                for links in ("learned", "random")
            }
            table.add_row(
                f"{ratio:g}",
                epochs(found["learned"]),
                *(text(f) for f in found.values()),
                f"{paper:g}",
            )
        console.print(table)


def main() -> None:
    """Run all seeds, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--graphs", nargs="+", default=["cora", "citeseer"])
    parser.add_argument("--root", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy.csv")
    args = parser.parse_args()
    tasks = [(g, s, args.root) for g in args.graphs for s in range(args.seeds)]
    rows: list[dict] = []
    header = f"# {environment()}\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for done, found in enumerate(pool.imap(one_seed, tasks), start=1):
            rows += found
            print(f"{done} of {len(tasks)} seeds done", flush=True)
            with open(args.out, "w", newline="") as file:
                file.write(header)
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    summarise(rows, args.seeds)


if __name__ == "__main__":
    main()
