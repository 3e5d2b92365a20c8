"""Predictions of nodes over HTTP, from a file of `gebt export`; needs torch alone.

    python serve.py model.pt2 [--port 8000] [--fresh]

    GET /predict?node=0,5   {"nodes": [0, 5], "classes": [3, 1], "scores": [[...], ...]}

The graph's outputs are computed once, at the start; with --fresh for every request, as
where something that the program reads changes. Scores are probabilities.
"""

import argparse
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import torch


class Predictions:
    """What a program that takes nothing gives, node by node."""

    def __init__(self, path: str, fresh: bool = False):
        self.program = torch.export.load(path).module()
        self.fresh = fresh
        self.scores = self.compute()

    @torch.no_grad()
    def compute(self) -> torch.Tensor:
        """(N, C) probabilities."""
        return self.program().softmax(dim=1)

    def of(self, nodes: list[int]) -> dict[str, list]:
        """The answer for some nodes."""
        if not nodes:
            raise ValueError("name nodes: /predict?node=0,5")
        if outside := [n for n in nodes if not 0 <= n < len(self.scores)]:
            raise ValueError(f"nodes are 0 to {len(self.scores) - 1}, not {outside[0]}")
        scores = (self.compute() if self.fresh else self.scores)[nodes]
        classes = scores.argmax(dim=1).tolist()
        return {"nodes": nodes, "classes": classes, "scores": scores.tolist()}


def server_of(predictions: Predictions, port: int) -> ThreadingHTTPServer:
    """A server on this machine; port 0 takes one that is free."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True

        def do_GET(self) -> None:  # noqa: N802
            url = urlsplit(self.path)
            status, answer = HTTPStatus.OK, {}
            try:
                if url.path != "/predict":
                    raise FileNotFoundError(url.path)
                given = ",".join(parse_qs(url.query).get("node", []))
                answer = predictions.of([int(n) for n in given.split(",") if n])
            except ValueError as error:
                status, answer = HTTPStatus.BAD_REQUEST, {"error": str(error)}
            except FileNotFoundError:
                status, answer = HTTPStatus.NOT_FOUND, {"error": "GET /predict?node=0"}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with server_of(Predictions(args.file, args.fresh), args.port) as server:
        print(f"http://127.0.0.1:{server.server_port}/predict?node=0", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
