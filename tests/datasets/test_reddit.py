"""reddit, from small files of its layout."""

import numpy as np
import pytest
from helpers import check_garbled, same_as_pyg
from scipy.sparse import coo_array, coo_matrix, save_npz

from gebt import load


@pytest.fixture
def written(tmp_path):
    """A function that writes 30 posts, some array of which is another."""

    def write(**changed: np.ndarray):
        raw = tmp_path / "reddit" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(0)
        arrays = {
            "feature": draw.normal(size=(30, 5)),
            "label": np.arange(30) % 3,
            "node_types": 1 + np.arange(30) // 10,
            "node_ids": np.arange(30),
            **changed,
        }
        np.savez(raw / "reddit_data.npz", **arrays)
        low, high = np.triu_indices(30, 1)
        kept = draw.permutation(low.size)[:60]
        ends = np.stack([low[kept], high[kept]])
        row, col = np.concatenate([ends, ends[::-1]], axis=1)
        links = coo_matrix((np.ones(120), (row, col)), (30, 30))
        save_npz(raw / "reddit_graph.npz", links)
        return tmp_path

    return write


def test_the_graph_is_read_as_pyg_reads_it(written):
    from torch_geometric.datasets import Reddit

    root = written()
    graph = load("reddit", root)
    same_as_pyg(graph, Reddit(str(root / "reddit"))[0])
    assert (graph.num_links, graph.metric) == (60, "accuracy")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"label": np.arange(30) / 3}, "label.npy holds float64"),
        ({"label": np.arange(30) % 3 * 2}, "a class without nodes"),
        ({"label": np.arange(29)}, r"labels \(29,\)"),
        ({"node_types": np.ones(30, dtype=int)}, "leaves a part empty"),
        ({"feature": np.full((30, 2), np.nan)}, "holds NaN"),
        ({"feature": np.ones((31, 2))}, r"features \(31, 2\)"),
        ({"feature": np.array([{}])}, "feature.npy is no array"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, changed, said):
    root = written(**changed)
    with pytest.raises(ValueError, match=f"reddit in .* corrupt .*{said}"):
        load("reddit", root)


def test_an_adjacency_of_another_size_or_form_is_refused(written):
    root = written()
    path = root / "reddit" / "raw" / "reddit_graph.npz"
    save_npz(path, coo_array(np.eye(31)))
    with pytest.raises(ValueError, match=r"shape.npy is \[31, 31\] for 30 nodes"):
        load("reddit", root)
    save_npz(path, coo_array(np.eye(30)))
    with pytest.raises(ValueError, match="reddit_graph.npz has no links"):
        load("reddit", root)
    save_npz(path, coo_array(np.eye(30)).tocsr())
    with pytest.raises(ValueError, match="lacks row.npy"):
        load("reddit", root)


def test_a_garbled_file_is_a_graph_or_one_clear_error(written):
    check_garbled("reddit", written())
