"""Sizes, splits, features, and a folder that is only read."""

import os
import shutil
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

from gebt import SparseMatrix, load
from gebt._registry import TASKS
from gebt.datasets import DATASETS, Facts, find_root, heterophilous, register
from gebt.datasets.planetoid import SHA256
from gebt.learn.tasks import task_for


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_digits_has_its_size(digits):
    assert digits.num_nodes == 1797
    assert digits.num_links == digits.links_kept == 10_071
    assert digits.adjacency.pattern.nnz == 2 * 10_071
    assert (digits.num_features, digits.num_classes) == (64, 10)
    assert digits.name == "digits"
    assert isinstance(digits.x, torch.Tensor)
    assert float(digits.x.min()) == 0 and float(digits.x.max()) == 1


def test_digits_splits_into_disjoint_parts(digits):
    split = digits.split
    assert [p.numel() for p in (split.train, split.val, split.test)] == [200, 500, 1000]
    nodes = torch.cat([split.train, split.val, split.test])
    assert nodes.unique().numel() == 1700
    assert digits.y[split.train].bincount().tolist() == [20] * 10


def test_digits_is_the_same_at_every_load_and_on_every_machine(digits):
    again = load("DIGITS")
    assert again.fingerprint() == digits.fingerprint()
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(again.split, part), getattr(digits.split, part))
    # Integers only, so that rounding elsewhere cannot matter.
    pattern = digits.adjacency.pattern
    assert int(pattern.col.long().sum()) == 18051733
    assert int((pattern.row.long() * pattern.col.long()).sum()) == 17604589704
    assert pattern.col[pattern.row == 0].tolist() == [
        30,
        396,
        464,
        855,
        877,
        1029,
        1167,
        1365,
        1541,
        1697,
    ]
    split = digits.split
    assert [int(p.sum()) for p in (split.train, split.val, split.test)] == [
        176867,
        448561,
        904042,
    ]
    assert split.train[:5].tolist() == [6, 14, 18, 34, 37]


def test_digits_joins_like_to_like(digits):
    pattern = digits.adjacency.pattern
    y = digits.y
    same = y[pattern.row.long()] == y[pattern.col.long()]
    assert float(same.float().mean()) > 0.95
    degree = pattern.crow.diff()
    assert int(degree.min()) >= 8


def test_digits_needs_no_folder(tmp_path):
    assert load("digits", tmp_path / "nowhere").num_nodes == 1797
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "name, nodes, links, features, classes",
    [("cora", 2708, 5278, 1433, 7), ("citeseer", 3327, 4552, 3703, 6)],
)
def test_planetoid_graphs_have_their_size(
    planetoid_root, name, nodes, links, features, classes
):
    graph = load(name, planetoid_root)
    assert (graph.num_nodes, graph.num_links) == (nodes, links)
    assert (graph.num_features, graph.num_classes) == (features, classes)
    assert graph.name == name
    split = graph.split
    parts = [part.numel() for part in (split.train, split.val, split.test)]
    assert parts == [20 * classes, 500, 1000]
    assert graph.y[split.train].bincount().tolist() == [20] * classes


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_planetoid_features_are_sparse_and_row_normalised(planetoid_root, name):
    x = load(name, planetoid_root).x
    assert isinstance(x, SparseMatrix)
    assert (x.value > 0).all()
    total = x.row_sum_of_magnitudes()
    empty = x.pattern.crow.diff() == 0
    assert (total[empty] == 0).all()
    torch.testing.assert_close(total[~empty], torch.ones_like(total[~empty]))


@pytest.mark.parametrize("name, title", [("cora", "Cora"), ("citeseer", "CiteSeer")])
def test_a_graph_equals_pygs_own(planetoid_root, tmp_path, name, title):
    from torch_geometric.datasets import Planetoid
    from torch_geometric.transforms import NormalizeFeatures

    shutil.copytree(planetoid_root / title / "raw", tmp_path / title / "raw")
    data = Planetoid(str(tmp_path), title, transform=NormalizeFeatures())[0]
    graph = load(name, planetoid_root)
    assert torch.equal(graph.y, data.y)
    torch.testing.assert_close(graph.x.to_dense(), data.x)
    proper = data.edge_index[:, data.edge_index[0] != data.edge_index[1]]
    peer = torch.zeros(graph.num_nodes, graph.num_nodes)
    peer[proper[1], proper[0]] = 1
    assert torch.equal(graph.adjacency.to_dense(), peer)
    for part in ("train", "val", "test"):
        nodes = data[f"{part}_mask"].nonzero().squeeze(1)
        assert torch.equal(getattr(graph.split, part), nodes)


