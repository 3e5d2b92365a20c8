"""A compact model as a file that runs without gebt: torch's or ONNX's program.

The model is traced as it stands, and gebt's own operations in the trace are then
written as torch's, or as what ONNX has.
"""

import hashlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_choice, check_export
from gebt._version import __version__
from gebt.files import Fields, parsed, write_bytes
from gebt.graph import Graph, check_graph
from gebt.kernels import backend
from gebt.models import describe_model
from gebt.options import ExportInputs
from gebt.prune.weights import check_not_compiled, check_not_pruned
from gebt.sparse import Pattern, SparseMatrix

EXPORTED = "exported model"
_MEMBER = "gebt.json"
_ONNX_MOST = 2**31  # bytes of a protobuf message, with what is added


@torch.no_grad()
def export(
    path: str | Path, model: nn.Module, graph: Graph, *, inputs: ExportInputs = "none"
) -> None:
    """Write a compact model as a program that needs no gebt where it runs.

    ``torch.export.load(path).module()`` is the program of a ``.pt2`` file, which
    needs torch alone; one of ``.onnx`` runs in ONNX Runtime, and its output is
    called ``logits``. Both give (N, C), as the model does, in the nodes' given order.
    The file's header says what it holds: see `read_export`.

    Args:
        path: ending in ``.pt2`` or ``.onnx``; to write the latter needs extra
            ``export``.
        model: one of gebt's, or a registered one that multiplies by ``adjacency`` and
            does nothing else with it; dense or compact, not changed.
        graph: what it runs on.
        inputs: what the program takes. ``"none"``: nothing, the features and the
            graph are in the file. ``"features"``: x (N, F), dense, of the same nodes
            and, after `compact`, of the graph's ``columns``. ``"graph"``: such x
            (n, F), ``edge_index`` (2, e) int64 of sources and
            targets, in any order, and ``edge_weight`` (e,), of any graph of two or
            more nodes and edges, without self-loops and repeated edges.

    Raises:
        ValueError: if the suffix is another, a package is missing, or the model cannot
            be traced.
    """
    path = Path(path)
    check_export(path)
    check_choice("inputs", inputs, ExportInputs)
    check_graph(graph)
    check_not_compiled(model)
    check_not_pruned(model)
    if graph.share is not None:
        raise ValueError(
            "cannot export a graph that ranks share: save it, by `gebt.save_compact`, "
            "and export the file in one process."
        )
    written_as, content_of = _FORMATS[path.suffix]
    columns = graph.columns
    try:
        with _quiet():
            traced, outputs = _traced(model, graph, inputs, written_as)
            header = {
                "kind": EXPORTED,
                "gebt": __version__,
                "torch": torch.__version__,
                "inputs": inputs,
                "outputs": outputs,
                "model": describe_model(model),
                "graph": {
                    "name": graph.name,
                    "nodes": graph.num_nodes,
                    "links": graph.links_kept,
                    "features": graph.num_features,
                    "columns": None if columns is None else columns.tolist(),
                    "metric": graph.metric,
                    "fingerprint": graph.fingerprint(),
                },
            }
            content = content_of(traced, header)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch's exporters raise errors of many classes
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot export this {type(model).__name__} to {path.suffix}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    write_bytes(path, content)


