"""GraphLand's layout, from small files of it."""

import json

import numpy as np
import pytest
import torch
from helpers import check_garbled, same_as_pyg

from gebt import load
from gebt.datasets import DATASETS
from gebt.datasets.graphland import read_info

N = 60
BINARY = ["tolokers-2", "city-reviews", "artnet-exp", "web-fraud"]
INFO = """\
dataset_name: small
task: {task}
metric: {metric}
numerical_features_names: [size, age,
  share, 'the share']
fraction_features_names:
- share
- "the share"
categorical_features_names:
  - kind
  - flag
target_name: class
graph_is_directed: {directed}
has_unlabeled_nodes: true
has_nans_in_numerical_features: true
"""


def columns(path, table):
    """Write a table as pandas does, with its index."""
    lines = [",".join(["", *table])]
    for row, cells in enumerate(zip(*table.values(), strict=True)):
        lines.append(",".join([str(row), *map(str, cells)]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def written(tmp_path):
    """A function that writes 60 nodes, some of a file's columns being others."""

    def write(name="tolokers-2", **changed):
        draw = np.random.default_rng(0)
        folder = tmp_path / name / "raw" / name
        folder.mkdir(parents=True, exist_ok=True)
        two = name in BINARY
        task = "binary_classification" if two else "multiclass_classification"
        info = INFO.format(task=task, metric="AP" if two else "accuracy", directed=True)
        (folder / "info.yaml").write_text(changed.pop("info", info))
        size = draw.lognormal(size=N).round(3).astype(str)
        size[[3, 9]] = ""
        features = {
            "size": size,
            "age": draw.integers(1, 9, N),
            "share": draw.random(N).round(2),
            "the share": draw.random(N).round(2),
            "kind": draw.integers(0, 3, N),
            "flag": draw.integers(0, 2, N),
        }
        targets = (np.arange(N) % (2 if two else 3)).astype(str)
        targets[[5, 6]] = ""
        low, high = np.triu_indices(N, 1)
        kept = draw.permutation(low.size)[:150]
        edges = {"source": low[kept], "target": high[kept]}
        edges["source"][0], edges["target"][0] = edges["target"][0], edges["source"][0]
        for at, table in (("features", features), ("targets", {"class": targets})):
            given = {k: v for k, v in changed.items() if k in table}
            columns(folder / f"{at}.csv", {**table, **given})
        lines = [f"{a},{b}" for a, b in zip(*edges.values(), strict=True)]
        lines += changed.get("edges", [])
        (folder / "edgelist.csv").write_text("\n".join(["source,target", *lines, ""]))
        for split in DATASETS[name].named:
            part = draw.permutation(np.arange(N) % 4)
            masks = {p: part == k for k, p in enumerate(("train", "val", "test"))}
            masks |= {k: v for k, v in changed.items() if k in masks}
            columns(folder / f"split_masks_{split}.csv", masks)
        return tmp_path

    return write


@pytest.mark.parametrize("name", [*BINARY, "hm-categories", "web-topics"])
def test_a_graph_is_read_as_pyg_reads_it(written, name):
    pytest.importorskip("pandas", reason="PyG's reader needs pandas")
    pytest.importorskip("yaml", reason="PyG's reader needs PyYAML")
    from torch_geometric.datasets import GraphLandDataset
    from torch_geometric.transforms import ToUndirected

    root = written(name)
    for split in DATASETS[name].named:
        with pytest.warns(UserWarning, match="n_quantiles"):
            data = GraphLandDataset(str(root), name, split)[0]
        data = ToUndirected()(data)
        graph = load(f"{name}:split={split}", root)
        known = ~data.y.isnan()
        assert torch.equal(graph.y[known], data.y[known].long())
        assert (graph.y[~known] == -1).all() and int((~known).sum()) == 2
        data.y = graph.y
        same_as_pyg(graph, data)


def test_a_graph_is_read_by_hand(written):
    root = written()
    graph = load("tolokers-2", root)
    assert (graph.num_nodes, graph.num_links, graph.metric) == (N, 150, "AP")
    # Two by their quantiles, two shares, three kinds, and a flag in one column.
    assert graph.num_features == 8 and graph.num_classes == 2
    x = graph.x if isinstance(graph.x, torch.Tensor) else graph.x.to_dense()
    assert set(x[:, 4:].unique().tolist()) == {0, 1}
    assert (x[:, 4:7].sum(dim=1) == 1).all()
    assert abs(float(x[:, 0].median())) < 0.2 and float(x[:, 0].abs().max()) > 5
    unlabelled = {5, 6}
    for part in vars(graph.split).values():
        assert part.numel() and not unlabelled & set(part.tolist())


def test_the_splits_have_names_of_which_rl_is_the_first(written):
    root = written()
    graph = load("tolokers-2", root)
    parts = {split: load("tolokers-2", root, split=split) for split in ("RL", "RH")}
    assert torch.equal(parts["RL"].split.train, graph.split.train)
    assert not torch.equal(parts["RH"].split.train, graph.split.train)
    assert parts["RH"].name == "tolokers-2:split=RH"
    again = load("tolokers-2:split=RH", root)
    assert torch.equal(again.split.val, parts["RH"].split.val)
    assert again.fingerprint() == graph.fingerprint()
    for split in (0, "THI"):
        said = f"one of RL, RH, TH, .* as tolokers-2:split=TH, got {split!r}"
        with pytest.raises(ValueError, match=said):
            load("tolokers-2", root, split=split)
    with pytest.raises(ValueError, match="one of RL, RH, by the name"):
        load("city-reviews:split=TH", root)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"info": "a: b"}, "targets.csv lacks None|info.yaml names no features"),
        ({"info": INFO.replace("- share", "- shore")}, "features.csv lacks what"),
        ({"info": INFO.replace("class", "klass")}, "targets.csv lacks 'klass'"),
        ({"class": ["x"] * N}, "'class' holds text"),
        ({"class": [""] * N}, "targets.csv has 0 labels for 60 nodes"),
        ({"class": [0.5] * N}, "'class' of targets.csv holds no classes"),
        ({"class": [2] * N}, "'class' of targets.csv holds no classes"),
        ({"kind": [""] * N}, "a category that is no whole number"),
        ({"size": [""] * N}, "a column that is empty throughout"),
        ({"size": ["many"] * N}, "'size' holds text"),
        ({"train": [True] * N}, "parts of split_masks_RL.csv overlap"),
        ({"val": [False] * N}, "parts of split_masks_RL.csv overlap, or one is empty"),
        ({"val": ["maybe"] * N}, "holds something else than True and False"),
        ({"edges": ["0,60"]}, "names node 60, outside"),
        ({"edges": ["0,x"]}, "no two columns of whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_file(written, changed, said):
    root = written(**changed)
    with pytest.raises(ValueError, match=f"tolokers-2 in .* corrupt .*{said}"):
        load("tolokers-2", root)


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("gebt.datasets.graphland.SOURCE", tmp_path.as_uri())
    with pytest.raises(FileNotFoundError, match=r"artnet-exp.zip.*edgelist.csv"):
        load("artnet-exp", tmp_path)


def test_an_info_has_texts_and_lists_of_either_form():
    info = read_info(INFO)
    assert info["numerical_features_names"] == ["size", "age", "share", "the share"]
    assert info["fraction_features_names"] == ["share", "the share"]
    assert info["categorical_features_names"] == ["kind", "flag"]
    assert info["target_name"] == "class"
    assert read_info("a: []\nb: 'c: d'\n# e: f\n")["a"] == []
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    lists = {
        "a": ["x", "y z"],
        "b": [],
        "c": "d",
        "e": [f"name_{i}" for i in range(40)],
    }
    for style in (None, True, False):
        text = yaml.dump(lists, default_flow_style=style)
        if not text.startswith("{"):
            assert read_info(text) == lists, json.dumps(text)


def test_a_garbled_file_is_a_graph_or_one_clear_error(written):
    check_garbled("artnet-exp", written("artnet-exp"))