def listing(root: Path):
    return sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*"))


def test_a_read_only_folder_works_and_nothing_is_written(planetoid_root, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(planetoid_root / "Cora" / "raw", root / "Cora" / "raw")
    folders = [root, root / "Cora", root / "Cora" / "raw"]
    before = listing(root)
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert load("cora", root).num_nodes == 2708
        assert DATASETS["cora"].on_disk(root)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert listing(root) == before


def test_what_is_on_disk_is_known(tmp_path):
    assert DATASETS["digits"].on_disk(tmp_path)
    assert not DATASETS["cora"].on_disk(tmp_path)
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for file in DATASETS["cora"].files:
        assert not DATASETS["cora"].on_disk(tmp_path)
        (tmp_path / file).touch()
    assert DATASETS["cora"].on_disk(tmp_path)
    assert len(list(raw.iterdir())) == 8


def test_files_that_cannot_be_had_are_named(tmp_path):
    # A file where the folder would go: the download stops before any network.
    (tmp_path / "Cora").write_text("in the way")
    with pytest.raises(FileNotFoundError) as error:
        load("cora", tmp_path)
    text = str(error.value)
    assert f"Cora is not in {tmp_path}" in text
    assert "could not be downloaded" in text
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        assert f"Cora/raw/ind.cora.{part}" in text
    assert "of https://github.com/kimiyoung/planetoid/tree/master/data there" in text
    assert "--root, or $GEBT_DATA" in text


def test_only_the_missing_files_are_named(tmp_path, monkeypatch):
    nowhere = (tmp_path / "nowhere").as_uri()
    monkeypatch.setattr("gebt.datasets.planetoid.SOURCE", nowhere)
    raw = tmp_path / "Cora" / "raw"
    raw.mkdir(parents=True)
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph"):
        (raw / f"ind.cora.{part}").touch()
    with pytest.raises(FileNotFoundError) as error:
        load("cora", tmp_path)
    text = str(error.value)
    assert "Cora/raw/ind.cora.test.index. Another folder" in text
    assert "allx" not in text


def test_what_is_missing_is_downloaded(planetoid_root, tmp_path, monkeypatch):
    # A folder in the place of the server.
    source = (planetoid_root / "Cora" / "raw").absolute().as_uri()
    monkeypatch.setattr("gebt.datasets.planetoid.SOURCE", source)
    graph = load("cora", tmp_path)
    assert graph.fingerprint() == load("cora", planetoid_root).fingerprint()
    assert DATASETS["cora"].on_disk(tmp_path)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_download_writes_raw_files_only_and_opens_nothing_of_pygs(
    tolokers_like, tmp_path, monkeypatch
):
    source, _ = tolokers_like
    uri = (source / "tolokers" / "raw").absolute().as_uri()
    monkeypatch.setattr("gebt.datasets.heterophilous.SOURCE", uri)
    processed = tmp_path / "new" / "tolokers" / "processed"
    processed.mkdir(parents=True)
    marker = tmp_path / "ran"
    for name in ("data.pt", "pre_transform.pt", "pre_filter.pt"):
        torch.save(Trap(marker), processed / name)
    before = listing(processed)
    with pytest.raises(FileExistsError):  # the trap works, twice makes an error
        for _ in range(2):
            torch.load(processed / "data.pt", weights_only=False)
    marker.rmdir()
    assert load("tolokers", tmp_path / "new").num_nodes == 12
    assert not marker.exists()
    assert listing(processed) == before
    assert sorted(p.name for p in processed.parent.iterdir()) == ["processed", "raw"]


def test_published_files_are_read_without_a_word(planetoid_root, caplog):
    load("cora", planetoid_root)
    load("citeseer", planetoid_root)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_another_file_than_the_published_is_named(tolokers_like, caplog):
    root, _ = tolokers_like
    load("tolokers", root)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "not the published file: tolokers.npz in" in record.getMessage()


def test_every_checksum_is_one():
    digests = [*heterophilous.SHA256.values(), *" ".join(SHA256.values()).split()]
    assert {len(bytes.fromhex(digest)) for digest in digests} == {32}
    assert set(heterophilous.SHA256) <= set(DATASETS.homes)


def test_what_gebt_offers_says_task_metric_split_and_who_tuned_it():
    for name in DATASETS.homes:
        facts = DATASETS[name].facts
        assert facts.task in TASKS and facts.metric and facts.split, name
        assert facts.group != Facts().group, name
        assert (facts.tuned is None) == (facts.tuned_by == ""), name
        assert len(DATASETS[name].about) <= 38, name


@pytest.mark.parametrize("name", ["digits", "imports", "synthetic:N=50,E=90"])
def test_the_metric_that_is_told_is_the_graphs(name):
    facts = DATASETS[name.partition(":")[0]].facts
    graph = load(name)
    task = task_for(graph)
    assert (task.name, task.metric(graph)) == (facts.task, facts.metric)


@pytest.mark.parametrize(
    "name, near", [("croa", "cora"), ("Citeseer2", "citeseer"), ("digit", "digits")]
)
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"no dataset {name!r}.*Did you mean {near!r}"):
        load(name)


