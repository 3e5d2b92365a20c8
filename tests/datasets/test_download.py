"""Archives from a server that breaks off, lies, or sends what it should not."""

import http.server
import io
import stat
import threading
import zipfile
from collections.abc import Iterator

import pytest
from ogb_layouts import draw_nodes, write_nodes, zipped

from gebt import load
from gebt.datasets import ogb
from gebt.datasets.download import fetch_archive


class Server(http.server.ThreadingHTTPServer):
    """Sends one file, whatever is asked for, with the faults it is told of.

    Attributes:
        content: the file.
        stops: after so many bytes of each answer the connection breaks off.
        ranges: whether it knows of them.
        longer: bytes that it promises and does not have.
        status: what it answers instead, if not 0.
        asked: the ranges asked for, in order.
    """

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.stops = 2**60
        self.ranges, self.longer, self.status = True, 0, 0
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        start = int(asked[6:-1]) if server.ranges and asked else 0
        size = len(server.content)
        if server.status:
            return self.send_error(server.status)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if server.ranges else 200)
        if server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start + server.longer))
        self.end_headers()
        self.wfile.write(server.content[start:][: server.stops])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Server]:
    """A server of the archive of a small ogbn-arxiv."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = write_nodes(tmp_path / "published", draw_nodes(3))
    server = Server(zipped(folder, "arxiv"))
    monkeypatch.setattr(ogb, "SOURCE", server.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_missing_is_downloaded_and_unpacked(served, root, tmp_path, caplog):
    caplog.set_level("INFO", "gebt")
    graph = load("ogbn-arxiv", root)
    assert (
        graph.fingerprint() == load("ogbn-arxiv", tmp_path / "published").fingerprint()
    )
    assert names(root) == ["ogbn_arxiv"]
    assert served.asked == ["bytes=0-"]
    said = [r.getMessage() for r in caplog.records]
    assert any(s.startswith("downloading arxiv.zip: ") and "MiB/s" in s for s in said)
    load("ogbn-arxiv", root)
    assert len(served.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_is_taken_up_again(served, root, ranges):
    whole = len(served.content)
    served.stops, served.ranges = whole // 3 + 1, ranges
    if ranges:
        assert load("ogbn-arxiv", root).num_nodes == 240
        third = whole // 3 + 1
        assert served.asked == [f"bytes={k * third}-" for k in range(3)]
        return
    # Without ranges every try begins anew, and gets no further.
    with pytest.raises(FileNotFoundError, match="the server stops after"):
        load("ogbn-arxiv", root)
    assert names(root) == ["arxiv.zip.part"]
    served.stops = whole
    assert load("ogbn-arxiv", root).num_nodes == 240
    assert names(root) == ["ogbn_arxiv"]


def test_what_an_earlier_process_got_is_not_sent_again(served, root):
    root.mkdir()
    have = len(served.content) // 2
    (root / "arxiv.zip.part").write_bytes(served.content[:have])
    assert load("ogbn-arxiv", root).num_nodes == 240
    assert served.asked == [f"bytes={have}-"]


def test_a_whole_first_part_is_taken_as_it_is(served, root):
    root.mkdir()
    (root / "arxiv.zip.part").write_bytes(served.content)
    assert load("ogbn-arxiv", root).num_nodes == 240
    assert served.asked == [f"bytes={len(served.content)}-"]


def test_a_first_part_of_something_else_is_found_out(served, root):
    root.mkdir()
    (root / "arxiv.zip.part").write_bytes(served.content + b"more")
    assert load("ogbn-arxiv", root).num_nodes == 240  # longer than the file: anew
    (tmp := root.parent / "other").mkdir()
    other = bytes(len(served.content) // 2)
    (tmp / "arxiv.zip.part").write_bytes(other)
    with pytest.raises(ValueError, match="arxiv.zip is damaged.*It was deleted"):
        load("ogbn-arxiv", tmp)
    assert names(tmp) == []
    assert load("ogbn-arxiv", tmp).num_nodes == 240


def test_a_server_that_promises_more_than_it_has_is_asked_for_the_rest(served, root):
    served.longer = 1000
    assert load("ogbn-arxiv", root).num_nodes == 240
    whole = len(served.content)
    assert served.asked == ["bytes=0-", f"bytes={whole}-"]  # of which there is none


def test_a_server_that_promises_less_is_told_of(served, root):
    served.longer = -1000
    with pytest.raises(ValueError, match="arxiv.zip is damaged"):
        load("ogbn-arxiv", root)
    assert not root.exists()


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_says_what_to_put_where(served, root, status):
    served.status = status
    with pytest.raises(FileNotFoundError) as error:
        load("ogbn-arxiv", root)
    assert f"(HTTPError: HTTP Error {status}" in str(error.value)
    put = f"Put {served.url}/nodeproppred/arxiv.zip there as it is, or unpacked, so "
    assert put in str(error.value)
    assert not root.exists()


def test_an_archive_that_was_put_there_by_hand_needs_no_network(served, root):
    root.mkdir()
    (root / "arxiv.zip").write_bytes(served.content)
    assert load("ogbn-arxiv", root).num_nodes == 240
    assert served.asked == []
    assert names(root) == ["arxiv.zip", "ogbn_arxiv"]


def test_of_several_processes_one_downloads(served, root):
    graphs = []
    threads = [
        threading.Thread(target=lambda: graphs.append(load("ogbn-arxiv", root)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({graph.fingerprint() for graph in graphs}) == 1 == len(served.asked)


def packed(*members, link=None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in members:
            archive.writestr(name, held)
        if link:
            member = zipfile.ZipInfo(link)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "/etc")
    return content.getvalue()


def twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return packed(("top/a", "1"), ("top/a", "2"))


def encrypted() -> bytes:
    content = bytearray(packed(("top/a", "1")))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    "content, said",
    [
        (lambda: packed(("top/../../out", "1")), r"would write to 'top/../../out'"),
        (lambda: packed(("top/a", "1"), ("/out", "1")), "would write to '/out'"),
        (lambda: packed(("top/a\\..\\..\\b", "1")), "would write to"),
        (lambda: packed(("C:/out", "1")), "would write to 'C:/out'"),
        (lambda: packed(("top/a", "1"), link="top/b"), "'top/b' is no plain file"),
        (lambda: packed(("top/zeros", bytes(10**7))), "too much to be true"),
        (twice, "'top/a' is encrypted, or there twice"),
        (encrypted, "'top/a' is encrypted"),
        (lambda: packed(("other/a", "1")), "has no folder top"),
        (lambda: packed(("top/a", "1" * 99))[:-9], "zip file"),
        (lambda: packed(("top/a", "1")).replace(b"top/a", b"top/\0", 1), "differ"),
        (lambda: b"<html>", "File is not a zip file"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be_leaves_nothing(
    served, tmp_path, content, said
):
    root = tmp_path / "deep" / "root"
    served.content = content()
    with pytest.raises(ValueError, match=f"set.zip is damaged.*{said}.*try again"):
        fetch_archive(f"{served.url}/set.zip", root, "top", root / "set")
    assert names(root) == []
    assert names(tmp_path) == ["deep", "published"]
    assert names(tmp_path / "deep") == ["root"]


def test_a_damaged_member_leaves_nothing(served, root):
    content = bytearray(served.content)
    content[len(content) // 2] ^= 255
    served.content = bytes(content)
    with pytest.raises(ValueError, match="arxiv.zip is damaged"):
        load("ogbn-arxiv", root)
    assert not root.exists()


def test_an_archive_put_there_by_hand_is_never_deleted(root):
    root.mkdir()
    (root / "set.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="set.zip is damaged.*Put another there"):
        fetch_archive("http://127.0.0.1:9/set.zip", root, "top", root / "set")
    assert names(root) == ["set.zip"]
