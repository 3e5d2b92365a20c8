"""The four graphs of Shchur et al. 2018, from small files of their layout."""

import numpy as np
import pytest
import torch
from helpers import check_garbled, same_as_pyg
from scipy.sparse import random_array

from gebt import SparseMatrix, load
from gebt.datasets import DATASETS

FILES = {
    "amazon-computers": "Computers/raw/amazon_electronics_computers.npz",
    "amazon-photo": "Photo/raw/amazon_electronics_photo.npz",
    "coauthor-cs": "CS/raw/ms_academic_cs.npz",
    "coauthor-physics": "Physics/raw/ms_academic_phy.npz",
}


def arrays(seed: int = 0, density: float = 0.1) -> dict[str, np.ndarray]:
    """40 nodes, 12 features, 3 classes; a directed adjacency with a self-loop."""
    draw = np.random.default_rng(seed)
    links = random_array((40, 40), density=0.1, format="lil", rng=draw)
    links[3, 3] = 1
    made = {"labels": draw.permutation(np.arange(40) % 3)}
    features = random_array((40, 12), density=density, format="csr", rng=draw)
    for name, matrix in {"adj": links.tocsr(), "attr": features}.items():
        for part in ("data", "indices", "indptr", "shape"):
            value = np.array(getattr(matrix, part))
            made[f"{name}_{part}"] = (
                value.astype(np.float32) if part == "data" else value
            )
    return made


@pytest.fixture
def written(tmp_path):
    def write(name: str = "amazon-photo", **changed: np.ndarray):
        path = tmp_path / FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{**arrays(), **changed})
        return tmp_path

    return write


@pytest.mark.parametrize("name", FILES)
def test_a_graph_is_read_as_pyg_reads_it(written, name):
    from torch_geometric.datasets import Amazon, Coauthor
    from torch_geometric.transforms import NormalizeFeatures

    assert DATASETS[name].files == (FILES[name],)
    root = written(name)
    kind, _, which = name.partition("-")
    reader = Amazon if kind == "amazon" else Coauthor
    data = reader(str(root), which, transform=NormalizeFeatures())[0]
    graph = load(name, root)
    assert isinstance(graph.x, SparseMatrix)
    for part in ("train", "val", "test"):  # which PyG has not
        data[f"{part}_mask"] = torch.zeros(40, dtype=torch.bool)
        data[f"{part}_mask"][getattr(graph.split, part)] = True
    same_as_pyg(graph, data)
    assert (graph.metric, graph.name) == ("accuracy", name)


def test_the_splits_are_stratified_and_those_of_their_numbers(written):
    root = written()
    seen = set()
    for number in range(10):
        graph = load("amazon-photo", root, split=number)
        parts = vars(graph.split)
        assert torch.cat([*parts.values()]).sort().values.tolist() == [*range(40)]
        # Of 14, 13 and 13: 60, 20 and 20 percent, to the nearest node.
        assert graph.y[parts["train"]].bincount().tolist() == [8, 8, 8]
        assert graph.y[parts["val"]].bincount().tolist() == [3, 2, 2]
        again = load(f"amazon-photo:split={number}", root)
        assert torch.equal(again.split.val, parts["val"])
        seen.add(tuple(parts["train"].tolist()))
    assert len(seen) == 10


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("labels", np.arange(40) - 1, "names class -1"),
        ("labels", np.arange(39) % 3, r"labels.npy holds int64 \(39,\) for 40 nodes"),
        ("labels", np.arange(40) % 3 * 2, "a class without nodes"),
        ("labels", np.arange(40) / 3, "labels.npy holds float64"),
        ("adj_shape", np.array([40, 41]), r"adj_shape.npy is \(40, 41\) for 40 nodes"),
        ("adj_shape", np.array([40, 2**40]), "adj_shape.npy claims 40 x"),
        ("adj_shape", np.array([40]), r"adj_shape.npy holds int64 \(1,\)"),
        ("adj_indices", np.full(161, 40), "names column 40|indptr ends"),
        ("attr_indptr", np.arange(40), "indptr does not ascend"),
        ("attr_data", np.array([{}]), "no array of numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, name, value, said):
    root = written(**{name: value})
    with pytest.raises(ValueError, match=f"Photo in .* corrupt .*{said}"):
        load("amazon-photo", root)


def test_a_missing_file_is_named_with_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr("gebt.datasets.shchur.SOURCE", tmp_path.as_uri())
    with pytest.raises(FileNotFoundError, match="ms_academic_cs.npz"):
        load("coauthor-cs", tmp_path)


def test_a_garbled_file_is_a_graph_or_one_clear_error(written):
    check_garbled("amazon-photo", written())
