"""One ticket for many tasks: soft masks over weights that never change."""

import statistics
from collections.abc import Sequence

from gebt.experiments.many_tasks import ALONE, BITS, PROBE, TUNED, WAYS
from gebt.experiments.rows import VERDICTS, Items, point, scattered
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.report.comparison import Row, against, mean_of, pick, scores, spread
from gebt.report.page import tabulated

GRAPH_RATIO, WEIGHT_RATIO = 0.2, 0.5


def _jobs(dataset: str, seed: int) -> list[Job]:
    return [Job(dataset, "gcn", "tasks", GRAPH_RATIO, WEIGHT_RATIO, seed)]


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("tasks", [])
    later = {way: [r for r in pick(rows, way=way) if r["task"] != "1"] for way in WAYS}
    means = {way: _by_seed(found) for way, found in later.items() if found}
    tasks = sorted({int(row["task"]) for row in rows})
    table, points = [], []
    for way, mine in means.items():
        row = {"way": way, "test": mean_of(mine)}
        row |= {
            f"- {other}": against(mine, means[other]) if other != way else "-"
            for other in (PROBE, BITS, TUNED, ALONE)
            if other in means
        }
        earlier = [r for r in pick(rows, way=way) if int(r["task"]) < tasks[-1]]
        row["earlier tasks at the end"] = _changes(_by_seed(earlier))
        row["bytes a task"] = f"{_mean(mine, 'bytes'):,.0f}"
        row["CPU s a task"] = mean_of(mine, "cpu_seconds")
        table.append(row)
        points.append(point(way, _mean(mine, "bytes") / 1000, mine))
    yield from tabulated(
        f"{graph}: {len(tasks)} tasks, the mean of all but the first, the ticket's",
        table,
        "Earlier tasks at the end: what their scores have changed by since they were "
        f"learned, all but the last. {VERDICTS}",
    )
    yield from scattered(
        "ksm", graph, "what is stored of a task", points, "kilobytes a task"
    )
    each: list[dict[str, str]] = []
    for task in tasks:
        at = {way: pick(rows, way=way, task=task) for way in WAYS}
        cells = {way: mean_of(found) for way, found in at.items()}
        ended = mean_of(at[TUNED], "at_end")
        each.append({"task": str(task), **cells, f"{TUNED}, at the end": ended})
    yield from tabulated(f"{graph}: task by task, test when learned", each)


def _by_seed(rows: Sequence[Row]) -> list[Row]:
    """One row for each seed: the means over its tasks."""
    found: list[Row] = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        mine = pick(rows, seed=seed)
        columns = ("test", "at_end", "bytes", "cpu_seconds")
        means = {c: statistics.fmean(float(row[c]) for row in mine) for c in columns}
        change = means["at_end"] - means["test"]
        found.append({"seed": seed, **means, "change": change})
    return found


def _changes(rows: Sequence[Row]) -> str:
    values = list(scores(rows, "change").values())
    if any(values):
        return spread(values)
    return "0 exactly" if values else "-"


def _mean(rows: Sequence[Row], column: str) -> float:
    return statistics.fmean(scores(rows, column).values())


register(
    Experiment(
        "ksm",
        "one ticket, many tasks: soft masks over weights that never change",
        "The classes are dealt to tasks, another deal for each seed. A GCN's ticket, "
        "20% of the links and 50% of the weights removed, is drawn and trained on the "
        "first task; each later task is learned over it. Soft masks: a factor for each "
        "input of a weight and each of 8 groups of links; no links: without these; of "
        "outputs: for each output of a weight instead. Binary masks (Piggyback): a bit "
        "for each weight. Linear probe: the head alone. All of these train a head of "
        "the task's own and leave the weights as they are. Fine-tuning trains all on, "
        "task after task, each with its own head. Alone: a dense model of the task's "
        "own. Test score at the best validation epoch; nothing is chosen on test.",
        _jobs,
        _page,
    )
)
