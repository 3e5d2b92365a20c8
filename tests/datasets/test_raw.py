"""Arrays equal those of pickle and NumPy; what does not belong is refused."""

import io
import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from helpers import in_time
from ogb_layouts import saved_by_torch
from scipy.sparse import csr_matrix

from gebt.datasets.raw import (
    Sparse,
    check_range,
    distinct,
    read_npz,
    read_torch,
    unpickle,
)

TABLE = np.arange(12).reshape(3, 4) % 5
KINDS = ["i1", "<i4", ">i4", "<i8", "u2", "<f4", ">f8", "f2", "bool"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_equal_pickles_and_numpys(kind, order):
    array = np.asarray(TABLE.astype(kind), order=order)
    file = io.BytesIO()
    np.savez(file, table=array, row=array[0])
    npz = read_npz(file.getvalue(), ["table", "row"])
    assert np.array_equal(npz["row"], array[0])
    for read in (unpickle(pickle.dumps(array, 2)), npz["table"]):
        assert np.array_equal(read, array)
        assert read.dtype == array.dtype.newbyteorder("=") and read.dtype.isnative


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_values_equal_pickles(protocol):
    value = {
        "a": [1, -1, 255, 65536, 2**31 - 1, 1.5, None, True, False],
        3: ((), (1,), "é"),
    }
    value["again"] = [value["a"], (1, 2), (1, 2, 3), (1, 2, 3, 4)]
    assert unpickle(pickle.dumps(value, protocol)) == value


def test_a_sparse_matrix_adds_up_what_stands_at_one_position():
    given = csr_matrix(
        (np.array([1.0, 2.0, 4.0]), np.array([2, 2, 0]), np.array([0, 2, 2, 3])),
        shape=(3, 4),
    )
    matrix = unpickle(pickle.dumps(given, 2))
    assert isinstance(matrix, Sparse)
    assert matrix.to_dense().tolist() == [[0, 0, 3, 0], [0, 0, 0, 0], [4, 0, 0, 0]]


def test_a_truth_value_is_zero_or_one():
    content = pickle.dumps(np.array([True, False, True, True]), 3)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        unpickle(content.replace(b"\1\0\1\1", b"\1\0\1\2"))


def test_an_array_has_the_bytes_that_its_shape_asks_for():
    content = pickle.dumps(np.arange(1, 5, dtype="i4"), 3)
    assert content.count(b"K\x04\x85") == 1
    with pytest.raises(ValueError, match=r"shape \(5,\), but has 16 bytes"):
        unpickle(content.replace(b"K\x04\x85", b"K\x05\x85"))


def test_an_array_that_is_never_filled_is_refused():
    content = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    with pytest.raises(ValueError, match="describes 'array' in a way"):
        unpickle(content + b"K\x00\x85U\x01b\x87R.")


def test_a_name_is_shown_on_one_line():
    with pytest.raises(
        ValueError, match=r"would run 'os\.\\r\\x1b\[2Jsystem': refused"
    ):
        unpickle(b"\x80\x02cos\n\r\x1b[2Jsystem\n.")


def test_an_archive_that_lacks_an_array_is_refused():
    file = io.BytesIO()
    np.savez(file, there=TABLE)
    with pytest.raises(ValueError, match=r"lacks missing\.npy"):
        read_npz(file.getvalue(), ["there", "missing"])


def test_ranges_and_distinct_numbers():
    assert distinct(np.array([4, 0, 4, 2, 0])).tolist() == [0, 2, 4]
    check_range(np.array([0, 4]), 5, "node")
    with pytest.raises(ValueError, match=r"names node 5, outside of \[0, 5\)"):
        check_range(np.array([0, 5, -1]), 5, "node")


@pytest.mark.parametrize("torch_is", ["new", "old", "legacy", "tensors"])
def test_what_torch_saved_of_arrays_is_read(torch_is):
    held = {
        "edge": np.arange(12).reshape(6, 2),
        "weight": np.linspace(0, 1, 5, dtype=np.float32),
        "year": np.array([2017], dtype=np.int32),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    found = read_torch(saved_by_torch(held, torch_is))
    assert found.keys() == held.keys()
    for name, array in held.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_a_view_is_read_as_the_part_of_its_storage_that_it_is():
    whole = torch.arange(40).view(8, 5)
    file = io.BytesIO()
    torch.save({"turned": whole.t(), "part": whole[2:6:2, 1:4], "one": whole[3]}, file)
    found = read_torch(file.getvalue())
    assert np.array_equal(found["turned"], whole.t())
    assert np.array_equal(found["part"], whole[2:6:2, 1:4])
    assert np.array_equal(found["one"], whole[3])


@pytest.mark.parametrize(
    "value, zipped, said",
    [
        ({"a": torch.ones(2)}, False, "as torch wrote them before 1.6"),
        ({"a": torch.ones(3).expand(4, 3)}, True, "not positive"),
        ({"a": torch.ones(2, 2, 2)}, True, "a tensor of 3 dimensions"),
        ({"a": torch.ones(2).to(torch.bfloat16)}, True, "would run 'torch.BFloat16S"),
        ({"a": torch.ones(2).to_sparse()}, True, "would run 'torch._utils._rebuild_sp"),
        ({"a": torch.nn.Linear(1, 1)}, True, "would run 'torch.nn.modules"),
        ({3: np.ones(2)}, True, "has a int in the place of a str"),
        ([np.ones(2)], True, "else than a dict"),
        (np.ones(2), False, "else than a dict"),
    ],
)
def test_what_else_torch_saved_is_refused(value, zipped, said):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=said):
        read_torch(file.getvalue())


@pytest.mark.parametrize("torch_is", ["new", "old", "legacy", "tensors"])
def test_a_garbled_file_of_torchs_ends_in_an_error_or_in_arrays(torch_is, request):
    held = {"edge": np.arange(12).reshape(6, 2), "year": np.arange(6)}
    whole = saved_by_torch(held, torch_is)
    draw = np.random.RandomState(0)
    for _ in range(request.config.getoption("fuzz") // 4):
        content = bytearray(whole)
        for at in draw.randint(0, len(content), draw.randint(1, 4)):
            content[at] = draw.randint(256)
        if draw.randint(2):
            del content[draw.randint(len(content)) :]
        with in_time(2), suppress(Exception):
            found = read_torch(bytes(content))
            assert all(type(array) is np.ndarray for array in found.values())


def test_a_file_of_another_kind_is_no_file_of_torchs():
    for content in (b"", b"PK", b"\x80\x02}q\x00."):
        with pytest.raises(ValueError, match="is no file that torch.save wrote"):
            read_torch(content)
