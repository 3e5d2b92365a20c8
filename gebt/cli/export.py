"""`gebt export`: a compact model as a file that needs no gebt where it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gebt._checks import check_choice, check_export
from gebt.cli.flags import flags
from gebt.options import ExportInputs


def _checked_path(path: Path) -> Path:
    check_export(path)
    return path


def _checked_inputs(inputs: str) -> str:
    check_choice("inputs", inputs, ExportInputs)
    return inputs


@flags
def export(
    compact_path: Annotated[
        Path,
        typer.Argument(
            metavar="COMPACT", help="A compact.safetensors file, as gebt run writes it."
        ),
    ],
    out_path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="What to write: a .pt2 file, for torch, or an .onnx file, for ONNX "
            "Runtime and others.",
            callback=_checked_path,
        ),
    ],
    inputs: Annotated[
        str,
        typer.Option(
            help="What the program takes: none (features and graph are in the file); "
            "features, of the same nodes; or graph, features and edges of any nodes.",
            metavar="WHAT",
            callback=_checked_inputs,
        ),
    ] = "none",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Write a compact model as a program that runs where gebt is not installed."""
    if out_path.exists() and not force:
        raise FileExistsError(
            f"{out_path} exists. Choose another name, or pass --force to replace it."
        )
    from gebt.deploy.export import export as write
    from gebt.deploy.storage import load_compact

    how: Any = {"inputs": inputs}
    write(out_path, *load_compact(compact_path), **how)
    print(f"Written: {out_path}")
