"""Compact models that an earlier gebt wrote still load."""

from pathlib import Path

import torch

import gebt
from gebt.files import read_tensors
from gebt.models import GraphSAGE

FILE = Path(__file__).parent / "compact.safetensors"


def test_a_file_of_gebt_0_1_gives_the_same_model_and_graph():
    """GraphSAGE on 24 nodes in another order, sparse features, a split."""
    model, graph = gebt.load_compact(FILE)
    assert type(model) is GraphSAGE and not model.training
    assert model.arguments["hidden"] == [4]
    assert graph.fingerprint().startswith("ec3c46d2c37d")
    assert (graph.links_kept, graph.num_links, graph.metric) == (35, 50, "accuracy")
    assert isinstance(graph.x, gebt.SparseMatrix) and isinstance(
        graph.split, gebt.Split
    )
    with torch.no_grad():
        out = graph.restore(model(graph.x, graph.adjacency))
    expected = [
        [0.04705356806516647, -0.6207391023635864, -0.5118483304977417],
        [0.04705356806516647, -0.11372971534729004, 0.09775052964687347],
        [0.04705356806516647, -0.156733438372612, 0.04604534059762955],
    ]
    torch.testing.assert_close(out[:3], torch.tensor(expected))


def test_what_is_written_today_is_what_was_written_then(tmp_path):
    gebt.save_compact(tmp_path / "again", *gebt.load_compact(FILE))
    (old, then), (new, now) = (
        read_tensors(path, "compact model") for path in (FILE, tmp_path / "again")
    )
    assert then.content == now.content
    assert old.content.keys() == new.content.keys()
    assert all(torch.equal(old.content[n], t) for n, t in new.content.items())
