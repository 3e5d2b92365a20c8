"""The split that is drawn where none is published."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebt.graph import stratified


@given(st.lists(st.integers(-1, 4), max_size=80), st.integers(0, 2**32 - 1))
def test_each_class_is_split_60_20_20_and_the_unlabelled_left_out(classes, seed):
    y = np.array(classes, dtype=np.int64)
    split = stratified(y, seed)
    every = torch.cat([*split.values()]).numpy()
    assert sorted(every) == np.flatnonzero(y >= 0).tolist()
    for part, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        nodes = split[part].numpy()
        assert (np.diff(nodes) > 0).all()
        for c in range(5):
            there = int((y == c).sum())
            assert abs(int((y[nodes] == c).sum()) - share * there) < 1, part
        if part == "train":
            assert set(y[nodes]) == set(y[y >= 0])


def test_a_seed_draws_the_same_nodes_on_every_machine():
    y = np.arange(20) % 2
    assert stratified(y, 0)["val"].tolist() == [7, 11, 14, 16]
    assert stratified(y, 1)["val"].tolist() != [7, 11, 14, 16]
    with pytest.raises(ValueError):
        stratified(y, -1)
