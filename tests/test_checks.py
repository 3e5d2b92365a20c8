"""Names known without torch are those that there are, typos are met."""

import pytest

from gebt import _checks
from gebt._checks import check_count, check_dataset, check_name
from gebt._registry import EXPERIMENTS
from gebt.datasets import DATASETS
from gebt.learn.tasks import TASKS
from gebt.models.recipes import RECIPES


def test_the_names_are_those_that_there_are():
    assert _checks.MODELS == tuple(RECIPES)
    assert _checks.DATASETS == tuple(DATASETS)
    assert _checks.TASKS == tuple(TASKS)
    assert _checks.EXPERIMENTS == tuple(EXPERIMENTS)


def test_a_name_comes_back_as_it_is_known():
    assert check_name("model", "GCN", RECIPES) == "gcn"
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
    known = getattr(_checks, kind)
    with pytest.raises(ValueError, match=f"there is no thing '{name}'.* {near!r}[?]"):
        check_name("thing", name, known)


def test_what_is_like_nothing_is_told_what_there_is():
    with pytest.raises(ValueError, match="no dataset 'cora:5'; gebt knows digits, "):
        check_dataset("cora:5")
    with pytest.raises(ValueError, match="resgcn28.$"):
        check_name("model", "xyz", _checks.MODELS)


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**30])
def test_a_count_is_at_least_one_and_one_that_can_be_counted_to(value):
    with pytest.raises(ValueError, match="`hidden` must be .*, got"):
        check_count("hidden", value)
