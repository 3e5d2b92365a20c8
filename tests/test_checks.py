"""Names known without torch are those that there are, typos are met."""

import pytest

from gebt import _registry
from gebt._checks import check_count, check_name
from gebt._registry import DATASETS, EXPERIMENTS, MODELS, TASKS, check_dataset
from gebt.learn.tasks import find_task


def test_the_names_are_those_that_there_are():
    assert [MODELS[name].model for name in MODELS] == [*MODELS]
    assert [DATASETS[name].name for name in DATASETS] == [*DATASETS]
    assert [find_task(name).name for name in TASKS] == [*TASKS]
    assert [EXPERIMENTS[name].name for name in EXPERIMENTS] == [*EXPERIMENTS]


def test_a_name_comes_back_as_it_is_known():
    assert check_name("model", "GCN", ["gcn"]) == "gcn"
    assert check_dataset("Cora") == "cora"
    assert check_dataset("Synthetic:N=20") == "Synthetic:N=20"


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [
        ("MODELS", "gnc", "gcn"),  # of which difflib makes gin
        ("MODELS", "GTA", "gat"),
        ("MODELS", "graphsage", "sage"),
        ("MODELS", "resgcn", "resgcn7"),
        ("DATASETS", "digtis", "digits"),
        ("DATASETS", "core", "cora"),
        ("DATASETS", "pubmd", "pubmed"),
        ("EXPERIMENTS", "fgi6", "fig6"),
        ("EXPERIMENTS", "tabel2", "table2"),
    ],
)
def test_a_typo_is_told_what_was_meant(kind, name, near):
    registry = getattr(_registry, kind)
    message = f"there is no {registry.kind} '{name}'.* {near!r}[?]"
    with pytest.raises(ValueError, match=message):
        registry.check(name)


def test_what_is_like_nothing_is_told_what_there_is():
    with pytest.raises(ValueError, match="no dataset 'xyz'; gebt knows digits, "):
        check_dataset("xyz")
    # Of many the one that was meant is enough.
    with pytest.raises(ValueError, match="no dataset 'cora:5' among .* mean 'cora'.$"):
        check_dataset("cora:5")
    with pytest.raises(ValueError, match="super-res.$"):
        MODELS.check("xyz")


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**30])
def test_a_count_is_at_least_one_and_one_that_can_be_counted_to(value):
    with pytest.raises(ValueError, match="`hidden` must be .*, got"):
        check_count("hidden", value)
