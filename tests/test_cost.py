"""gebt.cost: the paper's counts reproduced, the executed ones by hand."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import gebt
from gebt import Graph, SparseMatrix, measure_cost
from gebt.cost import paper_macs, peak_memory, time_calls
from gebt.models import GCN

CPU = torch.device("cpu")


def of_size(nodes, links, features):
    """A graph with that many distinct links; next to no features are set."""
    draw = torch.Generator().manual_seed(0)
    pairs = torch.empty(0, dtype=torch.int64)
    while pairs.numel() < links:
        low, high = torch.randint(nodes, (2, 2 * links), generator=draw).sort(0).values
        pairs = torch.cat([pairs, (low * nodes + high)[low < high]]).unique()
    pairs = pairs[torch.randperm(pairs.numel(), generator=draw)[:links]]
    low, high = pairs // nodes, pairs % nodes
    adjacency = SparseMatrix.from_coo(
        torch.cat([low, high]),
        torch.cat([high, low]),
        torch.ones(2 * links),
        (nodes, nodes),
    )
    pattern = adjacency.pattern
    key = torch.minimum(pattern.row, pattern.col).long() * nodes
    key += torch.maximum(pattern.row, pattern.col)
    link = key.unique(return_inverse=True)[1]
    one = torch.zeros(1, dtype=torch.int64)
    x = SparseMatrix.from_coo(one, one, torch.ones(1), (nodes, features))
    return Graph(x, adjacency, link, links)


@pytest.mark.parametrize(
    "nodes, links, features, classes, millions, digits",
    [
        pytest.param(2708, 5429, 1433, 7, 77.95, 2, id="cora-as-published"),
        pytest.param(2708, 5278, 1433, 7, 77.52, 2, id="cora-as-loaded"),
        pytest.param(3312, 4732, 3703, 6, 231.6, 1, id="citeseer-as-published"),
        pytest.param(19717, 44338, 500, 3, 203.0, 1, id="pubmed-as-published"),
    ],
)
def test_paper_macs_reproduce_the_papers_tables(
    nodes, links, features, classes, millions, digits
):
    graph = of_size(nodes, links, features)
    assert graph.links_kept == links
    macs = paper_macs(GCN(features, 16, classes), graph)
    assert macs == nodes * 16 * (features + classes) + 2 * links * features
    assert round(macs / 1e6, digits) == millions


def test_paper_macs_of_a_ticket_by_formula(graph):
    model = GCN(24, 16, 3)
    ticket = gebt.find_ticket(model, graph, graph_ratio=0.3, weight_ratio=0.8)
    small = ticket.open(model, graph)
    weights = 16 * (24 + 3)
    kept = weights - int(0.8 * weights)
    links = 468 - int(0.3 * 468)
    assert paper_macs(model, small) == 120 * kept + 2 * links * 24


def test_a_model_that_the_paper_does_not_count_has_no_paper_macs(graph):
    class Whole(nn.Module):
        def forward(self, x, adjacency):
            return adjacency @ x

    cost = measure_cost(Whole(), graph, repeats=1)
    assert cost.macs_paper is None
    assert cost.macs_executed == graph.adjacency.pattern.nnz * 24
    assert cost.parameter_bytes == 0


def path(x):
    """0 - 1 - 2 - 3: four nodes, three links, six entries, ten with self-loops."""
    row = torch.tensor([0, 1, 1, 2, 2, 3])
    col = torch.tensor([1, 0, 2, 1, 3, 2])
    adjacency = SparseMatrix.from_coo(row, col, torch.ones(6), (4, 4))
    return Graph(x, adjacency, torch.tensor([0, 0, 1, 1, 2, 2]), 3)


def test_executed_macs_by_hand_where_nothing_is_padded():
    # X W: 4 nodes x 9 features x 16 units; A: 10 entries x 16 columns; twice.
    model = GCN(9, 16, 16)
    cost = measure_cost(model, path(torch.randn(4, 9)), repeats=2)
    first = 4 * 9 * 16 + 10 * 16
    second = 4 * 16 * 16 + 10 * 16
    assert cost.macs_executed == first + second
    # Weights and biases in float32.
    assert cost.parameter_bytes == 4 * (9 * 16 + 16 + 16 * 16 + 16)
    # Row starts of 4 rows and 6 columns, int32.
    assert cost.index_bytes == 4 * (5 + 6)
    assert cost.macs_paper == 4 * (9 * 16 + 16 * 16) + 6 * 9


def test_executed_macs_count_the_padding_of_narrow_layers():
    # 2 units and 3 classes run as 16 columns, 5 features and 2 units as 8.
    cost = measure_cost(GCN(5, 2, 3), path(torch.randn(4, 5)), repeats=1)
    assert cost.macs_executed == 2 * (4 * 8 * 16 + 10 * 16)
    assert cost.macs_paper == 4 * (5 * 2 + 2 * 3) + 6 * 5


def test_executed_macs_of_sparse_features_by_hand():
    # Three stored features, unpadded: 3 x 2; A: 10 x 2; then padded dense layers.
    where = torch.tensor([0, 1, 3])
    x = SparseMatrix.from_coo(where, torch.tensor([4, 0, 4]), torch.ones(3), (4, 5))
    cost = measure_cost(GCN(5, 2, 3), path(x), repeats=1)
    assert cost.macs_executed == (3 * 2 + 10 * 2) + (4 * 8 * 16 + 10 * 16)
    # And row starts and columns of the features.
    assert cost.index_bytes == 4 * (5 + 6) + 4 * (5 + 3)


def test_compaction_lowers_what_is_executed(sparse_graph):
    model = GCN(24, 16, 3)
    dense = measure_cost(model, sparse_graph, repeats=1)
    ticket = gebt.find_ticket(model, sparse_graph, graph_ratio=0.5, weight_ratio=0.95)
    small = ticket.open(model, sparse_graph)
    cost = measure_cost(*gebt.compact(model, small), repeats=1)
    assert cost.macs_executed < dense.macs_executed
    assert cost.parameter_bytes < dense.parameter_bytes
    assert cost.index_bytes < dense.index_bytes


def test_latency_and_memory_are_measured(graph):
    model = GCN(24, 16, 3).train()
    cost = measure_cost(model, graph, repeats=3)
    assert not model.training
    assert 0 < cost.latency_ms < 10_000
    assert math.isfinite(cost.peak_mib) and cost.peak_mib > 50


def test_calls_are_timed_after_five_that_are_not():
    calls = []
    times = time_calls(lambda: calls.append(1), 4, CPU)
    assert len(calls) == 9
    assert len(times) == 4 and min(times) >= 0


def test_peak_memory_sees_an_allocation_that_is_gone_again():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"the system cannot reset its high-water mark: {error}")
    peaks = []
    for size in (0, 200, 0):
        with peak_memory(CPU) as peak:
            block = torch.ones(size, 2**20, dtype=torch.uint8)
            del block
        peaks += peak
    before, during, after = peaks
    assert during - before > 190
    assert during - after > 190


def test_peaks_of_nested_blocks_add_nothing_and_lose_nothing():
    with peak_memory(CPU) as outer:
        block = torch.ones(100 * 2**18)  # 100 MiB
        del block
        with peak_memory(CPU) as inner:
            pass
    assert outer[0] > inner[0] + 80
