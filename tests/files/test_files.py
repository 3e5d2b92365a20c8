import csv
import itertools
import json
import math
import os
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gebt import files


def test_write_bytes_makes_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["c.bin"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    files.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "theirs")]
    assert modes[0] == modes[1]


def test_a_write_that_fails_midway_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_bytes(path, b"old")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_permissions_are_the_system_s_work_and_nothing_global_changes(
    tmp_path, monkeypatch
):
    def refuse(*_: object) -> None:
        raise AssertionError("other threads would write with this umask")

    before = os.umask(0o027)
    monkeypatch.setattr(os, "umask", refuse)
    try:
        files.write_bytes(tmp_path / "ours", b"")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640


def test_a_file_is_on_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path, monkeypatch
):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        events.append("sync folder" if folder else "sync file")
        assert folder or os.fstat(handle).st_size == 3
        fsync(handle)

    def record_replace(*paths: Path) -> None:
        events.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    files.write_bytes(tmp_path / "a", b"one")
    assert events == ["sync file", "replace", "sync folder"]


def test_where_folders_cannot_be_synced_a_file_is_written_all_the_same(
    tmp_path, monkeypatch
):
    def refuse(*_: object) -> None:
        raise PermissionError("a folder is not opened here")

    monkeypatch.setattr(os, "open", refuse)
    files.write_bytes(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_ctrl_c_right_after_the_rename_is_ctrl_c(tmp_path, monkeypatch):
    replace = os.replace

    def replace_and_interrupt(*paths: Path) -> None:
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_others_may_read_tensors_as_far_as_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_tensors(tmp_path / "a", {"x": torch.ones(3)}, {"kind": "thing"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_tensors_may_share_memory(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    parts = {"whole": whole, "turned": whole.t(), "row": whole[1], "none": whole[:0]}
    files.write_tensors(tmp_path / "a", parts, {"kind": "thing"})
    tensors, _ = files.read_tensors(tmp_path / "a", "thing")
    assert all(torch.equal(tensors.content[name], parts[name]) for name in parts)


# Between a block's last line and its end Python itself forgets to close the file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a"
    interrupted, tracer = 0, sys.gettrace()
    writers = [f.__code__ for f in (files.write_bytes, files._replacing.__wrapped__)]
    for line in itertools.count(1):
        files.write_bytes(path, b"old")
        seen = itertools.count(1)

        def interrupt(frame: object, event: str, _: object, line=line, seen=seen):
            if event == "line" and next(seen) == line:
                raise KeyboardInterrupt
            return interrupt

        def trace(frame, *_: object, interrupt=interrupt):
            return interrupt if frame.f_code in writers else None

        sys.settrace(trace)
        try:
            files.write_bytes(path, b"new")
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(tracer)
        assert path.read_bytes() in (b"old", b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert interrupted > 5 and path.read_bytes() == b"new"


def test_a_write_cut_short_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "result.json"
    files.write_bytes(path, b"old")
    with pytest.raises(TypeError):
        files.write_bytes(path, "text, not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_content_that_cannot_be_written_does_not_touch_the_file(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"fine": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"bad": object()})
    assert json.loads(path.read_text()) == {"fine": 1}


def test_json_is_strict_and_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "result.json"
    nan, inf = float("nan"), float("inf")
    content = {"a": nan, "b": [inf, 1.5, (-inf, {"c": nan})], "d": "NaN", "e": True}
    files.write_json(path, content)
    text = path.read_text()
    assert text.endswith("}\n")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "a": None,
        "b": [None, 1.5, [None, {"c": None}]],
        "d": "NaN",
        "e": True,
    }


def test_csv_has_the_first_row_s_columns(tmp_path):
    path = tmp_path / "rows.csv"
    files.write_csv(path, [{"a": 1, "b": "x, y"}, {"b": "é", "a": 2}])
    assert path.read_bytes() == 'a,b\n1,"x, y"\n2,é\n'.encode()
    with path.open(newline="", encoding="utf-8") as file:
        assert [row["b"] for row in csv.DictReader(file)] == ["x, y", "é"]
    with pytest.raises(ValueError, match="fields not in fieldnames: 'c'"):
        files.write_csv(path, [{"a": 1}, {"a": 2, "c": 3}])


def tensors_of_every_kind() -> dict[str, torch.Tensor]:
    return {
        "mask": torch.tensor([True, False, True]),
        "weight": torch.randn(3, 4).t(),  # not contiguous
        "learned": torch.nn.Parameter(torch.randn(5)),
        "wide": torch.ones(1).expand(6),
        "half": torch.randn(2).bfloat16(),
        "none": torch.empty(0, 3),
        "index": torch.tensor([2**40]),
    }


def test_tensors_and_header_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = tensors_of_every_kind()
    header = {
        "kind": "ticket",
        "epoch": 3,
        "options": {"lr": 0.1},
        "loss": float("nan"),
    }
    files.write_tensors(path, tensors, header)
    read, found = files.read_tensors(path, "ticket")
    assert found.content == header | {"loss": None}
    assert read.content.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read.content[name].dtype == tensor.dtype
        assert torch.equal(read.content[name], tensor.detach())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, tensors_of_every_kind(), {"kind": "ticket"})
    return path


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_refused(whole, keep):
    whole.write_bytes(whole.read_bytes()[:keep])
    words = r"a\.safetensors is not a readable ticket file \(truncated or corrupt"
    with pytest.raises(ValueError, match=words):
        files.read_tensors(whole, "ticket")


def container(entries: object, size: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file by hand: its header, the length it claims, and its data."""
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def entry(dtype: str, shape: list[int], end: int) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "content",
    [
        container({}, 2**63),
        container({}, 2**40),
        container({}, 10**8),
        container(entry("F32", [10**12], 4 * 10**12)),
        container(entry("F32", [2**33, 2**33], 0)),
        container(entry("F32", [2**62, 4], 0)),
        container(entry("F32", [1], -4), data=bytes(4)),
        container(entry("F6_E2M3", [4], 3), data=bytes(3)),
        container(entry("F8_E8M0", [4], 4), data=bytes(4)),
        container(entry("X", [4], 4), data=bytes(4)),
        container([]),
        container({"__metadata__": {"gebt": {}}}),
        container({"__metadata__": 3}),
    ],
)
def test_sizes_and_types_that_a_file_only_claims_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.safetensors is not a .* ticket"):
        files.read_tensors(path, "ticket")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"kind": NaN}',
        '{"kind": "ticket", "kind": "ticket"}',
        '{"a": ' * 10**5,
        '{"a": ' + "9" * 5000 + "}",
        '{"kind": "ticket", "sha256": []}',
        '{"kind": ["ticket"]}',
    ],
)
def test_a_header_that_is_none_of_gebts_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"gebt": text})
    with pytest.raises(ValueError, match=r"a\.safetensors is .*ticket") as error:
        files.read_tensors(path, "ticket")
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_file_of_something_else_is_refused(whole):
    whole.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(ValueError, match="not a readable ticket file"):
        files.read_tensors(whole, "ticket")


def test_a_file_of_another_kind_is_refused(whole):
    with pytest.raises(ValueError, match="not a gebt model.*kind = 'ticket'"):
        files.read_tensors(whole, "model")
    for metadata in (None, {"kind": "ticket"}, {"format": "pt"}):  # somebody else's
        save_file({"a": torch.ones(2)}, whole, metadata=metadata)
        with pytest.raises(ValueError, match="ticket"):
            files.read_tensors(whole, "ticket")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda t: t.mask("mask", (4,)), r"'mask' must be boolean of shape \(4\), is"),
        (lambda t: t.mask("index", (1,)), "'index' must be boolean of shape"),
        (lambda t: t.numbers("mask", (None,)), r"must be floating of shape \(any\)"),
        (lambda t: t.numbers("weight", (None,)), r"is torch.float32 \(4, 3\)"),
        (lambda t: t.numbers("broken", (1,)), "'broken' must be finite, but holds NaN"),
        (lambda t: t.index("weight", (4, 3), 9), "must be int32 or int64 of shape"),
        (lambda t: t.index("index", (1,), 7), r"must lie in \[0, 7\), but has 109951"),
        (lambda t: t.index("other", (1,), 7), "it lacks 'other'"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_by_file_and_name(ask, words):
    content = tensors_of_every_kind() | {"broken": torch.tensor([math.nan])}
    tensors = files.Tensors(content, "a is not a whole ticket")
    with pytest.raises(ValueError, match=f"a is not a whole ticket: .*{words}"):
        ask(tensors)
    assert tensors.mask("mask", (None,)) is content["mask"]
    assert tensors.numbers("weight", (4, None)) is content["weight"]
    assert tensors.index("index", (1,), 2**41) is content["index"]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no ticket file at"):
            files.read_tensors(path, "ticket")
    (tmp_path / "ticket.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match="a folder. Name .*: ticket.safetensors"
    ):
        files.read_tensors(tmp_path, "ticket")


def fields(**content: object) -> files.Fields:
    return files.Fields(content, "a.json is not a whole record")


def test_fields_come_back_as_what_they_were_asked_for():
    found = fields(
        name="digits",
        seed=2**40,
        share=1,
        nothing=None,
        settled=False,
        hidden=[4, 0],
        runs=[{"test": 12.5}],
    )
    assert found.text("name") == found.text("name", ["digits", "cora"]) == "digits"
    assert found.whole("seed", 0) == 2**40
    assert found.number("share", 0, 1) == 1 and type(found.number("share")) is float
    assert math.isnan(found.number("nothing", null=True))
    assert found.flag("settled") is False
    assert found.wholes("hidden", 0, 4) == [4, 0]
    assert [run.number("test") for run in found.each("runs")] == [12.5]
    assert "name" in found and "nothing" not in found and "other" not in found
    assert list(found)[:2] == ["name", "seed"]


@pytest.mark.parametrize(
    ("ask", "value", "words"),
    [
        (lambda f: f.text("a"), 1, "`a` must be text, got 1"),
        (lambda f: f.text("a", ["b", "c"]), "d", "`a` must be one of b, c, got 'd'"),
        (lambda f: f.flag("a"), 1, "`a` must be true or false, got 1"),
        (lambda f: f.whole("a", 0), 1.0, "`a` must be a whole number, got 1.0"),
        (lambda f: f.whole("a", 0), True, "`a` must be a whole number, got True"),
        (lambda f: f.whole("a", 1, 9), 10**30, "`a` must be a whole number from 1 to"),
        (lambda f: f.number("a"), "1", "`a` must be a finite number, got '1'"),
        (lambda f: f.number("a"), None, "`a` must be a finite number, got None"),
        (lambda f: f.number("a"), math.inf, "`a` must be a finite number, got inf"),
        (lambda f: f.number("a"), 10**400, "`a` must be a finite number, got 1000"),
        (
            lambda f: f.number("a", 0, 1, null=True),
            2,
            "`a` must be a finite number at least 0 and at most 1 or null, got 2",
        ),
        (lambda f: f.fields("a"), [], r"`a` must be an object, got \[\]"),
        (lambda f: f.fields("a").text("b"), {}, "it lacks 'b' in `a`"),
        (lambda f: f.fields("a").text("b"), {"b": 1}, "`a.b` must be text, got 1"),
        (lambda f: f.each("a"), {}, "`a` must be a list of objects, got {}"),
        (lambda f: f.each("a"), [{}, 3], r"`a\[1\]` must be an object, got 3"),
        (lambda f: f.wholes("a", 0), [1, "x"], r"`a\[1\]` must be a whole number, got"),
        (lambda f: f.text("b"), 0, "it lacks 'b'"),
        (lambda f: f.text("a"), ["x" * 1000] * 1000, "`a` must be text, got .{,999}$"),
    ],
)
def test_a_field_of_another_kind_is_refused_by_file_place_and_value(ask, value, words):
    with pytest.raises(
        ValueError, match=f"a.json is not a whole record: {words}.*"
    ) as e:
        ask(fields(a=value))
    assert str(e.value).endswith(". Write it again.") and len(str(e.value)) < 999


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1, "b": 2, "a": 3}', "it names 'a' twice"),
        (b"[" * 10**5, "recursion"),
        (b'{"a": ' * 10**5, "recursion"),
        (b"1" * 5000, "Exceeds the limit"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"{}{}", "Extra data"),
        (b"", "Expecting value"),
        (b"[1]", r"its content must be an object, got \[1\]"),
        (b"null", "its content must be an object, got None"),
    ],
)
def test_json_that_gebt_would_not_write_is_refused_in_one_line(
    tmp_path, content, words
):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json is not a whole record: .*{words}"):
        files.read_json(path, "record")


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": math.nan, "b": [1, {"c": "é"}]})
    found = files.read_json(path, "record")
    assert found.content == {"a": None, "b": [1, {"c": "é"}]}
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="there is no record at"):
            files.read_json(missing, "record")


def test_what_is_empty_has_a_hash_whatever_its_strides():
    odd, plain = torch.from_numpy(np.array([], "int64")), torch.empty(0).long()
    assert files.hash_of({"a": odd}) == files.hash_of({"a": plain})
