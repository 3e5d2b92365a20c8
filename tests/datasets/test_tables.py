"""Tables of numbers, in blocks of any size."""

import gzip

import numpy as np
import pytest

from gebt.datasets.tables import read_table


def packed(path, *members: bytes):
    path.write_bytes(b"".join(map(gzip.compress, members)))
    return path


@pytest.mark.parametrize("block", [80, 81, 333, 2**24])
@pytest.mark.parametrize("kind", ["i4", "i8", "f4", "f8"])
def test_every_block_size_gives_the_same_table(tmp_path, monkeypatch, block, kind):
    monkeypatch.setattr("gebt.datasets.tables._BLOCK", block)
    draw = np.random.RandomState(block)
    if kind[0] == "i":
        table = draw.randint(-(2**31), 2**31, (50, 3)).astype(kind)
    else:
        table = (draw.standard_normal((50, 3)) * 10.0 ** draw.randint(-9, 9)).astype(
            kind
        )
    rows = [",".join(map(repr, row)).encode() for row in table.tolist()]
    for end in (b"\n", b""):
        path = packed(tmp_path / "t.csv.gz", b"\n".join(rows) + end)
        found = read_table(path, table.dtype, 50)
        assert found.dtype == table.dtype
        assert np.array_equal(found, table)


def test_a_file_may_be_of_several_members_and_hold_empty_lines(tmp_path):
    path = packed(tmp_path / "t.csv.gz", b"1,2\n", b"\n\n3,4\r\n", b"")
    assert read_table(path, np.int64, 9).tolist() == [[1, 2], [3, 4]]


def test_no_rows_are_no_rows(tmp_path):
    path = packed(tmp_path / "t.csv.gz", b"")
    assert read_table(path, np.int64, 9, 2).shape == (0, 2)


def test_memory_is_made_for_what_the_file_can_hold(tmp_path):
    # 10^15 rows are claimed, which no machine has room for.
    path = packed(tmp_path / "t.csv.gz", b"1,2\n3,4\n")
    assert read_table(path, np.int64, 10**15).tolist() == [[1, 2], [3, 4]]


def test_a_table_may_be_packed_as_tightly_as_can_be(tmp_path):
    path = packed(tmp_path / "t.csv.gz", b"0\n" * 10**6)
    assert read_table(path, np.int32, 10**6).shape == (10**6, 1)


def test_a_line_without_an_end_is_not_gathered_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("gebt.datasets.tables._BLOCK", 2**10)
    path = packed(tmp_path / "t.csv.gz", b"1" * 10**5)
    with pytest.raises(ValueError, match="t.csv.gz has a line of more than"):
        read_table(path, np.float64, 9)


@pytest.mark.parametrize(
    "text, said",
    [
        (b"1,2\n3\n", "number of columns changed from 2 to 1"),
        (b"1,2\n3,4\n5,6\n", "has more rows than 2"),
        (b"1;2\n", "'1;2'"),
        (b"\xff\xfe\n", "else than a table of numbers"),
        (b"1,2\n3,\n", "could not convert string ''"),
        (b"1,1e400\n", "inf"),
    ],
)
def test_what_is_no_such_table_is_named(tmp_path, text, said):
    path = packed(tmp_path / "t.csv.gz", text)
    if said == "inf":  # whoever asks for finite numbers looks
        assert np.isinf(read_table(path, np.float64, 2)).any()
        return
    with pytest.raises(ValueError, match=f"^t.csv.gz .*{said}"):
        read_table(path, np.float64, 2)
