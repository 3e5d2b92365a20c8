"""What is drawn belongs to whoever draws it, thread by thread."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import models as pyg

import gebt
from gebt.models import GCN, ResGCN, adapt
from gebt.models._layers import dropout
from gebt.randomness import Draws, drawn_again, stream

CPU = torch.device("cpu")


class Noisy:
    """A user's task, which draws from torch's own generator."""

    name = "noisy"

    def __init__(self):
        self.inner = gebt.NodeClassification()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def loss(self, output, graph, part):
        return self.inner.loss(output + 0.1 * torch.randn_like(output), graph, part)


class Wider(GCN):
    """A user's model on top of gebt's: draws here and there."""

    def forward(self, x, adjacency, rows=None):
        noise = 1 + 0.1 * torch.randn(x.shape)
        return super().forward(x * noise, adjacency, rows)


FOREIGN = nn.Dropout()
"""Stands for anybody's module that asks torch's own generators."""


def search(graph, seed, kind):
    task = None
    with Draws(seed, FOREIGN).used():
        if kind == "resgcn":
            model: nn.Module = ResGCN(24, 8, 3, layers=2, recompute=True)
        elif kind == "links":
            model, task = GCN(24, 8, 8, dropout=0.5), gebt.LinkPrediction(5, 8)
            graph = graph.hold_out_links(seed=1)
        elif kind == "pyg":
            model = adapt(pyg.GCN(24, 8, 2, 3, dropout=0.5))
        else:
            model = {"wider": Wider}.get(kind, GCN)(24, 8, 3, dropout=0.5)
    if kind == "task":
        task = Noisy()
    options = {"graph_ratio": 0.3, "weight_ratio": 0.5, "epochs": 6, "seed": seed}
    ticket = gebt.find_ticket(model, graph, task=task, **options)
    small = ticket.open(model, graph)
    keep = ticket.weight_masks
    gebt.train(model, small, keep=keep, epochs=4, task=task, seed=seed)
    return ticket.link_score, torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the masks did not settle")
@pytest.mark.parametrize("kind", ["gcn", "resgcn", "links", "pyg", "wider", "task"])
def test_searches_in_threads_draw_what_they_draw_one_by_one(graph, kind):
    alone = {}
    for seed in range(4):
        torch.manual_seed(100)  # which must not matter
        alone[seed] = search(graph, seed, kind)
    assert not torch.equal(alone[0][0], alone[1][0])
    torch.manual_seed(7)
    expected = torch.rand(50)
    torch.manual_seed(7)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(search, graph, n % 4, kind) for n in range(12)]
        drawn = torch.stack([torch.rand(()) for _ in range(50)])  # meanwhile
        together = [future.result() for future in waiting]
    for n, found in enumerate(together):
        for ours, expect in zip(found, alone[n % 4], strict=True):
            assert torch.equal(ours, expect), n
    assert torch.equal(drawn, expected)


DRAWING = {
    "rand": lambda x: torch.rand(3, 4),
    "randn": lambda x: torch.randn(3, 4, dtype=torch.float64),
    "randint": lambda x: torch.randint(5, (40,)),
    "randint between": lambda x: torch.randint(2, 50, (40,)),
    "randperm": lambda x: torch.randperm(30),
    "rand_like": torch.rand_like,
    "randn_like": lambda x: torch.randn_like(x, dtype=torch.float64),
    "randint_like": lambda x: torch.randint_like(x, 2, 50),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.4),
    "uniform_": lambda x: x.clone().uniform_(-1, 1),
    "normal": lambda x: torch.normal(0.0, 1.0, (7,)),
    "multinomial": lambda x: torch.multinomial(x.abs(), 2),
    "exponential_": lambda x: x.clone().exponential_(),
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "alpha dropout": lambda x: nn.functional.alpha_dropout(x, 0.5, training=True),
    "dropout of channels": lambda x: nn.functional.dropout1d(x, 0.5),
    "native dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "gumbel": lambda x: nn.functional.gumbel_softmax(x),
    "gebt's": lambda x: dropout(x, 0.5, True),
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_others_modules_draw_comes_from_the_stream(name):
    x = torch.randn(20, 30)
    before = torch.get_rng_state()
    draws = [Draws(seed, FOREIGN) for seed in (3, 3, 4)]
    found = []
    for each in draws:
        with each.used():
            found.append([DRAWING[name](x), DRAWING[name](x)])
    assert torch.equal(torch.get_rng_state(), before)
    (one, two), again, other = found
    assert torch.equal(one, again[0]) and torch.equal(two, again[1])
    assert not torch.equal(one, two) and not torch.equal(one, other[0])


@pytest.mark.parametrize("name", ["dropout", "native dropout"])
def test_dropout_of_others_keeps_its_share_and_its_gradient(name):
    x = torch.ones(200, 100, requires_grad=True)
    with Draws(0, FOREIGN).used():
        out = DRAWING[name](x)
        out.sum().backward()
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert 0.48 < (out > 0).float().mean() < 0.52
    assert torch.equal(x.grad, out)


def test_a_generator_that_was_given_is_used():
    def draw():
        return torch.rand(5, generator=torch.Generator().manual_seed(1))

    with Draws(0, FOREIGN).used():
        assert torch.equal(draw(), draw())
    expected = draw()
    with Draws(0, FOREIGN).used():
        assert torch.equal(draw(), expected)


def test_checkpointing_of_others_is_refused_rather_than_drawn_anew():
    class Checkpointed(nn.Module):
        def forward(self, x):
            return checkpoint(nn.functional.dropout, x, use_reentrant=False)

    x = torch.ones(50, requires_grad=True)
    with Draws(0, FOREIGN).used():
        out = Checkpointed()(x)
        with pytest.raises(ValueError, match="bernoulli.* Turn checkpointing off"):
            (out * out).sum().backward()


def test_who_brings_a_generator_draws_from_it_also_in_a_backward():
    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, draw):
            ctx.draw = draw
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return torch.empty_like(grad).uniform_(generator=ctx.draw), None

    x = torch.ones(50, requires_grad=True)
    with Draws(0, FOREIGN).used():
        Noisy.apply(x, torch.Generator().manual_seed(3)).sum().backward()
    expected = torch.empty(50).uniform_(generator=torch.Generator().manual_seed(3))
    assert torch.equal(x.grad, expected)


def test_what_is_computed_again_draws_the_same():
    with Draws(5).used():
        dropout(torch.ones(9), 0.5, True)
        again = drawn_again(CPU)
        first = dropout(torch.ones(99), 0.5, True)
        second = dropout(torch.ones(99), 0.5, True)
        third_of_another = Draws(5)
    with again:
        assert torch.equal(dropout(torch.ones(99), 0.5, True), first)
        assert torch.equal(dropout(torch.ones(99), 0.5, True), second)
    assert stream(CPU) is None
    with third_of_another.used():
        dropout(torch.ones(9), 0.5, True)
        assert torch.equal(dropout(torch.ones(99), 0.5, True), first)


def test_outside_of_a_block_torchs_own_generator_serves():
    torch.manual_seed(3)
    one = dropout(torch.ones(99), 0.5, True)
    weight = GCN(3, 4, 2).layers[0].weight.detach()
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(99), 0.5, True), one)
    assert torch.equal(GCN(3, 4, 2).layers[0].weight, weight)
