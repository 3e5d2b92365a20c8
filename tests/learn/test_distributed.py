"""Several ranks: the same tickets, and nobody waits for one that is lost."""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ranks
import torch
from helpers import call_gebt, launch, lines

import gebt

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What 1, 2 and 3 ranks find."""
    folder = tmp_path_factory.mktemp("ranks")
    each = {1: ranks.alone()}  # first: it compiles the kernels for all of them
    for number in (2, 3):
        process = launch(number, HERE / "ranks.py", folder / str(number))
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        each[number] = torch.load(folder / str(number), weights_only=False)
    return each


def assert_same(one, other, at, *, exact=True):
    """The same masks and counts, bit for bit; numbers to rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            assert_same(one[key], other[key], f"{at}, {key}", exact=exact)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for a, b in zip(one, other, strict=True):
            assert_same(a, b, at, exact=exact)
    elif isinstance(one, torch.Tensor) and one.is_floating_point():
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-14), at
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    elif isinstance(one, float):
        tolerance = 1e-9 if exact else 1e-4
        assert one == pytest.approx(other, rel=tolerance, nan_ok=True), at
    else:
        assert one == other, at


@pytest.mark.parametrize("number", [2, 3])
def test_ranks_draw_the_ticket_of_one_process_bit_for_bit(found, number):
    assert len(found[number]) > 5
    for key in found[number]:
        if key not in ("float32", "refusals"):
            assert_same(found[1][key], found[number][key], f"{number} ranks, {key}")


@pytest.mark.parametrize("number", [2, 3])
def test_in_float32_nearly_all_links_are_the_same(found, number):
    one, other = found[1]["float32"], found[number]["float32"]
    assert abs(one["epoch"] - other["epoch"]) <= 1
    same = (one["links"] == other["links"]).float().mean()
    assert same > 0.999
    assert one["untouched"] == other["untouched"]


def test_the_cases_say_something(found):
    one = found[1]
    assert {len(set(one["ties"][key].tolist())) for key in one["ties"]} == {1, 2}
    assert one["written out, gcn"]["epoch"] > 3
    assert 0 < one["written out, sage"]["untouched"] < 1
    assert one["student"]["val"] > 40
    fused, plain = one["fused, gcn"], one["written out, gcn"]
    assert torch.equal(fused["links"], plain["links"])


def test_what_ranks_refuse_is_said_on_all_of_them(found):
    two, three = found[2]["refusals"], found[3]["refusals"]
    assert "is directed, and several ranks take undirected ones" in two["directed"]
    assert "2 nodes, and there are more ranks, 3" in three["few"]
    assert "a GAT needs one process" in two["gat"]
    assert "'k-neighbour' looks at the whole graph" in two["criterion"]
    assert "needs the whole graph, and this is one rank's share" in two["at init"]
    assert two["one fails"] == "rank 1: 1 is not in list"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`gebt run digits`, by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    asked = "run digits --recipe paper --epochs 8 --seed 1 --quiet --out".split()
    with_two = launch(2, "-m", "gebt", *asked, "two", cwd=folder)
    assert call_gebt(*asked, folder / "one") == 0  # meanwhile
    out, errors = lines(with_two)
    assert with_two.returncode == 0, errors
    assert out.strip() == "two" and errors[1:] == []
    return folder


@pytest.mark.filterwarnings("ignore:the masks did not settle")
def test_torchrun_writes_what_one_process_writes(runs):
    one, two = (gebt.Ticket.load(runs / at / "ticket.safetensors") for at in RUNS)
    assert torch.equal(one.link_mask, two.link_mask)
    assert one.weight_masks.keys() == two.weight_masks.keys()
    for name, mask in one.weight_masks.items():
        assert torch.equal(mask, two.weight_masks[name])
    assert torch.allclose(one.link_score, two.link_score, atol=1e-5)
    assert (one.epoch, one.dataset) == (two.epoch, two.dataset)
    outputs = []
    for at in RUNS:
        model, graph = gebt.load_compact(runs / at / "compact.safetensors")
        outputs.append(model(graph.x, graph.adjacency))
    assert torch.allclose(*outputs, atol=1e-3)
    names = {path.name for path in (runs / "two").iterdir()} - {".gebt"}
    pieces = {"ticket-1of2.safetensors", "compact-1of2.safetensors"}
    assert (
        names == {path.name for path in (runs / "one").iterdir()} - {".gebt"} | pieces
    )


RUNS = ("one", "two")


def test_a_piece_of_another_run_is_refused(runs, tmp_path):
    folder = runs / "two"
    names = ("ticket.safetensors", "ticket-1of2.safetensors")
    ticket, piece = (tmp_path / name for name in names)
    ticket.write_bytes((folder / names[0]).read_bytes())
    with pytest.raises(FileNotFoundError, match="piece of a ticket file at"):
        gebt.Ticket.load(ticket)
    piece.write_bytes((folder / "compact-1of2.safetensors").read_bytes())
    with pytest.raises(ValueError, match="kind = 'piece of a compact model'"):
        gebt.Ticket.load(ticket)
    tensors, header = gebt.files.read_tensors(folder / names[1], "piece of a ticket")
    header.content["token"] = "0"
    gebt.files.write_tensors(piece, tensors.content, header.content)
    with pytest.raises(ValueError, match="is a piece of another ticket"):
        gebt.Ticket.load(ticket)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_the_others_name_a_rank_that_is_lost_and_leave_nothing(how, tmp_path):
    asked = ("run", "digits", "--recipe", "paper", "--epochs", 400, "--out", "out")
    process = launch(2, "-m", "gebt", *asked, cwd=tmp_path, GEBT_SILENCE="4")
    try:
        assert process.stdout and "epoch 100/400" in process.stdout.readline()
        first, victim = (rank_of(process.pid, rank) for rank in (0, 1))
        end = os.pidfd_open(first)
        os.kill(victim, how)
        began = time.monotonic()
        assert select.select([end], [], [], 30)[0], "rank 0 still waits"
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)  # torchrun waits for one that has stopped
        _, errors = lines(process)
        assert time.monotonic() - began < 30
        os.close(end)
    finally:
        process.kill()
        process.communicate()
    assert len(errors) == 1
    assert "rank 1 of 2 was killed or has stopped" in errors[0]
    assert process.returncode != 0 and not (tmp_path / "out").exists()


def rank_of(parent: int, rank: int) -> int:
    """The process that torchrun started as a rank."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names = (path / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if started_by == parent and b"RANK=%d" % rank in names:
            return int(path.name)
    raise AssertionError("torchrun has no such process")
