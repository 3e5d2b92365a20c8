"""Which parameters are the head, and models that have none to change."""

import pytest

from gebt.models import GAT, GCN, GraphSAGE, ResGCN, build_model, describe_model
from gebt.models.heads import head_of, with_outputs

CASES = [
    (GCN(5, 4, 2), {"layers.1.weight", "layers.1.bias"}),
    (GCN(5, 4, 2, layers=2, output_map=True), {"layers.2.weight", "layers.2.bias"}),
    (
        GraphSAGE(5, 4, 3),
        {"layers.1.weight", "layers.1.own_weight", "layers.1.bias"},
    ),
]


@pytest.mark.parametrize(("model", "head"), CASES)
def test_the_head_is_what_depends_on_the_number_of_outputs(model, head):
    assert head_of(describe_model(model)) == head


@pytest.mark.parametrize("kind", [GCN, GAT, ResGCN])
def test_the_same_model_with_other_outputs(kind):
    described = describe_model(kind(num_features=5, hidden=4, num_outputs=2))
    seven = build_model(with_outputs(described, 7)).state_dict()
    nine = build_model(with_outputs(described, 9)).state_dict()
    differ = {name for name in seven if seven[name].shape != nine[name].shape}
    assert differ == head_of(described)


def test_models_that_cannot_be_told_are_refused():
    described = {"class": "GCN", "arguments": {"width": 3}}
    with pytest.raises(ValueError, match="a GCN has no `num_outputs`"):
        head_of(described)
    with pytest.raises(ValueError, match="cannot rebuild a model of class 'adapted G'"):
        head_of({"class": "adapted G", "arguments": None})
