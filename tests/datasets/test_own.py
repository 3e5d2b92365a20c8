"""Graphs by the paths of two tables: names, roots, splits, refusals."""

import gzip

import numpy as np
import pytest
import torch

from gebt import Graph, load
from gebt._registry import check_dataset, parse_table
from gebt.datasets.catalogue import Facts, facts_of, splits_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where ``edges.csv`` and ``nodes.csv.gz`` of 30 named pages are."""
    draw = np.random.default_rng(0)
    low, high = np.triu_indices(30, 1)
    kept = draw.permutation(low.size)[:80]
    lines = [f"p{a},p{b}" for a, b in zip(low[kept], high[kept], strict=True)]
    (tmp_path / "edges.csv").write_text("\n".join(["from,to", *lines, ""]))
    rows = [f"p{i},{x:.3f},{'ab'[i % 2]}" for i, x in enumerate(draw.normal(size=30))]
    text = "\n".join(["page,size,class", *rows, ""])
    (tmp_path / "nodes.csv.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAME = "edges.csv:nodes=nodes.csv.gz,label=class"


def test_a_graph_has_the_name_by_which_it_is_found_again(folder, tmp_path):
    graph = load(NAME)
    assert (graph.name, graph.metric) == (NAME, "accuracy")
    assert (graph.num_nodes, graph.num_links, graph.num_classes) == (30, 80, 2)
    assert load(graph.name).fingerprint() == graph.fingerprint()
    own = load(f"{NAME},metric=AP,directed=yes,split=3")
    assert own.name == f"{NAME},metric=AP,directed=yes,split=3"
    assert own.metric == "AP"
    assert own.adjacency.pattern.nnz == 80
    assert torch.equal(own.split.val, load(NAME, split=3).split.val)
    assert load(NAME, split=3).name == f"{NAME},split=3"
    assert not torch.equal(own.split.val, graph.split.val)


def test_paths_are_from_here_or_from_the_root(folder, tmp_path, monkeypatch):
    fingerprint = load(NAME).fingerprint()
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert load(NAME, tmp_path).fingerprint() == fingerprint
    absolute = f"{tmp_path}/edges.csv:nodes={tmp_path}/nodes.csv.gz,label=class"
    assert load(absolute).fingerprint() == fingerprint
    with pytest.raises(FileNotFoundError, match="no file edges.csv, neither here nor"):
        load(NAME)


@pytest.mark.parametrize(
    "name, path, options",
    [
        ("a/b.parquet", "a/b.parquet", {}),
        ("C:\\x\\e.tsv.gz", "C:\\x\\e.tsv.gz", {}),
        ("e.csv:nodes=n,1.csv,label=b", "e.csv", {"nodes": "n,1.csv", "label": "b"}),
        ("e.csv:label=a b,nodes=n.csv", "e.csv", {"label": "a b", "nodes": "n.csv"}),
    ],
)
def test_a_path_and_its_options_are_told_apart(name, path, options):
    assert parse_table(name) == (path, options)
    assert check_dataset(name) == name
    assert (facts_of(name), splits_of(name)) == (Facts(), 1)


@pytest.mark.parametrize("name", ["cora", "synthetic:N=5", "tolokers:split=3", "e.txt"])
def test_other_names_are_no_tables(name):
    assert parse_table(name) is None


@pytest.mark.parametrize(
    "name, said",
    [
        ("edges.csv", "is an edge list: name the table of its nodes, too"),
        (f"{NAME},labl=x", "'labl=x' of 'edges.csv:.* is no option"),
        (f"{NAME},label=x", "'label=x' of .* given twice"),
        (f"{NAME},metric=auc", "`metric` must be one of 'accuracy', 'ROC-AUC', 'AP'"),
        (f"{NAME},directed=1", "`directed` must be yes or no, got '1'"),
        (f"{NAME},split=x", "`split` must be a whole number, got 'x'"),
        ("edges.csv:nodes=nodes.csv.gz,label=clas", "nodes.csv.gz: .* mean 'class'"),
        ("edges.csv:nodes=edges.csv", "no column of numbers"),
        ("edges.txt", "no dataset 'edges.txt'.* edge list ends in .parquet, .csv"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, name, said):
    with pytest.raises(ValueError, match=said) as error:
        load(name)
    assert "\n" not in str(error.value)


def test_two_answers_to_which_split_are_refused(folder):
    with pytest.raises(ValueError, match="`split` is 2, but the name says 3"):
        load(f"{NAME},split=3", split=2)


def test_an_edge_list_without_labels_is_for_links(folder):
    graph = load("edges.csv:nodes=nodes.csv.gz")
    assert isinstance(graph, Graph) and graph.y is None and graph.split is None
    assert graph.hold_out_links(val=0.1, test=0.1).num_links == 64
