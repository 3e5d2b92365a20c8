"""Nodes that nobody knew in training: test nodes and their links come at the end."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from gebt.experiments.methods import Outcome, Setting
from gebt.experiments.rows import VERDICTS, Items, levels_of, shares
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.graph import Graph, Split
from gebt.learn.student import student_of, train_student
from gebt.learn.training import evaluate, train
from gebt.report.comparison import Row, against, mean_of, percent, pick
from gebt.report.figures import Line, Panel, curves
from gebt.report.page import Figure, tabulated
from gebt.sparse import Pattern, SparseMatrix

CRITERIA = ("voi", "expected-gradient", "low-degree", "k-neighbour", "forest", "random")
CHOSEN = "voi", "expected-gradient"
"""Between these validation decides."""
LINKS = (0.4, 0.8)
WEIGHTS = 0.9
_CONTROLS = "all links", "no links"
_LONGER = 2  # than its recipe says a dense model is trained
_BY_VALIDATION = "the better of " + " and ".join(CHOSEN)


def without_test_nodes(graph: Graph) -> Graph:
    """The graph on the other nodes; what is left of nodes and links is numbered anew.

    Raises:
        ValueError: if the test nodes are not known, or are all that there are.
    """
    if not isinstance(graph.split, Split) or not graph.split.test.numel():
        raise ValueError(f"the graph {graph.name!r} has no test nodes to leave out.")
    device, test = graph.link.device, graph.split.test
    keep = torch.ones(graph.num_nodes, dtype=torch.bool, device=device)
    keep.index_fill_(0, test, False)
    nodes = keep.nonzero().squeeze(1)
    place = keep.cumsum(0) - 1
    pattern, value = graph.adjacency.pattern, graph.adjacency.value
    row, col = pattern.row.long(), pattern.col.long()
    stays = (keep[row] & keep[col]).nonzero().squeeze(1)
    if not stays.numel():
        raise ValueError(
            f"without its test nodes the graph {graph.name!r} has no links to learn on."
        )
    n, weight = nodes.numel(), graph.adjacency.weight
    old, link = graph.link[stays].unique(return_inverse=True)
    parts = {
        part: place[index[keep[index]]] for part, index in vars(graph.split).items()
    }
    x = graph.x
    return replace(
        graph,
        x=x.rows(nodes) if isinstance(x, SparseMatrix) else x[nodes],
        adjacency=SparseMatrix(
            Pattern.from_sorted(place[row[stays]], place[col[stays]], (n, n)),
            value[stays],
            None if weight is None else weight[stays],
        ),
        link=link,
        num_links=old.numel(),
        y=None if graph.y is None else graph.y[nodes],
        split=Split(**parts),
        order=None,
    )


def inductive(setting: Setting) -> Iterator[Outcome]:
    """A student that never saw test nodes, on the links that its tickets find for them.

    A dense model and its student learn on the graph without test nodes. By each
    criterion a ticket is drawn there, and prunes the full graph by `Ticket.links_for`.
    Validation scores are those on the graph without test nodes, with the ticket's own
    links. With no links to remove, the dense model alone, with all links.
    """
    graph, task, seed = setting.graph, setting.task, setting.seed
    seen = without_test_nodes(graph)
    start = time.process_time()
    dense = setting.model()
    fit = setting.recipe.fit
    fit = replace(fit, epochs=_LONGER * fit.epochs)
    val = train(dense, seen, fit=fit, seed=seed, task=task).val
    if not setting.graph_ratio:
        yield _outcome("all links", dense, graph, val, start, (seen, fit.epochs))
        return
    with torch.no_grad():
        answers = dense(seen.x, seen.adjacency)
    model = setting.model()
    model.load_state_dict(dense.state_dict())
    shorter = student_of(setting.recipe.fit)
    how: Any = {"weight_ratio": setting.weight_ratio, "scope": setting.recipe.scope}
    how |= {"fit": shorter, "seed": seed, "task": task}
    masks = train_student(model, seen, answers, **how).masks
    spent = seen, fit.epochs + shorter.epochs
    trained = time.process_time() - start
    none = torch.zeros(graph.num_links, dtype=torch.bool, device=graph.link.device)
    fewer = torch.zeros(seen.num_links, dtype=torch.bool, device=graph.link.device)
    found = dict(zip(_CONTROLS, [(~none, ~fewer), (none, fewer)], strict=True))
    for links in (*CRITERIA, *found):
        start = time.process_time() - trained  # as if it had been alone
        if links in found:
            full, own = found[links]
        else:
            options: Any = {"weight_ratio": 0.0, "update_weights": False, "keep": masks}
            ticket = setting.search(model, graph=seen, criterion=links, **options)
            full, own = ticket.links_for(graph), ticket.link_mask
        val = evaluate(model, seen.keep_links(own), "val", task=task)
        yield _outcome(links, model, graph.keep_links(full), val, start, spent)


def _outcome(
    links: str,
    model: nn.Module,
    graph: Graph,
    val: float,
    start: float,
    spent: tuple[Graph, int],
) -> Outcome:
    seconds = time.process_time() - start
    return Outcome(links, model, graph, val, 0, 0, seconds, rounds=(spent,))


def _jobs(dataset: str, seed: int) -> list[Job]:
    ratios = [(0.0, 0.0), *((share, WEIGHTS) for share in LINKS)]
    return [Job(dataset, "gcn", "inductive", *both, seed) for both in ratios]


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, graph_ratio=0.0)
    known = [share for share in LINKS if pick(rows, graph_ratio=share)]
    found = {share: _by_links(pick(rows, graph_ratio=share)) for share in known}
    table = []
    for name in (_BY_VALIDATION, *CRITERIA, *_CONTROLS):
        cells = {"links": name}
        for share, by in found.items():
            both = shares(share, WEIGHTS)
            cells[both] = mean_of(by[name])
            cells[f"{both}: - dense"] = against(by[name], dense)
            if name != "random":
                cells[f"{both}: - random"] = against(by[name], by["random"])
        table.append(cells)
    if not found:
        return
    yield from tabulated(
        f"{graph}: test nodes and their links absent until the end; dense "
        f"{mean_of(dense)}",
        table,
        "Links / weights removed. The rows share a student and differ in the links. "
        f"Dense: its teacher, with all links and weights. {VERDICTS}",
    )
    lines = [
        Line(
            name,
            [100 * share for share in known],
            [levels_of(by)[name] for by in found.values()],
        )
        for name in CRITERIA
        if all(by[name] for by in found.values())
    ]
    last = found[known[-1]]
    levels = levels_of({"dense": dense, **{name: last[name] for name in _CONTROLS}})
    yield Figure(
        f"inductive-{graph}",
        f"{graph}: test score of a student on the links that tickets find for nodes "
        f"which nobody knew, mean; {percent(WEIGHTS)} of its weights removed",
        partial(
            curves, [Panel(graph, lines, levels)], "links removed, %", "test score, %"
        ),
    )


def _by_links(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each criterion, of the controls, and of what validation chooses."""
    found = {name: pick(rows, links=name) for name in (*CRITERIA, *_CONTROLS)}
    best: dict[str, Row] = {}
    for row in (row for name in CHOSEN for row in found[name]):
        known = best.setdefault(row["seed"], row)
        if float(row["val"] or "nan") > float(known["val"] or "nan"):
            best[row["seed"]] = row
    return found | {_BY_VALIDATION: [*best.values()]}


register(
    Experiment(
        "inductive",
        "tickets for nodes that training never saw",
        "A dense GCN (200 epochs) and its student (140) learn without the test nodes "
        "and without their links. Then these come, the tickets' criteria choose links "
        "of the full graph, and nothing is retrained. Epochs and criteria are chosen "
        "on validation nodes; nothing is chosen on test.",
        _jobs,
        _page,
        inductive,
    )
)
