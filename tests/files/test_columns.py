"""Users' tables: what a column holds, by CSV and by Parquet, and what is refused."""

import csv
import gzip
import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gebt.files.columns import read_columns


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "t.csv"):
        path = tmp_path / name
        content = text.encode() if isinstance(text, str) else text
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz"])
def test_columns_are_whole_numbers_others_or_text(written, name):
    text = '\ufeffid,size,name,gap\r\n7,1.5,"a, ""b""",\r\n-2,1e3,ü#1,4\r\n\r\n'
    if ".tsv" in name:
        text = text.replace(",", "\t")
    table = read_columns(written(text, name))
    comma = "\t" if ".tsv" in name else ","
    assert [*table] == ["id", "size", "name", "gap"]
    assert [c.dtype.str[1:] for c in table.values()] == ["i8", "f4", "O", "O"]
    assert table["id"].tolist() == [7, -2]
    assert table["size"].tolist() == [1.5, 1000]
    assert table["name"].tolist() == [f'a{comma} "b"', "ü#1"]
    assert table["gap"].tolist() == ["", "4"]


def rows_of(first, last, others=1500):
    """A column of that many cells as the first, then another."""
    return "id,x\n" + f"1,{first}\n" * others + f"2,{last}\n"


def test_whole_numbers_may_be_others_further_down(written):
    table = read_columns(written(rows_of("3", "0.25")))
    assert table["x"].dtype == np.float32
    assert table["x"][[0, -1]].tolist() == [3, 0.25]
    assert table["id"].dtype == np.int64
    for cell in ("n/a", ""):
        mixed = read_columns(written(rows_of("3", cell)))
        assert mixed["x"].dtype == object and mixed["x"][[0, -1]].tolist() == [
            "3",
            cell,
        ]
    large = read_columns(written(rows_of("3", str(2**63))))
    assert large["x"].dtype == np.float32


@pytest.mark.parametrize(
    "text, said",
    [
        (rows_of("3", "4,5"), "row 1501 has 3 cells, but the header 2"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells, but the header 2"),
        ("1,2\n3,4\n", "has no header: it begins with '1,2'"),
        ("a,a\n1,2\n", "two columns called 'a'"),
        ("a,b\n", "has no rows"),
        ("", "has no rows"),
        (b"a,b\n\xff\xfe,1\n", "is not UTF-8 text"),
    ],
)
def test_what_is_no_such_table_is_refused_with_row_and_value(written, text, said):
    with pytest.raises(ValueError, match=said) as error:
        read_columns(written(text))
    assert "t.csv" in str(error.value)


def test_a_file_that_is_cut_short_is_refused(written):
    path = written(rows_of("3", "4"), "t.csv.gz")
    whole = path.read_bytes()
    for broken in (whole[:-20], whole[:40] + b"\0\1\2" + whole[43:], b"id,x\n1,2\n"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="cut short or garbled"):
            read_columns(path)
    with pytest.raises(FileNotFoundError):
        read_columns(path.with_name("other.csv"))


CELLS = {
    int: st.integers(-(2**62), 2**62).map(str),
    float: st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    str: st.text(string.ascii_letters + "ü ,\"'#", min_size=1, max_size=5),
}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_was_written_is_read(tmp_path_factory, data):
    kinds = data.draw(st.lists(st.sampled_from([*CELLS]), min_size=1, max_size=4))
    cells = st.tuples(*(CELLS[kind] for kind in kinds))
    rows = data.draw(st.lists(cells, min_size=1, max_size=8))
    path = tmp_path_factory.getbasetemp() / "drawn.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[f"c{k}" for k in range(len(kinds))], *rows])
    table = read_columns(path)
    for k, kind in enumerate(kinds):
        column = table[f"c{k}"]
        given_cells = [row[k] for row in rows]
        if kind is str:
            lowered = {cell.strip().lower() for cell in given_cells}
            if not lowered & {"nan", "inf"}:  # which are numbers, too
                assert column.tolist() == given_cells
        elif kind is int:
            assert column.tolist() == [int(cell) for cell in given_cells]
        else:
            expected = np.array([float(cell) for cell in given_cells], np.float32)
            assert np.array_equal(column.astype(np.float32), expected)


def test_garbled_bytes_are_a_table_or_one_clear_error(written):
    whole = rows_of("0.5", "1.5", others=20).encode()
    for seed in range(150):
        draw = random.Random(seed)
        changed = bytearray(whole)
        for _ in range(3):
            at = draw.randrange(len(changed))
            changed[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        path = written(bytes(changed))
        try:
            table = read_columns(path)
        except ValueError as error:
            assert str(path) in str(error), seed
        else:
            assert len({len(column) for column in table.values()}) == 1, seed


def test_parquet_is_read_as_csv_is(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    from pyarrow import parquet

    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4]), 2)
    columns = {
        "id": [7, -2],
        "size": [1.5, None],
        "name": ["a", None],
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "flag": [True, False],
        "vector": vectors,
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table(columns), path)
    table = read_columns(path)
    assert table["id"].dtype == np.int64 and table["id"].tolist() == [7, -2]
    assert table["size"][0] == 1.5 and np.isnan(table["size"][1])
    assert table["name"].tolist() == ["a", ""]
    assert table["kind"].tolist() == ["x", "y"]
    assert table["flag"].tolist() == [1, 0]
    assert table["vector"].tolist() == [[1, 2], [3, 4]]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_columns(path)
    uneven = pa.table({"id": [1, 2], "v": [[1.0], [1.0, 2.0]]})
    parquet.write_table(uneven, path)
    with pytest.raises(ValueError, match="'v' holds list.* vectors of several lengths"):
        read_columns(path)


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ValueError, match=r"pip install 'gebt\[tables\]'"):
        read_columns(tmp_path / "t.parquet")
