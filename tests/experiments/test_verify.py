"""`gebt verify` tells what is in a file, and refuses what is not whole."""

import json
import re
from dataclasses import asdict

import pytest
import torch
from helpers import assert_refused, header_of
from safetensors.torch import load_file

import gebt
from gebt._registry import MODELS
from gebt.experiments.run import Options, run_seeds
from gebt.experiments.verify import contents_of
from gebt.files import write_csv, write_json, write_tensors
from gebt.models import GCN

GRAPH = "synthetic:N=60,E=350,F=8,C=3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `gebt run` writes, one ticket and a frontier, and an experiment's record."""
    folder = tmp_path_factory.mktemp("verified")
    graph, task = gebt.load(GRAPH), gebt.NodeClassification()
    recipe = MODELS["gcn"].changed(hidden=4, epochs=5)
    run_seeds(graph, task, Options(recipe, threshold=2.0), range(3, 4), folder)
    dense = gebt.Candidate(
        criterion="dense", graph_ratio=0.0, weight_ratio=0.0, val=90.0, ms=1.0
    )
    write_csv(folder / "cheapest" / "frontier.csv", [asdict(dense)])
    about = {"experiment": "fig6", "quick": True, "seeds": 2, "provenance": {}}
    write_json(folder / "experiment.json", about)
    return folder


def counts(text):
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def test_a_tickets_counts_weights_and_origin_are_told(folder):
    path = folder / "ticket.safetensors"
    ticket, facts = gebt.Ticket.load(path), contents_of(path)
    assert facts["holds"] == "ticket"
    links = int(ticket.link_mask.sum()), ticket.link_mask.numel()
    masks = ticket.weight_masks.values()
    weights = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    assert tuple(counts(facts["links kept"])[:2]) == links
    assert tuple(counts(facts["weights kept"])[:2]) == weights
    numbers = sum(t.numel() for t in ticket.weights.values())
    assert counts(facts["weights"]) == [len(ticket.weights), numbers]
    assert gebt.load(GRAPH).fingerprint()[:12] in facts["graph"]
    assert "GCN(num_features=8, hidden=[4]" in facts["model"]
    assert f"epoch {ticket.epoch} (settled), seed 3" in facts["drawn"]
    assert f"torch {torch.__version__}" in facts["written by"]


def test_what_a_task_adds_to_a_ticket_is_told(folder, tmp_path):
    ticket = gebt.Ticket.load(folder / "ticket.safetensors")
    task = gebt.AmongClasses([2, 0])
    learned = gebt.adapt_ticket(ticket, gebt.load(GRAPH), task, epochs=2, link_groups=8)
    learned.save(tmp_path / "task.safetensors")
    facts = contents_of(tmp_path / "task.safetensors")
    assert facts["holds"] == "adaptation"
    assert facts["task"] == "node-classification-among, classes 2, 0"
    assert facts["factors"] == "8 of layers.0.weight, 8 of groups of links"
    assert ticket.fingerprint().startswith(facts["for the ticket"])
    assert counts(facts["stored"]) == [learned.stored_bytes]


def test_a_compact_models_graph_and_class_are_told(folder):
    path = folder / "compact.safetensors"
    (model, graph), facts = gebt.load_compact(path), contents_of(path)
    assert facts["holds"] == "compact model"
    assert f"{graph.links_kept} of {graph.num_links} links" in facts["graph"]
    assert graph.fingerprint()[:12] in facts["graph"]
    assert counts(facts["weights"])[1] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "holds", "words"),
    [
        ("metrics.json", "record of a run", "node-classification, accuracy"),
        ("experiment.json", "record of an experiment", "fig6 (quick)"),
        ("history.csv", "table", "phase, epoch, loss, val"),
        ("cheapest/frontier.csv", "table", "graph_ratio"),
    ],
)
def test_records_and_tables_are_told(folder, name, holds, words):
    facts = contents_of(folder / name)
    assert facts["holds"] == holds
    assert words in " ".join(facts.values())


