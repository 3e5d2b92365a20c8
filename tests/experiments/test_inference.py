"""What is timed is the same model four times over."""

import pytest
import torch

from gebt.experiments.inference import _call, _pyg, inference_costs, inference_page
from gebt.models import GCN

pytestmark = pytest.mark.filterwarnings("ignore:the masks did not settle")


@pytest.mark.parametrize("hidden", [[8], [8, 6]], ids=["2", "3"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_pygs_model_gives_the_outputs_of_ours(make_graph, hidden, sparse):
    graph = make_graph(sparse=sparse)
    model = GCN(graph.num_features, hidden, 3)
    with torch.no_grad():
        ours, theirs = _call(model, graph)(), _pyg(model, graph)()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_model_has_a_row_with_what_it_costs(sparse_graph):
    ratios = [(0.2, 0.9), (0.5, 0.9)]
    rows = inference_costs(sparse_graph, hidden=[8], ratios=ratios, repeats=5)
    named = [(row["what"], row["graph_ratio"]) for row in rows]
    assert named == [
        ("PyG, full graph", 0.0),
        ("gebt, dense", 0.0),
        ("masked", 0.2),
        ("compact", 0.2),
        ("masked", 0.5),
        ("compact", 0.5),
    ]
    assert all(set(row) == set(rows[0]) for row in rows)  # one CSV holds them
    for row in rows:
        assert row["ms"] > 0 and row["nodes_per_s"] > 0 and row["peak_mib"] >= 0
    few, fewer = (row for row in rows if row["what"] == "compact")
    assert fewer["macs_executed"] < few["macs_executed"]
    assert few["features"] == fewer["features"] <= sparse_graph.num_features


def test_the_page_says_how_many_times_faster_each_is(sparse_graph):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    rows = inference_costs(
        sparse_graph, hidden=[8], ratios=[(0.5, 0.9)], repeats=5, search_epochs=1
    )
    [section] = inference_page("blocks", rows).sections
    table, figure = section.items
    assert [row[0] for row in table.rows] == [
        "PyG, full graph",
        "gebt, dense",
        "masked, 50%",
        "compact, 50%",
    ]
    assert table.rows[0][2] == "1.0x" and table.rows[1][3] == "1.00x"
    assert figure.draw() is not None
