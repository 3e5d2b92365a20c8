"""Forecasts from smaller graphs, against the graph itself."""

import json
import sys

import pytest
from helpers import run_python
from torch import Tensor

from gebt._registry import MODELS
from gebt.datasets.sizes import Size
from gebt.experiments.plan import KINDS, _drawn, _switching_at, step_of

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells how much memory was held"
)


# In a process of its own: what earlier tests have left in this one is counted, too.
_FORECASTS = """
import json, torch
from gebt._registry import MODELS
from gebt.datasets.sizes import Size
from gebt.deploy.cost import peak_memory
from gebt.experiments import plan
size, recipe = Size(64_000, 750_000, 64), MODELS.find("gcn").changed(hidden=64)
exact = plan.forecast(size, recipe, seconds=1.0)
plan._give_back()
with peak_memory(torch.device("cpu")) as now:  # after all libraries were loaded
    pass
plan._LINKS = 375_000
told = plan.forecast(size, recipe, seconds=1.0)
found = {"links": [exact.links, told.links], "before": now[0]}
print(json.dumps(found | {"exact": exact.mib, "told": told.mib, "s": told.seconds}))
"""


@needs_linux
@pytest.mark.slow
def test_a_smaller_graph_tells_the_memory_of_a_larger_one():
    found = json.loads(run_python(_FORECASTS))
    assert found["links"] == [750_000, 375_000]
    # Both epochs at once: of what the C library has in use, a tenth is chance.
    grown, wrong = 0.0, 0.0
    for kind in KINDS[1:]:
        grown += found["exact"][kind] - found["before"]
        wrong += found["told"][kind] - found["exact"][kind]
        assert found["s"][kind] > 0
    assert grown > 400, "the graph must be seen beside all else"
    assert abs(wrong) < 0.35 * grown, found
    assert found["told"]["plain epoch"] < found["told"]["search epoch"]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("stored", [None, 9_000])
def test_the_drawn_graph_has_the_shape_that_was_asked_for(scale, stored):
    size = Size(1_000, 6_000, 50, stored, train=80)
    graph = _drawn(size, scale)
    assert (graph.num_nodes, graph.num_links) == (1_000 / scale, 6_000 / scale)
    assert graph.num_features == 50 and graph.split.train.numel() == 80 / scale
    if stored is None:
        assert isinstance(graph.x, Tensor)
    else:
        assert graph.x.pattern.nnz == stored / scale
    for kind in KINDS:
        step_of(kind, graph, MODELS.find("gcn"))()


def test_a_graph_that_would_have_too_few_nodes_gets_them():
    graph = _drawn(Size(1_000, 400_000, 4), 20.0)  # 50 nodes have 1,225 links at most
    assert graph.num_links == 20_000


def test_methods_switch_in_proportion_and_only_inside():
    propagate = sys.modules["gebt.kernels.propagate"]
    before = propagate._LARGE
    with pytest.raises(RuntimeError), _switching_at(10.0):
        assert propagate._LARGE == before // 10
        raise RuntimeError
    assert propagate._LARGE == before
