"""Arrays equal those of pickle and NumPy; what does not belong is refused."""

import io
import pickle

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from gebt.datasets.raw import Sparse, check_range, distinct, read_npz, unpickle

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
