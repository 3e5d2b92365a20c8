"""Units that leave: three ways to as narrow a model, and their page."""

import pytest

from gebt._registry import EXPERIMENTS
from gebt.experiments.methods import Setting
from gebt.experiments.runner import KEY, Job
from gebt.experiments.studies import DEEP, VARIANTS, units
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import evaluate
from gebt.report.page import Figure, Table

TASK = NodeClassification()


@pytest.fixture
def setting(graph):
    recipe = VARIANTS[DEEP].changed(epochs=3, hidden=8)
    return Setting(graph, TASK, recipe, 0.0, 0.75, seed=1, quick=True)


def test_all_three_are_as_narrow_and_trained(setting, graph):
    found = list(units(setting))
    kinds = ["largest units", "random units", "from scratch"]
    assert [outcome.links for outcome in found] == kinds
    for outcome in found:
        assert [layer.width for layer in outcome.model.stacked()[:-1]] == [2] * 5
        assert outcome.val == evaluate(outcome.model, graph, "val", task=TASK)
    assert len({outcome.model.dropout for outcome in found}) == 1
    epochs = [(outcome.full_epochs, outcome.epochs) for outcome in found]
    assert epochs == [(3, 3), (3, 3), (0, 3)]
    assert found[2].seconds < found[0].seconds  # it needs no dense model


def test_the_page_compares_them_with_the_dense_model_and_each_other():
    units = EXPERIMENTS["units"]
    rows = []
    for seed in range(2):
        for job in units.jobs("toy", seed):
            kinds = (
                ["all"] if job.method == "dense" else ["largest units", "random units"]
            )
            for n, links in enumerate(kinds):
                row = {key: str(v) for key, v in zip(KEY, job.key, strict=True)}
                test = 90 + n + seed - 5 * float(job.weight_ratio)
                row |= {"links": links, "test": str(test), "inference_ms": "2.0"}
                rows.append(row | {"dense_ms": "4.0", "cpu_seconds": "3.0"})
    assert isinstance(units.jobs("toy", 0)[0], Job)
    table, figure = units.page("toy", {"runs": rows})
    assert isinstance(table, Table) and isinstance(figure, Figure)
    assert [row[0] for row in table.rows] == ["50%", "50%", "75%", "75%"]
    assert table.rows[0][3].startswith("-2.5") and table.rows[1][4].startswith("-1.0")
    assert table.rows[0][5] == "2.00x"
    assert figure.draw().axes
