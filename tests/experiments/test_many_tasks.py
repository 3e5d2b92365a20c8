"""Task after task: every way's rows, what is forgotten and what is not, the page."""

import pytest

from gebt._registry import EXPERIMENTS, MODELS
from gebt.experiments.many_tasks import (
    ADAPTED,
    ALONE,
    TUNED,
    WAYS,
    class_tasks,
    many_tasks,
    number_of_tasks,
)
from gebt.experiments.methods import Setting
from gebt.experiments.runner import KEY
from gebt.learn.tasks import NodeClassification
from gebt.report.page import Figure, Table


@pytest.mark.parametrize(
    ("classes", "tasks"), [(4, 2), (5, 2), (6, 3), (7, 3), (15, 3), (20, 4), (40, 8)]
)
def test_tasks_have_about_five_classes(classes, tasks):
    assert number_of_tasks(classes) == tasks


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="3 classes are too few for two tasks"):
        number_of_tasks(3)


def test_every_way_has_a_row_for_each_later_task_and_only_tuning_forgets(make_graph):
    graph = make_graph(nodes=180, classes=6)
    recipe = MODELS["gcn"].changed(epochs=30)
    setting = Setting(graph, NodeClassification(), recipe, 0.2, 0.5, seed=1)
    rows = list(many_tasks(setting))
    places = {way: [r["task"] for r in rows if r["way"] == way] for way in WAYS}
    assert places == {**dict.fromkeys(WAYS, [2, 3]), TUNED: [1, 2, 3]}
    for row in rows:
        if row["way"] != TUNED or row["task"] == 3:
            assert row["at_end"] == row["test"]
    changed = [row["at_end"] - row["test"] for row in rows if row["way"] == TUNED]
    assert min(changed) < 0
    size = {r["way"]: r["bytes"] for r in rows}
    head = 4 * (16 * 2 + 2)
    assert size[TUNED] == head and size[ALONE] == head + 4 * (24 * 16 + 16)
    assert all(head <= size[way] < size[ALONE] for way in ADAPTED)
    assert len(class_tasks(setting)) == 3


def test_the_page_compares_the_ways():
    experiment = EXPERIMENTS["ksm"]
    rows = []
    for seed in range(3):
        [job] = experiment.jobs("toy", seed)
        head = {key: str(v) for key, v in zip(KEY, job.key, strict=True)}
        for n, way in enumerate(WAYS):
            for task in (1, 2, 3):
                if task == 1 and way != TUNED:
                    continue
                test = 50 + 2 * n + task + seed
                at_end = test - 10 * (way == TUNED) * (3 - task)
                row = {"way": way, "task": str(task), "test": str(test)}
                row |= {"at_end": str(at_end), "bytes": "1200", "cpu_seconds": "2.0"}
                rows.append({**head, **row, "val": "1"})
    whole, figure, each = experiment.page("toy", {"tasks": rows})
    assert isinstance(whole, Table) and isinstance(each, Table)
    assert isinstance(figure, Figure) and figure.draw().axes
    cells = {row[0]: dict(zip(whole.header, row, strict=True)) for row in whole.rows}
    assert [*cells] == [*WAYS]
    assert cells[ALONE]["test"].startswith(f"{53.5 + 2 * (len(WAYS) - 1)} ±")
    assert cells[ALONE][f"- {TUNED}"].startswith("+2.0")
    assert cells[TUNED]["earlier tasks at the end"].startswith("-15.0")
    assert cells[ALONE]["earlier tasks at the end"] == "0 exactly"
    assert cells[ALONE]["bytes a task"] == "1,200"
    assert [row[0] for row in each.rows] == ["1", "2", "3"]
    assert each.rows[0][1] == "-" and each.rows[0][-1].startswith("42.0")
