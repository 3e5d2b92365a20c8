"""A ticket drawn by Lightning's own loop, kept in its next, and through checkpoints."""

import sys
import warnings
from importlib import import_module

import pytest
import torch
from helpers import same
from torch.utils.data import DataLoader as TorchLoader
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv

import gebt
from gebt.integrations.pyg import ApplyTicket

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
from gebt.integrations.lightning import EarlyBird, KeepMasks  # noqa: E402


class Lit(pl.LightningModule):
    """What a user of PyG and Lightning has."""

    def __init__(self, dropout=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = GCNConv(24, 16), GCNConv(16, 3)
        self.dropout = dropout

    def forward(self, batch):
        edges = batch.edge_index, batch.edge_weight
        h = self.first(batch.x, *edges).relu()
        return self.last(torch.dropout(h, self.dropout, self.training), *edges)

    def training_step(self, batch, _):
        out, mask = self(batch), batch.train_mask
        return torch.nn.functional.cross_entropy(out[mask], batch.y[mask])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=5e-4)


def fit(module, data, *callbacks, epochs=100, path=None, **more):
    quiet = {"logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    options = {**quiet, "accelerator": "cpu", "max_epochs": epochs, **more}
    trainer = pl.Trainer(callbacks=[*callbacks], **options)
    loader = data if isinstance(data, TorchLoader) else DataLoader([data])
    trainer.fit(module, loader, ckpt_path=path)
    return trainer


def as_it_is(batch):
    """A loader that gives the same object in each epoch."""
    return TorchLoader([batch], collate_fn=lambda batches: batches[0])


def test_a_ticket_is_drawn_opened_and_trained_on(data, tmp_path):
    before = data.clone()
    module, early_bird = Lit(), EarlyBird(weight_ratio=0.5)
    trainer = fit(module, data, early_bird)
    ticket = early_bird.ticket
    assert ticket.settled and ticket.epoch == trainer.current_epoch < 100
    assert data.keys() == before.keys()  # the batches were given back

    ticket.save(tmp_path / "ticket.safetensors")
    ticket = gebt.Ticket.load(tmp_path / "ticket.safetensors")
    assert ticket.links_kept == 468 - int(0.2 * 468)
    assert ticket.weights_kept == 432 // 2 and ticket.share_untouched < 0.5
    assert ticket.options["lr"] == 0.01 and ticket.options["weight_decay"] == 5e-4
    assert [*ticket.distances[-1]] == ["graph", "weights", "joint"]
    logged = trainer.callback_metrics["distance_joint"]
    assert float(logged) == pytest.approx(ticket.distances[-1]["joint"])
    assert not same(ticket.weights, ticket.first_weights)
    assert same(ticket.first_weights, Lit().state_dict())

    fresh = Lit()
    small = ticket.open(fresh, gebt.Graph.from_pyg(data))
    pruned = ApplyTicket(ticket)(data)
    assert pruned.num_edges == small.adjacency.pattern.nnz
    fit(fresh, pruned, KeepMasks(ticket.weight_masks), epochs=30)
    for name, mask in ticket.weight_masks.items():
        weight = fresh.get_parameter(name)
        assert not weight[~mask].any()
        assert not torch.equal(weight, ticket.weights[name] * mask)  # it did learn
    right = fresh.eval()(pruned).argmax(dim=1) == data.y
    assert right[data.test_mask].float().mean() > 0.9


def test_it_is_find_ticket_in_the_users_loop(data):
    data.x = data.x.double()
    module, early_bird = Lit(dropout=0.0).double(), EarlyBird(weight_ratio=0.5, seed=3)
    fit(module, data, early_bird)
    theirs = early_bird.ticket

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lit = Lit(dropout=0.0)

        def forward(self, x, edge_index, edge_weight=None):
            return self.lit(type(data)(x, edge_index, edge_weight=edge_weight))

    ours = gebt.find_ticket(
        gebt.models.adapt(Net().double()),
        gebt.Graph.from_pyg(data),
        weight_ratio=0.5,
        fit=gebt.Fit(decay="all"),
        seed=3,
    )
    assert ours.epoch == theirs.epoch > 3
    assert torch.equal(ours.link_mask, theirs.link_mask)
    torch.testing.assert_close(ours.link_score, theirs.link_score)
    for name, mask in theirs.weight_masks.items():
        assert torch.equal(ours.weight_masks[f"model.lit.{name}"], mask)
    assert ours.options.keys() == theirs.options.keys()


def test_a_fit_that_is_resumed_draws_the_same_ticket(data, tmp_path):
    def train(path=None, **more):
        early_bird = EarlyBird(weight_ratio=0.5)
        trainer = fit(Lit(dropout=0.0), data, early_bird, path=path, **more)
        return early_bird, trainer

    whole, _ = train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the masks did not settle")
        half, trainer = train(epochs=6)
    assert half.ticket.epoch == 6 and not half.ticket.settled
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = train(tmp_path / "half.ckpt")
    assert resumed.detector.history[5:] == whole.detector.history[5:]
    parts = whole.ticket._parts()
    for name, found in resumed.ticket._parts().items():
        assert same(found, parts[name]), name
    assert resumed.ticket.distances[5:] == whole.ticket.distances[5:]
    assert resumed.ticket.epoch == whole.ticket.epoch


@pytest.mark.parametrize("field", ["edge_weight", "edge_attr"])
def test_the_datas_own_weights_are_multiplied_and_come_back(field, data):
    torch.manual_seed(5)
    low, high = data.edge_index.sort(dim=0).values
    data[field] = 0.5 + (low * 7 + high * 3) % 11 / 10
    before = data[field].clone()
    seen = []

    class Seeing(Lit):
        def forward(self, batch):
            seen.append(batch[field].detach() / before)
            batch = type(data)(batch.x, batch.edge_index, edge_weight=batch[field])
            return super().forward(batch)

        def training_step(self, batch, _):
            mask = data.train_mask
            return torch.nn.functional.cross_entropy(self(batch)[mask], data.y[mask])

    early_bird = EarlyBird(weight_ratio=0.5, graph_lr=0.01)
    fit(Seeing(), as_it_is(data), early_bird)
    assert torch.equal(data[field], before)
    torch.testing.assert_close(seen[0], torch.ones_like(before))
    factor = torch.zeros(120, 120)
    factor[data.edge_index[0], data.edge_index[1]] = seen[-1]
    assert factor.std() > 0.01
    torch.testing.assert_close(factor, factor.t())  # one for both directions


def test_one_of_both_can_be_pruned(data):
    early_bird = EarlyBird(graph_ratio=0)
    module = Lit()
    module.forward = lambda batch: GCNConv.forward(
        module.last, module.first(batch.x, batch.edge_index), batch.edge_index
    )
    fit(module, data, early_bird)
    assert early_bird.ticket.links_kept == 468
    assert (early_bird.ticket.link_score == 1).all()
    assert early_bird.ticket.weights_kept == 432 - int(0.9 * 432)
    early_bird = EarlyBird(weight_ratio=0)
    fit(Lit(), data, early_bird)
    assert early_bird.ticket.weight_masks == {}
    assert early_bird.ticket.links_kept == 468 - int(0.2 * 468)


def test_masks_that_do_not_settle_are_told_of(data):
    early_bird = EarlyBird(detector=gebt.MaskDistanceDetector(threshold=1e-9))
    with pytest.warns(UserWarning, match="did not settle within 5 epochs"):
        fit(Lit(), data, early_bird, epochs=5)
    assert early_bird.ticket.epoch == 5 and not early_bird.ticket.settled


def test_what_cannot_be_searched_is_refused(data, make_data):
    class Deaf(Lit):
        def forward(self, batch):
            batch = type(data)(batch.x, batch.edge_index)
            return super().forward(batch)

    with pytest.raises(ValueError, match=r"no gradient.*batch\.edge_weight"):
        fit(Deaf(), data, EarlyBird())
    other = make_data(seed=1)
    with pytest.raises(ValueError, match="batch 1 has other edges than the first"):
        fit(Lit(), DataLoader([data, other]), EarlyBird())
    with pytest.raises(ValueError, match="whole graph as PyG's `Data`.*got a list"):
        fit(Lit(), as_it_is([data.x, data.y]), EarlyBird())
    with pytest.raises(ValueError, match="both 0"):
        EarlyBird(graph_ratio=0, weight_ratio=0)
    with pytest.raises(ValueError, match="`weight_ratio`.*got 1.5"):
        EarlyBird(weight_ratio=1.5)
    early_bird = EarlyBird()
    fit(Lit(), data, early_bird)
    with pytest.raises(ValueError, match="has drawn its ticket"):
        fit(Lit(), data, early_bird)
    with pytest.raises(ValueError, match=r"`detector` has already seen \d+ updates"):
        EarlyBird(detector=early_bird.detector)
    several = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match="2 processes train"):
        EarlyBird().setup(several, Lit(), "fit")
    with pytest.raises(ValueError, match="'last.weight', which Lit does not have"):
        fit(Lit(), data, KeepMasks({"last.weight": torch.ones(3, 16) > 0}))


def test_an_error_in_a_step_leaves_the_data_as_it_was(data):
    class Failing(Lit):
        def training_step(self, batch, _):
            assert batch.edge_weight is not None
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fit(Failing(), as_it_is(data), EarlyBird())
    assert data.edge_weight is None


def test_without_lightning_it_says_what_to_install(monkeypatch):
    for name in ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "gebt.integrations.lightning")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gebt\[lightning\]'"):
        import_module("gebt.integrations.lightning")