class _Program(nn.Module):
    """The model with what of the graph the program does not take."""

    def __init__(self, model: nn.Module, graph: Graph, inputs: ExportInputs):
        super().__init__()
        self.model = deepcopy(model).eval().requires_grad_(False)
        if inputs == "graph":
            return
        # Copies, so that nothing that the trace derives is kept with the caller's.
        x, adjacency = graph.x, graph.adjacency
        self.adjacency = _Plain(_again(adjacency.pattern), adjacency.value.detach())
        if inputs == "none" and isinstance(x, SparseMatrix):
            self.x: Any = SparseMatrix(_again(x.pattern), x.value.detach())
        elif inputs == "none":
            self.x = x.detach()
        self.order = graph.order
        self.place = None if graph.order is None else graph.order.argsort()

    def forward(
        self,
        x: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        if x is not None and edge_index is not None and edge_weight is not None:
            return self.model(x, _sorted(edge_index, edge_weight, x.shape[0]))
        if x is None:
            x = self.x
        elif self.order is not None:
            x = x.index_select(0, self.order)
        out = self.model(x, self.adjacency)
        return out if self.place is None else out.index_select(0, self.place)


class _Plain(SparseMatrix):
    """A matrix that no kernel multiplies by together with its scales.

    Args:
        pattern, value: of a `SparseMatrix`.
        given: whether it is an input of the program. Then nothing that is derived of
            it can be computed beforehand, and as little as possible is.
    """

    def __init__(self, pattern: Pattern, value: Tensor, *, given: bool = False):
        super().__init__(pattern, value)
        self._given = given

    @property
    def factored(self) -> bool:
        """Whether a model had better not write out scaled values."""
        return self._given

    @property
    def fused(self) -> bool:
        """No."""
        return False


def _again(pattern: Pattern) -> Pattern:
    return Pattern(pattern.crow, pattern.col, pattern.shape)


def _sorted(edge_index: Tensor, edge_weight: Tensor, nodes: int) -> SparseMatrix:
    """The adjacency (N, N) of edges in any order."""
    row, order = edge_index[1].sort()
    counts = row.new_zeros(nodes + 1).index_add(0, row + 1, torch.ones_like(row))
    col = edge_index[0].index_select(0, order)
    pattern = Pattern(counts.cumsum(0), col, (nodes, nodes))
    pattern.row = row  # known, so not found again
    return _Plain(pattern, edge_weight.index_select(0, order), given=True)


def _traced(
    model: nn.Module,
    graph: Graph,
    inputs: ExportInputs,
    written_as: dict[Any, Callable[..., Any]],
) -> tuple[Any, int]:
    """The exported program, of no operations but torch's, and C."""
    program = _Program(model, graph, inputs)
    how: Any = {"dtype": graph.adjacency.dtype, "device": graph.adjacency.device}
    auto = torch.export.Dim.AUTO
    given: tuple[Tensor, ...] = ()
    sizes: dict[str, Any] = {}
    if inputs == "features":
        given, sizes = (torch.zeros(graph.x.shape, **how),), {"x": {}}
    elif inputs == "graph":  # any will do: a ring, both ways
        ends = torch.arange(5, device=how["device"])
        ring = torch.stack([ends, ends.roll(1)])
        edges = torch.cat([ring, ring.flip(0)], dim=1)
        x = torch.zeros(5, graph.num_features, **how)
        given = x, edges, torch.ones(10, **how)
        sizes = {"x": {0: auto}, "edge_index": {1: auto}, "edge_weight": {0: auto}}
    # Run, so that what is derived of constants is kept and not traced.
    outputs = program(*given).shape[1]
    # Tracing, torch computes what is constant: not by a CSR product, all but float32's.
    single = how["dtype"] == torch.float32
    with nullcontext() if single else backend("reference"):
        traced: Any = torch.export.export(
            program, given, dynamic_shapes=sizes or None, strict=False
        ).run_decompositions(written_as)
    traced.example_inputs = None  # it would go into the file
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return traced, outputs


def _bag(crow: Tensor, col: Tensor, value: Tensor, x: Tensor, *_: Any) -> Tensor:
    """A product by `embedding_bag`: 5 to 70 times as fast as gathering and adding."""
    if 0 in (col.shape[0], x.shape[1]):  # which it does not take
        return x.new_zeros(crow.shape[0] - 1, x.shape[1])
    return torch.embedding_bag(x, col, crow, False, 0, False, value, True)[0]


def _scatter(crow: Tensor, col: Tensor, value: Tensor, x: Tensor, *_: Any) -> Tensor:
    """A product by what becomes Gather and ScatterND.

    `scatter_add` and `index_add` would become ScatterElements, which took 14 times as
    long on a million entries.
    """
    row = _rows(crow, col.shape[0])
    out = x.new_zeros(crow.shape[0] - 1, x.shape[1])
    messages = value[:, None] * x.index_select(0, col)
    return out.index_put((row,), messages, accumulate=True)


def _softmax(crow: Tensor, score: Tensor) -> Tensor:
    """Softmax over the entries of each row."""
    row = _rows(crow, score.shape[0])
    least = score.new_full((crow.shape[0] - 1,), float("-inf"))
    top = least.scatter_reduce(0, row, score, "amax")
    weight = (score - top.index_select(0, row)).exp()
    total = torch.zeros_like(top).scatter_add(0, row, weight)
    return weight / total.index_select(0, row)


def _rows(crow: Tensor, entries: int) -> Tensor:
    """(E,) int64 the row of each entry: how many rows end before it or at it."""
    ends = crow[1:].long()
    ended = ends.new_zeros(entries + 1)
    ended = ended.index_put((ends,), torch.ones_like(ends), accumulate=True)
    return ended.cumsum(0)[:entries]


def _repeats(rows: Tensor, repeats: Tensor, dim: Any = None, **size: int) -> Tensor:
    """Torch's `repeat_interleave`, which ONNX has not for a size that is given."""
    crow = torch.nn.functional.pad(repeats.cumsum(0), (1, 0))
    return rows.index_select(0, _rows(crow, size["output_size"]))


def _to_pt2(traced: Any, header: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.export.save(traced, content, extra_files={_MEMBER: json.dumps(header)})
    return content.getvalue()


def _to_onnx(traced: Any, header: dict[str, Any]) -> bytes:
    program: Any = torch.onnx.export(
        traced, dynamo=True, output_names=["logits"], verbose=False
    )
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
    if (size := model.ByteSize()) >= _ONNX_MOST:
        raise ValueError(
            f"a file of ONNX holds less than 2 GiB, and this would be of {size:,} "
            "bytes. Export to .pt2."
        )
    header = header | {"sha256": _checksum(model)}
    model.metadata_props.add(key="gebt", value=json.dumps(header))
    return model.SerializeToString()


def _checksum(model: Any) -> str:
    """Of the program with its numbers: unlike a zip a protobuf message has none."""
    content = model.graph.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()


_OURS, _ATEN = torch.ops.gebt, torch.ops.aten
_FORMATS: dict[str, tuple[dict[Any, Callable[..., Any]], Callable[..., bytes]]] = {
    ".pt2": (
        {_OURS.spmm.default: _bag, _OURS.edge_softmax.default: _softmax},
        _to_pt2,
    ),
    ".onnx": (
        {
            _OURS.spmm.default: _scatter,
            _OURS.edge_softmax.default: _softmax,
            _ATEN.repeat_interleave.self_Tensor: _repeats,
        },
        _to_onnx,
    ),
}
"""By suffix, what some operations are written as, and how a file is made."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of themselves and of absent packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def read_export(path: str | Path) -> Fields:
    """What an exported file says that it holds; nothing of it runs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupt or something else.
    """
    path = Path(path)
    check_export(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {EXPORTED} at {path}.")
    whole = f"{path} is not a whole {EXPORTED}"
    try:
        text = _header_of_pt2(path) if path.suffix == ".pt2" else _header_of_onnx(path)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of classes of zipfile, zlib, protobuf
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{whole} (truncated or corrupt: {reason}). Write it again."
        ) from error
    header = Fields(parsed(text, whole), whole)
    header.text("kind", [EXPORTED])
    return header


def _header_of_pt2(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} does not match its checksum")
        names = [n for n in archive.namelist() if n.endswith(f"/{_MEMBER}")]
        if not names:
            raise ValueError("gebt has not written it")
        return archive.read(names[0]).decode()


def _header_of_onnx(path: Path) -> str:
    import onnx

    model = onnx.load_model_from_string(path.read_bytes())
    found = {prop.key: prop.value for prop in model.metadata_props}
    if "gebt" not in found:
        raise ValueError("gebt has not written it")
    if json.loads(found["gebt"]).get("sha256") != _checksum(model):
        raise ValueError("its contents do not match its checksum")
    return found["gebt"]