@pytest.mark.parametrize("name", ["ticket", "compact"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_counted(
    folder, tmp_path, name, value
):
    whole = folder / f"{name}.safetensors"
    tensors, header = load_file(whole), header_of(whole)
    weight = next(k for k in tensors if re.match("(weights|model)/layers.1.weight", k))
    tensors[weight].view(-1)[:2] = value
    del header["sha256"]
    path = tmp_path / f"{name}.safetensors"
    write_tensors(path, tensors, header)
    short = weight.split("/")[1]
    words = rf"2 of the {tensors[weight].numel()} numbers of {short} are NaN or inf"
    with pytest.raises(ValueError, match=words):
        contents_of(path)


def test_pieces_of_several_ranks_are_all_read(folder, tmp_path):
    whole = folder / "ticket.safetensors"
    tensors, header = load_file(whole), header_of(whole)
    del header["sha256"]
    names = ("masks/graph/link", "scores/graph/link")
    links = torch.arange(tensors[names[0]].numel())
    tensors["links"] = links
    mine, others = links < 100, links >= 100
    first = {n: t[mine] if n in (*names, "links") else t for n, t in tensors.items()}
    marks = {"pieces": 2, "token": "these two"}
    path, piece = tmp_path / "t.safetensors", tmp_path / "t-1of2.safetensors"
    write_tensors(path, first, header | marks)
    own = {name: tensors[name][others] for name in (*names, "links")}
    write_tensors(piece, own, {"kind": "piece of a ticket"} | marks)
    assert counts(contents_of(path)["content"]) == [2]
    assert contents_of(path)["links kept"] == contents_of(whole)["links kept"]
    assert counts(contents_of(piece)["belongs to"])[0] == 2
    piece.unlink()
    with pytest.raises(FileNotFoundError, match="t-1of2.safetensors"):
        contents_of(path)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_an_exported_models_graph_and_class_are_told(folder, tmp_path, name):
    if name.endswith("onnx"):
        pytest.importorskip("onnxscript", reason="needs pip install 'gebt[export]'")
    model, graph = gebt.load_compact(folder / "compact.safetensors")
    gebt.export(tmp_path / name, model, graph)
    facts = contents_of(tmp_path / name)
    assert graph.fingerprint()[:12] in facts["graph"]
    assert facts["model"].startswith("GCN(num_features=")
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole"):
        contents_of(tmp_path / name)


def test_a_checkpoints_training_is_told(tmp_path):
    class Gone(Exception):
        pass

    def on_epoch(epoch):
        if epoch.epoch == 3:
            raise Gone

    graph = gebt.load(GRAPH)
    with pytest.raises(Gone), gebt.checkpoints(tmp_path, every=1):
        gebt.train(GCN(8, 4, 3), graph, epochs=5, seed=7, on_epoch=on_epoch)
    path = tmp_path / "training-0.safetensors"
    facts = contents_of(path)
    assert facts["holds"] == "training" and facts["state"] == "under way"
    assert (facts["model"], facts["seed"]) == ("GCN", "7")
    tensors, header = load_file(path), header_of(path)
    tensors.pop(next(iter(tensors)))
    del header["sha256"]
    write_tensors(path, tensors, header)
    with pytest.raises(ValueError, match="is not a whole training"):
        contents_of(path)


def test_a_class_that_gebt_cannot_build_is_said(tmp_path):
    class Mine(GCN):
        pass

    ticket = gebt.find_ticket(Mine(8, 4, 3), gebt.load(GRAPH), epochs=30)
    ticket.save(tmp_path / "mine.safetensors")
    told = contents_of(tmp_path / "mine.safetensors")["model"]
    assert told == "Mine; not one that gebt can build"


def test_the_command_tells_what_is_whole_and_refuses_the_rest_in_one_line(
    folder, tmp_path, gebt_here
):
    path = tmp_path / "ticket.safetensors"
    content = (folder / path.name).read_bytes()
    path.write_bytes(content)
    answer = gebt_here("verify", path)
    assert answer.returncode == 0
    assert "ticket.safetensors is whole" in answer.stdout
    assert "all finite" in answer.stdout
    for text, words in (
        (content[:-1], "truncated or corrupt"),
        (content[:-1] + bytes([content[-1] ^ 1]), "do not match its checksum"),
    ):
        path.write_bytes(text)
        assert_refused(gebt_here("verify", path), path.name, words)
    write_tensors(path, {"a": torch.ones(1)}, {"kind": "recipe"})
    assert_refused(gebt_here("verify", path), "it is a 'recipe'")
    record = json.loads((folder / "metrics.json").read_text())
    record["runs"][0]["ticket"]["links"] = "many"
    write_json(tmp_path / "metrics.json", record)
    words = "`runs[0].ticket.links` must be a whole number"
    assert_refused(gebt_here("verify", tmp_path / "metrics.json"), words)
    (tmp_path / "history.csv").write_text("phase,epoch\nsearch\n")
    assert_refused(gebt_here("verify", tmp_path / "history.csv"), "line 2 is not as")
    assert_refused(gebt_here("verify", tmp_path), "metrics.json, ticket.safetensors")
    assert_refused(gebt_here("verify", tmp_path / "a.csv"), "there is no file")
    (tmp_path / "a.txt").write_text("a")
    assert_refused(gebt_here("verify", tmp_path / "a.txt"), "none of the files")
