"""What is prunable, the masks by hand, their application."""

import pytest
import torch
from torch import nn

from gebt import ModelPruner
from gebt.models import GCN
from gebt.prune.weights import (
    apply_masks,
    check_masks,
    check_not_compiled,
    prunable_weights,
    take_dtype,
)


class Two(nn.Module):
    """Two small weights and a bias, all literal."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[4.0, -3.0, 0.5], [0.1, 2.0, -0.2]]))
        self.bias = nn.Parameter(torch.tensor([0.001, 0.002]))
        self.b = nn.Parameter(torch.tensor([[-9.0, 0.3]]))


def as_lists(masks):
    return {name: mask.int().tolist() for name, mask in masks.items()}


def test_global_masks_by_hand():
    # Eight weights, the four smallest (.1, .2, .3, .5) go.
    assert as_lists(ModelPruner(Two(), 0.5).masks()) == {
        "a": [[1, 1, 0], [0, 1, 0]],
        "b": [[1, 0]],
    }


def test_masks_per_layer_by_hand():
    assert as_lists(ModelPruner(Two(), 0.5, scope="layer").masks()) == {
        "a": [[1, 1, 0], [0, 1, 0]],
        "b": [[1, 0]],
    }
    # Globally 0.3 of "b" is the third smallest; within "b" 0.2 * 2 rounds to none.
    assert as_lists(ModelPruner(Two(), 0.4).masks())["b"] == [[1, 0]]
    assert as_lists(ModelPruner(Two(), 0.4, scope="layer").masks()) == {
        "a": [[1, 1, 1], [0, 1, 0]],
        "b": [[1, 1]],
    }


def test_row_and_column_masks_by_hand():
    # Rows of a: rms 2.90, 1.16; of b: 6.37. Columns of a: 2.83, 2.55, .38; b: 9, .3.
    assert as_lists(ModelPruner(Two(), 0.4, unit="row").masks()) == {
        "a": [[1, 1, 1], [0, 0, 0]],
        "b": [[1, 1]],
    }
    assert as_lists(ModelPruner(Two(), 0.4, unit="column").masks()) == {
        "a": [[1, 1, 0], [1, 1, 0]],
        "b": [[1, 0]],
    }
    layered = ModelPruner(Two(), 0.5, unit="column", scope="layer")
    assert as_lists(layered.masks()) == {"a": [[1, 1, 0], [1, 1, 0]], "b": [[1, 0]]}


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_pooled_count_is_exact(ratio):
    model = GCN(37, (11, 5), 3)
    masks = ModelPruner(model, ratio).masks()
    total = 37 * 11 + 11 * 5 + 5 * 3
    assert sum(m.numel() for m in masks.values()) == total
    kept = sum(int(m.sum()) for m in masks.values())
    assert kept == total - int(ratio * total)


def test_each_layers_count_is_exact():
    masks = ModelPruner(GCN(37, 11, 3), 0.3, scope="layer").masks()
    kept = [int(m.sum()) for m in masks.values()]
    assert kept == [407 - int(0.3 * 407), 33 - int(0.3 * 33)]


def test_the_smallest_weights_go():
    model = GCN(20, 10, 4)
    masks = ModelPruner(model, 0.7).masks()
    weights = prunable_weights(model)
    kept = torch.cat([weights[n][m].abs() for n, m in masks.items()])
    dropped = torch.cat([weights[n][~m].abs() for n, m in masks.items()])
    assert dropped.max() <= kept.min()


def test_raising_the_ratio_never_revives_a_weight():
    model = GCN(20, 10, 4)
    before = ModelPruner(model, 0.0).masks()
    for ratio in (0.1, 0.4, 0.8, 0.95):
        after = ModelPruner(model, ratio).masks()
        assert not any((after[n] & ~before[n]).any() for n in after)
        before = after


def test_masks_read_the_weights_of_now():
    model = Two()
    pruner = ModelPruner(model, 0.5)
    before = pruner.masks()
    with torch.no_grad():
        model.b.mul_(0.001)
    assert as_lists(before)["b"] == [[1, 0]]
    assert as_lists(pruner.masks())["b"] == [[0, 0]]


def test_biases_are_never_pruned():
    model = GCN(8, 4, 2)
    assert list(ModelPruner(model, 0.9).masks()) == [
        "layers.0.weight",
        "layers.1.weight",
    ]
    for layer in model.layers:
        nn.init.constant_(layer.bias, 1e-9)
    apply_masks(model, ModelPruner(model, 0.9).masks())
    assert all((layer.bias == 1e-9).all() for layer in model.layers)


def test_a_shared_parameter_is_pruned_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Linear(3, 3)
            self.right = nn.Linear(3, 3)
            self.right.weight = self.left.weight

    masks = ModelPruner(Tied(), 0.5).masks()
    assert list(masks) == ["left.weight"]
    assert int(masks["left.weight"].sum()) == 9 - 4


def test_a_parameter_without_a_shape_is_refused():
    model = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="'weight' has no shape yet: run the model"):
        prunable_weights(model)


@pytest.mark.parametrize(
    "model",
    [nn.LayerNorm(4), nn.ReLU(), nn.Conv1d(2, 2, 1)],
    ids=lambda m: type(m).__name__,
)
def test_a_model_with_nothing_to_prune_is_refused(model):
    with pytest.raises(ValueError, match="nothing to prune.*Set `weight_ratio=0`"):
        ModelPruner(model, 0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"`prune_ratio`.*must lie in \[0, 1\)"):
        ModelPruner(Two(), ratio)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="`scope` must be one of.*'layers'"):
        ModelPruner(Two(), 0.5, scope="layers")
    with pytest.raises(ValueError, match="`unit` must be one of.*'col'"):
        ModelPruner(Two(), 0.5, unit="col")


def test_diverged_weights_are_refused():
    model = Two()
    with torch.no_grad():
        model.a[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN.*diverged"):
        ModelPruner(model, 0.5).masks()


def test_masks_that_do_not_fit_are_refused():
    model = Two()
    fits = torch.ones(2, 3, dtype=torch.bool)
    check_masks(model, {"a": fits})
    with pytest.raises(ValueError, match=r"'c', which Two does not have; it has \['a'"):
        check_masks(model, {"c": fits})
    with pytest.raises(ValueError, match=r"'a' must be boolean of shape \(2, 3\)"):
        check_masks(model, {"a": fits[:1]})
    with pytest.raises(ValueError, match="got torch.float32"):
        check_masks(model, {"a": fits.float()})


def test_applying_masks_zeroes_what_they_drop_and_nothing_else():
    model = Two()
    apply_masks(model, ModelPruner(model, 0.5).masks())
    assert model.a.tolist() == [[4.0, -3.0, 0.0], [0.0, 2.0, 0.0]]
    assert model.b.tolist() == [[-9.0, 0.0]]
    torch.testing.assert_close(model.bias.data, torch.tensor([0.001, 0.002]))
    assert model.a.requires_grad


def test_any_module_can_be_pruned():
    from torch_geometric.nn import GCN as PyGGCN

    plain = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    assert list(ModelPruner(plain, 0.5).masks()) == ["0.weight", "2.weight"]
    masks = ModelPruner(PyGGCN(6, 5, num_layers=2, out_channels=2), 0.5).masks()
    assert list(masks) == ["convs.0.lin.weight", "convs.1.lin.weight"]
    assert sum(int(m.sum()) for m in masks.values()) == 20


def kept(a, b):
    return {"a": torch.tensor(a) == 1, "b": torch.tensor(b) == 1}


def test_what_an_earlier_pruning_dropped_stays_dropped_and_counts_by_hand():
    keep = kept([[0, 1, 1], [1, 1, 1]], [[1, 1]])
    # 4.0 is gone already; of the others the three smallest (.1, .2, .3) go.
    assert as_lists(ModelPruner(Two(), 0.5, keep=keep).masks()) == {
        "a": [[0, 1, 1], [0, 1, 0]],
        "b": [[1, 0]],
    }


def test_a_weight_that_is_zero_stays_before_one_that_was_dropped():
    model = Two()
    keep = kept([[1, 1, 1], [1, 0, 0]], [[1, 1]])
    with torch.no_grad():
        model.a[1, 0] = 0
    apply_masks(model, keep)
    found = ModelPruner(model, 0.25, keep=keep).masks()
    assert as_lists(found) == as_lists(keep)


@pytest.mark.parametrize("scope, name", [("global", "the model"), ("layer", "a")])
def test_a_ratio_that_would_bring_weights_back_is_refused(scope, name):
    keep = kept([[0, 0, 1], [0, 1, 1]], [[1, 1]])
    words = f"dropped 3 of [86] elements of {name} already, and a ratio of 0.3"
    with pytest.raises(ValueError, match=words):
        ModelPruner(Two(), 0.3, scope=scope, keep=keep)
    ModelPruner(Two(), 0.5, scope=scope, keep=keep)


def test_units_that_were_dropped_whole_stay_dropped_and_parts_too():
    keep = kept([[0, 0, 0], [1, 0, 1]], [[1, 1]])
    assert as_lists(ModelPruner(Two(), 0.4, unit="row", keep=keep).masks()) == {
        "a": [[0, 0, 0], [1, 0, 1]],
        "b": [[1, 1]],
    }
    with pytest.raises(ValueError, match="dropped 1 of 3 rows of the model already"):
        ModelPruner(Two(), 0.3, unit="row", keep=keep)


def test_masks_of_other_parameters_are_carried_along():
    keep = {"bias": torch.tensor([True, False])}
    masks = ModelPruner(Two(), 0.5, keep=keep).masks()
    assert masks["bias"].tolist() == [True, False]
    assert masks.keys() == {"a", "b", "bias"}


def test_compiled_models_are_refused_in_words():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.compile(nn.Linear(3, 3))

    in_place = Two()
    in_place.compile()
    for model in (torch.compile(Two()), in_place, Outer()):
        with pytest.raises(ValueError, match="torch.compile.*_orig_mod"):
            check_not_compiled(model)
    check_not_compiled(Two())


def test_a_model_takes_a_dtype_that_none_of_its_parameters_has():
    model = Two()
    take_dtype(model, torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model.bias.data = model.bias.data.float()  # somebody mixes them on purpose
    take_dtype(model, torch.float32)
    assert model.a.dtype == torch.float64


def test_whole_channels_are_another_groups():
    with pytest.raises(ValueError, match="whole channels are a `ChannelPruner`'s"):
        ModelPruner(Two(), 0.5, unit="channel")
