"""What links cost a student, by every criterion and with every control."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import nan
from statistics import fmean

from gebt.experiments.rows import BEST, VERDICTS, Items, share_line
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.studies import (
    ALL_LINKS,
    ASKED,
    CRITERIA,
    LEARNED,
    NO_LINKS,
    OTHERS,
    OWN_PATH,
    PERMUTED,
    SHARES,
)
from gebt.report.comparison import (
    Row,
    against,
    best_by_validation,
    mean_of,
    percent,
    pick,
    scores,
)
from gebt.report.figures import Panel, curves
from gebt.report.page import Figure, tabulated

MODELS = ("gcn", OWN_PATH, "gcn-res")
"""Compared on every graph, for none is best on all."""
OTHER_MODELS = ("gat", "gin", "sage")
_THEIR_GRAPHS = ("cora", "citeseer")  # on which their recipes were chosen
_THEIR_SEEDS = 3
_WEIGHTS, _MOST = 0.9, 0.95
_ROWS = (*CRITERIA, LEARNED, PERMUTED, ASKED, OTHERS, NO_LINKS)
_BLIND = {
    "voi, expected-gradient": ("voi", "expected-gradient"),
    "all but grow": tuple(name for name in CRITERIA if name != "grow"),
    "all": CRITERIA,
}
"""Of what the best is chosen on validation."""
_LINKS = "links by"


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [Job(dataset, m, "student", 0.0, _WEIGHTS, seed) for m in MODELS]
    found += [Job(dataset, m, "student", _MOST, _MOST, seed) for m in MODELS[:2]]
    if dataset in _THEIR_GRAPHS and seed < _THEIR_SEEDS:
        for model in OTHER_MODELS:
            found.append(Job(dataset, model, "student", 0.4, _WEIGHTS, seed))
    return found


def _page(graph: str, tables: Tables) -> Items:
    every = tables.get("links", [])
    rows = pick(every, graph_ratio=0.0)
    dense = pick(tables.get("runs", []), graph_ratio=0.0, links="dense")
    yield from tabulated(
        f"{graph}: the best by validation, criterion and model, for each seed",
        [
            _blind(rows, dense, share, among)
            for share in SHARES
            for among in _BLIND
            if pick(rows, share=share)
        ],
        "Dense is chosen by validation among the models, too. Random: as many random "
        f"links of the same students. {VERDICTS}",
    )
    panels = []
    for model in MODELS:
        mine = pick(rows, model=model)
        if not mine:
            continue
        called = f"{graph}, {model}"
        whole = pick(mine, links=ALL_LINKS)
        yield from tabulated(
            f"{called}: test score less the dense model's, by links removed",
            [_row(mine, links) for links in _ROWS],
            f"Dense {mean_of(whole, 'dense')}; with all links "
            f"{against(whole, whole, 'dense')}. CPU s: of choosing links, the mean "
            f"over the shares. {VERDICTS}",
        )
        yield from tabulated(
            f"{called}: less random links of the same student",
            [
                {_LINKS: _called(links)}
                | {
                    percent(share): against(
                        pick(mine, links=links, share=share),
                        pick(mine, links="random", share=share),
                    )
                    for share in SHARES
                }
                for links in (*CRITERIA, LEARNED, PERMUTED)
                if links != "random"
            ],
        )
        lines = [share_line(n, pick(mine, links=n)) for n in (*CRITERIA, LEARNED)]
        levels = {"dense": _mean(whole, "dense"), ALL_LINKS: _mean(whole)}
        levels[NO_LINKS] = _mean(pick(mine, links=NO_LINKS))
        panels.append(Panel(model, lines, levels))
    if panels:
        yield Figure(
            f"frontier-{graph}",
            f"{graph}: test score of a student with ever fewer links, nothing "
            f"retrained, mean over seeds; {percent(_WEIGHTS)} of its weights removed",
            partial(curves, panels, "links removed, %", "test score, %"),
        )
    yield from tabulated(
        f"{graph}: {percent(_MOST)} of links, {percent(_MOST)} of weights removed",
        [
            _row(pick(every, weight_ratio=_MOST, model=model), links, model)
            for model in MODELS
            for links in (*CRITERIA, LEARNED, NO_LINKS)
            if pick(every, weight_ratio=_MOST, model=model)
        ],
        "Less the dense model's test score.",
    )
    yield from tabulated(
        f"{graph}: other models, by their own recipes",
        [
            _row(pick(every, graph_ratio=0.4, model=model), links, model)
            for model in OTHER_MODELS
            for links in (ALL_LINKS, *CRITERIA, LEARNED, NO_LINKS)
            if pick(every, graph_ratio=0.4, model=model)
        ],
        "Less the test score of the model's own dense.",
    )


def _called(links: str) -> str:
    transductive = links in ("grow", ASKED, OTHERS)
    return f"{links} (transductive)" if transductive else links


def _mean(rows: Sequence[Row], column: str = "test") -> float:
    return fmean(scores(rows, column).values()) if rows else nan


def _row(rows: Sequence[Row], links: str, model: str = "") -> dict[str, str]:
    """A criterion's differences to dense, in the columns of the shares."""
    found = pick(rows, links=links)
    cells = {"model": model} if model else {}
    cells[_LINKS] = _called(links)
    for share in dict.fromkeys(row["share"] for row in found):
        mine = pick(found, share=share)
        cells[percent(share)] = against(mine, mine, "dense")
    if links not in (ALL_LINKS, NO_LINKS):
        cells["CPU s"] = f"{_mean(found, 'cpu_seconds'):.3f}"
    return cells


def _blind(
    rows: Sequence[Row], dense: Sequence[Row], share: float, among: str
) -> dict[str, str]:
    """What is best by validation among some criteria, and its differences."""
    known = pick(rows, share=share)
    best = best_by_validation([r for r in known if r["links"] in _BLIND[among]])
    random = [
        row
        for each in best
        for row in pick(known, links="random", model=each["model"], seed=each["seed"])
    ]
    often = Counter(f"{row['links']} on {row['model']}" for row in best)
    [(name, times), *_] = often.most_common(1)
    return {
        "links removed": percent(share),
        "among": among,
        "most often": f"{name} ({times} of {len(best)})",
        "test": mean_of(best),
        "- dense": against(best, best_by_validation(dense)),
        "- gcn's dense": against(best, pick(dense, model="gcn")),
        "- random": against(best, random),
    }


register(
    Experiment(
        "frontier",
        "what links cost a student, by criterion",
        "A dense model (200 epochs), and its student; then nothing is retrained, and "
        "the student is scored on the links of each criterion. Learned: by the "
        "paper's magnitudes, learned for the student's frozen weights, as GEB does. "
        f"{BEST}",
        _jobs,
        _page,
    )
)
