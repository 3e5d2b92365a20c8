"""Tickets through huggingface_hub itself, to a folder and to a server that is ours."""

import base64
import hashlib
import http.server
import json
import subprocess
import sys
import threading

import pytest
from helpers import built

import gebt

NEEDS = "huggingface_hub is not installed"


@pytest.fixture
def ticket(graph):
    return gebt.find_ticket(built(graph), graph, graph_ratio=0.3, weight_ratio=0.5)


def content(ticket, folder):
    """All of a ticket."""
    path = folder / "compared.safetensors"
    ticket.save(path)
    return path.read_bytes()


def test_a_folder_holds_the_tickets_own_file_and_a_card(ticket, tmp_path):
    pytest.importorskip("huggingface_hub", reason=NEEDS)
    ticket.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {p.name for p in folder.iterdir()} == {"README.md", "ticket.safetensors"}
    saved = (folder / "ticket.safetensors").read_bytes()
    assert saved == content(ticket, tmp_path)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: gebt\n") and str(ticket) in card
    assert content(gebt.Ticket.from_pretrained(folder), tmp_path) == saved


def test_a_folder_is_read_without_the_package(ticket, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "gebt.tickets.hub", raising=False)
    ticket.save(tmp_path / "ticket.safetensors")
    found = gebt.Ticket.from_pretrained(str(tmp_path))
    assert content(found, tmp_path) == content(ticket, tmp_path)
    for call in (
        lambda: ticket.save_pretrained(tmp_path),
        lambda: ticket.push_to_hub("me/mine"),
        lambda: gebt.Ticket.from_pretrained("me/mine"),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'gebt\[hub\]'"):
            call()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as uploads and downloads of small files ask for."""

    protocol_version = "HTTP/1.1"
    commit = "1" * 40

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.answer({"url": f"{self.server.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            rows = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer({"files": rows})
        else:
            for line in body.splitlines():
                if (row := json.loads(line))["key"] == "file":
                    content = base64.b64decode(row["value"]["content"])
                    self.server.files[row["value"]["path"]] = content
            url = f"{self.server.url}/me/mine/commit/{self.commit}"
            self.answer({"commitUrl": url, "commitOid": self.commit})

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked.append(self.path)
        if name not in self.server.files:
            self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        else:
            content = self.server.files[name]
            tag = hashlib.sha256(content).hexdigest()
            told = {"X-Repo-Commit": self.commit, "ETag": f'"{tag}"'}
            self.answer(content, 200, told)

    do_HEAD = do_GET

    def answer(self, content, status=200, told=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (told or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.files, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


CODE = """
import gebt

ticket = gebt.Ticket.load("ticket.safetensors")
print(ticket.push_to_hub("me/mine", private=True, token="hf_none"))
gebt.Ticket.from_pretrained("me/mine").save("again.safetensors")
"""


def test_a_ticket_goes_up_and_comes_down(ticket, hub, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason=NEEDS)
    ticket.save(tmp_path / "ticket.safetensors")
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.url}/me/mine/")
    assert {*hub.files} == {"README.md", "ticket.safetensors"}
    saved = (tmp_path / "ticket.safetensors").read_bytes()
    assert hub.files["ticket.safetensors"] == saved
    assert (tmp_path / "again.safetensors").read_bytes() == saved