@pytest.mark.parametrize(
    "name, near", [("synthetc:N=9", "synthetic"), ("cora:N=9", "cora")]
)
def test_only_synthetic_graphs_take_sizes(name, near):
    with pytest.raises(ValueError, match=f"no dataset {name!r}.*Did you mean {near!r}"):
        load(name)


def test_a_name_like_no_other_suggests_nothing():
    with pytest.raises(ValueError, match="gebt knows digits, imports, cora") as error:
        load("zzzzzz")
    assert "Did you mean" not in str(error.value)


def test_the_root_is_the_argument_then_the_variable_then_data(tmp_path, monkeypatch):
    monkeypatch.setenv("GEBT_DATA", str(tmp_path))
    assert find_root("here") == Path("here")
    assert find_root(Path("here")) == Path("here")
    assert find_root() == tmp_path
    monkeypatch.setenv("GEBT_DATA", "")
    assert find_root() == Path("data")
    monkeypatch.delenv("GEBT_DATA")
    assert find_root() == Path("data")
    assert "GEBT_DATA" not in os.environ


def test_load_reads_the_variable(planetoid_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEBT_DATA", str(planetoid_root.absolute()))
    assert load("Cora").num_nodes == 2708
    assert list(tmp_path.iterdir()) == []


def test_truncated_planetoid_files_are_one_clear_error(planetoid_root, tmp_path):
    shutil.copytree(planetoid_root / "Cora" / "raw", tmp_path / "Cora" / "raw")
    broken = tmp_path / "Cora" / "raw" / "ind.cora.graph"
    broken.write_bytes(broken.read_bytes()[:100])
    message = r"Cora in .* truncated or corrupt \(ind\.cora\.graph .* download again"
    with pytest.raises(ValueError, match=message):
        load("cora", tmp_path)


@pytest.fixture
def tolokers_like(tmp_path):
    """A root with a small file as tolokers' own: 12 nodes, 10 splits."""
    arrays = helpers.tolokers_like()
    raw = tmp_path / "root" / "tolokers" / "raw"
    raw.mkdir(parents=True)
    np.savez(raw / "tolokers.npz", **arrays)
    return tmp_path / "root", arrays


def test_tolokers_is_read_in_place_with_its_first_split(tolokers_like):
    root, arrays = tolokers_like
    before = listing(root)
    folders = [root, root / "tolokers", root / "tolokers" / "raw"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        graph = load("Tolokers", root)
        assert DATASETS["tolokers"].on_disk(root)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert listing(root) == before
    assert graph.name == "tolokers"
    assert torch.equal(graph.x, torch.from_numpy(arrays["node_features"]))
    assert torch.equal(graph.y, torch.from_numpy(arrays["node_labels"]))
    assert graph.num_links == 30
    expected = np.zeros((12, 12), dtype=np.float32)
    expected[tuple(arrays["edges"].T)] = 1
    dense = graph.adjacency.to_dense().numpy()
    assert np.array_equal(dense, np.maximum(expected, expected.T))
    for part in ("train", "val", "test"):
        nodes = np.flatnonzero(arrays[f"{part}_masks"][0])
        assert getattr(graph.split, part).tolist() == nodes.tolist()


@pytest.mark.parametrize("name", ["roman-empire", "amazon-ratings", "questions"])
def test_the_suite_is_read_as_pyg_reads_it(tmp_path, name):
    from torch_geometric.datasets import HeterophilousGraphDataset

    title = name.replace("-", "_")
    raw = tmp_path / title / "raw"
    raw.mkdir(parents=True)
    np.savez(raw / f"{title}.npz", **helpers.tolokers_like())
    data = HeterophilousGraphDataset(str(tmp_path), name)[0]
    for split in range(10):
        graph = load(name, tmp_path, split=split)
        assert graph.metric == DATASETS[name].facts.metric
        helpers.same_as_pyg(graph, data, split)


@pytest.mark.parametrize("name", ["chameleon-filtered", "squirrel-filtered", "actor"])
@pytest.mark.parametrize("masks", [bool, np.int64, np.uint8])
def test_the_older_graphs_masks_may_be_integers(tmp_path, name, masks):
    title = name.replace("-", "_")
    raw = tmp_path / title / "raw"
    raw.mkdir(parents=True)
    arrays = helpers.tolokers_like()
    for part in ("train", "val", "test"):
        arrays[f"{part}_masks"] = arrays[f"{part}_masks"].astype(masks)
    np.savez(raw / f"{title}.npz", **arrays)
    graph = load(name, tmp_path, split=4)
    assert (graph.num_nodes, graph.num_links, graph.metric) == (12, 30, "accuracy")
    nodes = np.flatnonzero(arrays["val_masks"][4])
    assert graph.split.val.tolist() == nodes.tolist()


@pytest.mark.parametrize("split", [0, 1, 9])
def test_each_of_ten_splits_can_be_had_by_number_or_by_name(tolokers_like, split):
    root, arrays = tolokers_like
    graph = load("tolokers", root, split=np.int64(split))
    for part in ("train", "val", "test"):
        nodes = np.flatnonzero(arrays[f"{part}_masks"][split])
        assert getattr(graph.split, part).tolist() == nodes.tolist()
    assert graph.name == f"tolokers:split={split}"
    assert graph.fingerprint() == load("tolokers", root).fingerprint()
    again = load(graph.name.upper().replace("SPLIT", "split"), root)
    assert again.name == graph.name
    assert again.split.train.tolist() == graph.split.train.tolist()


@pytest.mark.parametrize(
    "name, split, said",
    [
        ("tolokers", 10, "one of the 10 of 'tolokers', 0 to 9, got 10"),
        ("tolokers", -1, "0 to 9, got -1"),
        ("tolokers", "3", "0 to 9, got '3'"),
        ("minesweeper:split=10", None, "0 to 9, got 10"),
        ("tolokers:split=1", 2, "`split` is 2, but the name is 'tolokers:split=1'"),
        ("digits", 0, "'digits' has one split only"),
        ("cora:split=1", None, "'cora' has one split only"),
        ("synthetic:N=50", 1, "'synthetic' has one split only"),
        ("crora:split=1", None, "no dataset 'crora'.* Did you mean 'cora'"),
        ("tolokers:split=x", None, "no dataset 'tolokers:split=x'"),
    ],
)
def test_a_split_that_is_not_there_is_one_line(tmp_path, name, split, said):
    with pytest.raises(ValueError, match=said):
        load(name, tmp_path, split=split)


def test_a_file_of_fewer_splits_is_told_of(tolokers_like):
    root, arrays = tolokers_like
    few = {k: v[:2] if k.endswith("_masks") else v for k, v in arrays.items()}
    np.savez(root / "tolokers" / "raw" / "tolokers.npz", **few)
    assert load("tolokers", root, split=1).num_nodes == 12
    with pytest.raises(ValueError, match="has 2 splits, so none of the number 2"):
        load("tolokers", root, split=2)


def test_a_graph_of_ones_own_may_have_splits(own_registries, make_graph):
    asked = []

    @register("mine", about="blocks of mine", splits=3)
    def mine(root, split):
        asked.append(split)
        return make_graph()

    assert [load("mine").name, load("mine:split=2").name] == ["mine", "mine:split=2"]
    assert asked == [0, 2]
    with pytest.raises(ValueError, match="one of the 3 of 'mine', 0 to 2, got 3"):
        load("mine", split=3)


@pytest.mark.parametrize("how", ["cut short", "lacks an array", "holds objects"])
def test_a_corrupt_tolokers_is_one_clear_error(tolokers_like, how):
    root, arrays = tolokers_like
    file = root / "tolokers" / "raw" / "tolokers.npz"
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:500])
    elif how == "lacks an array":
        np.savez(file, **{k: v for k, v in arrays.items() if k != "edges"})
    else:  # which only pickle could read
        np.savez(file, **{**arrays, "edges": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="tolokers in .* truncated or corrupt"):
        load("tolokers", root)


def test_a_missing_tolokers_is_downloaded(tolokers_like, tmp_path, monkeypatch):
    # A folder in the place of the server.
    root, _ = tolokers_like
    source = (root / "tolokers" / "raw").absolute().as_uri()
    monkeypatch.setattr("gebt.datasets.heterophilous.SOURCE", source)
    graph = load("tolokers", tmp_path / "new")
    assert graph.fingerprint() == load("tolokers", root).fingerprint()
    assert DATASETS["tolokers"].on_disk(tmp_path / "new")


def test_a_tolokers_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    nowhere = (tmp_path / "nowhere").as_uri()
    monkeypatch.setattr("gebt.datasets.heterophilous.SOURCE", nowhere)
    with pytest.raises(FileNotFoundError, match="tolokers/raw/tolokers.npz") as error:
        load("tolokers", tmp_path)
    assert f"files of {nowhere} there" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, size, sparse, parts",
    [
        ("tolokers", (11_758, 519_000, 10), False, [5879, 2939, 2940]),
        ("minesweeper", (10_000, 39_402, 7), True, [5000, 2500, 2500]),
    ],
)
def test_a_real_heterophilous_graph_has_its_size(name, size, sparse, parts, caplog):
    given = os.environ.get("GEBT_DATA")
    if not given or not DATASETS[name].on_disk(Path(given)):
        pytest.skip(f"set GEBT_DATA to a folder with {name}/raw (it is {given!r})")
    train = []
    for split in range(DATASETS[name].splits):
        graph = load(name, given, split=split)
        assert (graph.num_nodes, graph.num_links, graph.num_features) == size
        assert (graph.num_classes, graph.metric) == (2, "ROC-AUC")
        assert isinstance(graph.x, SparseMatrix) == sparse
        assert [part.numel() for part in vars(graph.split).values()] == parts
        train.append(tuple(graph.split.train.tolist()))
    assert len(set(train)) == 10
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize(
    "name, nodes, links, features, classes, split",
    [
        ("arxiv-like", 169_343, 1_166_243, 128, 40, (54, 18, 28)),
        ("products-like", 2_449_029, 61_859_140, 100, 47, (8, 2, 90)),
    ],
)
def test_graphs_like_ogbs_have_their_size(
    graph, monkeypatch, tmp_path, name, nodes, links, features, classes, split
):
    from gebt.datasets.synthetic import Synthetic

    asked = []
    monkeypatch.setattr(Synthetic, "make", lambda *given: asked.append(given) or graph)
    load(name.upper(), tmp_path)
    size = Synthetic(
        nodes=nodes, links=links, features=features, classes=classes, split=split
    )
    assert asked == [(size, name)]
    assert DATASETS[name].files == ()
    # Only what takes minutes to draw is kept.
    load(name, tmp_path)
    kept = [path.name for path in tmp_path.iterdir()]
    assert (len(asked), kept) == ((1, [name]) if nodes > 10**6 else (2, []))


