"""wikics, from a small file of its layout."""

import json

import numpy as np
import pytest
from helpers import check_garbled, same_as_pyg

from gebt import load


def given() -> dict:
    """What the file of 30 pages holds; one links to itself, two to each other."""
    draw = np.random.default_rng(0)
    part = np.stack([draw.permutation(np.arange(30) % 3) for _ in range(20)])
    part[:, draw.permutation(30)[:10]] = 3  # the test nodes, the same in all
    links = [draw.choice(30, 3, replace=False).tolist() for _ in range(30)]
    links[4], links[5], links[6] = [4, 5], [4], []
    masks = {"train_masks": part == 0, "val_masks": part == 1, "stopping_masks": part}
    masks["stopping_masks"] = part == 2
    return {
        "features": draw.normal(size=(30, 6)).tolist(),
        "labels": (np.arange(30) % 4).tolist(),
        "links": links,
        **{name: mask.tolist() for name, mask in masks.items()},
        "test_mask": (part[0] == 3).astype(int).tolist(),
    }


@pytest.fixture
def written(tmp_path):
    def write(**changed):
        path = tmp_path / "wikics" / "raw" / "data.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**given(), **changed}))
        return tmp_path

    return write


def test_every_split_is_read_as_pyg_reads_it(written):
    from torch_geometric.datasets import WikiCS

    root = written()
    data = WikiCS(str(root / "wikics"), is_undirected=True)[0]
    for split in range(20):
        same_as_pyg(load("wikics", root, split=split), data, split)
    assert load("wikics", root).metric == "accuracy"


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("labels", [0] * 29, r"features is \(30, 6\) for 29 nodes"),
        ("labels", [0, 2] * 15, "a class without nodes"),
        ("labels", ["x"] * 30, "labels holds <U1"),
        ("labels", [2**70] * 30, "labels holds object"),
        ("features", [[1.0], [2.0, 3.0]], "inhomogeneous"),
        ("features", [[float("nan")]] * 30, "holds NaN"),
        ("links", [[0]] * 30, None),
        ("links", [[30]] * 30, "names node 30"),
        ("links", [[-1]] * 30, "names node -1"),
        ("links", [["1"]] * 30, "something that is not an integer"),
        ("links", [[i] for i in range(30)], "links has no links"),
        ("links", [0] * 30, "no list of neighbours for each of 30"),
        ("train_masks", [[True] * 30] * 20, "overlap"),
        ("train_masks", [[True] * 30] * 19, "not 20"),
        ("val_masks", [[2] * 30] * 20, "truth value 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, name, value, said):
    root = written(**{name: value})
    if said is None:
        assert load("wikics", root).num_links == 29
        return
    with pytest.raises(ValueError, match=f"wikics in .* corrupt .*{said}"):
        load("wikics", root)


@pytest.mark.parametrize("text", ["", "[]", '{"labels": [0]}', "[" * 100_000, "{" * 9])
def test_what_is_no_such_file_is_one_clear_error(written, text):
    root = written()
    (root / "wikics" / "raw" / "data.json").write_text(text)
    with pytest.raises(ValueError, match="wikics in .* truncated or corrupt"):
        load("wikics", root)


def test_a_garbled_file_is_a_graph_or_one_clear_error(written):
    check_garbled("wikics", written())