def test_arxiv_like_is_drawn_in_seconds():
    graph = load("arxiv-like")
    assert (graph.num_nodes, graph.num_links) == (169_343, 1_166_243)
    assert graph.name == "arxiv-like"
    degree = graph.adjacency.pattern.crow.diff()
    assert 8_000 < int(degree.max()) < 13_500
    assert int(degree.min()) >= 1


@pytest.fixture
def own_graph(own_registries, make_graph, tmp_path):
    """A graph registered as "mine", of a file below a root."""
    graph = make_graph()

    @register("mine", about="blocks of mine", files=["mine/raw.txt"])
    def mine(root):
        (root / "mine" / "raw.txt").read_text()
        return graph

    return graph


def test_a_registered_function_makes_a_graph_of_its_name(own_graph, tmp_path):
    with pytest.raises(FileNotFoundError):
        load("mine", tmp_path)
    assert not DATASETS["mine"].on_disk(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "raw.txt").touch()
    assert DATASETS["mine"].on_disk(tmp_path)
    graph = load("Mine", tmp_path)
    assert (graph.name, own_graph.name) == ("mine", "blocks")
    assert graph.fingerprint() == own_graph.fingerprint()


def test_a_function_that_gives_no_graph_is_told_so(own_registries, data):
    for thing, kind in ((data, "Data"), (None, "NoneType")):
        register("mine", about="no graph")(lambda root, thing=thing: thing)
        with pytest.raises(ValueError, match=f"'mine' must give a .* gave a {kind}"):
            load("mine")


def test_gebts_own_graphs_are_not_replaced(own_registries):
    with pytest.raises(ValueError, match="dataset 'cora' is gebt's own"):
        register("cora", about="mine")(lambda root: None)
