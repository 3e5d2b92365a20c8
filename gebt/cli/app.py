"""The command line. The only room that prints; torch is imported by the commands."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gebt import __version__
from gebt._checks import (
    EXPERIMENTS,
    MODELS,
    TASKS,
    check_count,
    check_dataset,
    check_dropout,
    check_name,
    check_not_negative,
    check_positive,
    check_ratio,
)

if TYPE_CHECKING:
    from gebt.experiments.run import OnEpoch
    from gebt.graph import Graph
    from gebt.learn.tasks import Task
    from gebt.learn.training import Epoch
    from gebt.models.recipes import Recipe
    from gebt.report.page import Page
    from gebt.report.page import Table as PageTable
    from gebt.tickets.ticket import Ticket

app = typer.Typer(
    name="gebt",
    help="Graph early-bird tickets: train a sparse graph and sparse GCN weights "
    "together, stop when both are stable, retrain only those, and run them faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out_console = Console()
_SMALL = 20_000_000
"""Entries of features and adjacency below which one thread is used: on two a Cora
epoch is no faster, and far slower as soon as something else wants a core."""


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def _checked(check: Callable[[str, Any], object]) -> Any:
    """A callback that checks an option, or each of a list, before torch is loaded."""

    def callback(param: typer.CallbackParam, value: Any) -> Any:
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                check(str(param.name), each)
        return value

    return callback


DatasetName = Annotated[
    str,
    typer.Argument(
        help="Graph to load; see [bold]gebt datasets[/].",
        callback=_checked(lambda _, name: check_dataset(name)),
    ),
]
TicketPath = Annotated[
    Path, typer.Argument(metavar="TICKET", help="A ticket.safetensors file.")
]
GraphRatio = Annotated[
    float,
    typer.Option(
        help="Share of links to remove, in [0, 1).",
        metavar="SHARE",
        callback=_checked(check_ratio),
    ),
]
WeightRatio = Annotated[
    float,
    typer.Option(
        help="Share of weights to remove, in [0, 1).",
        metavar="SHARE",
        callback=_checked(check_ratio),
    ),
]
_MODEL = "[dim]default: the model's[/]"


def _of_the_model(
    help_text: str, metavar: str, check: Callable[[str, Any], object]
) -> Any:
    return typer.Option(
        help=f"{help_text} {_MODEL}",
        metavar=metavar,
        show_default=False,
        callback=_checked(check),
    )


Model = Annotated[
    str,
    typer.Option(
        help="Model to train; see [bold]gebt models[/].",
        metavar="NAME",
        callback=_checked(lambda kind, name: check_name(kind, name, MODELS)),
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="node-classification, multi-label or link-prediction, for which links are "
        "held out; by default what the labels say.",
        metavar="NAME",
        show_default=False,
        callback=_checked(lambda kind, name: check_name(kind, name, TASKS)),
    ),
]
Hidden = Annotated[
    int | None, _of_the_model("Width of the hidden layers.", "N", check_count)
]
Dropout = Annotated[float | None, _of_the_model("Dropout.", "SHARE", check_dropout)]
LearningRate = Annotated[
    float | None,
    _of_the_model("Learning rate of the weights.", "RATE", check_positive),
]
WeightDecay = Annotated[
    float | None, _of_the_model("Weight decay.", "RATE", check_not_negative)
]
Epochs = Annotated[
    int | None,
    _of_the_model(
        "Epochs of each training; the search may use as many.", "N", check_count
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        help="How many seeds to run.",
        metavar="N",
        callback=_checked(lambda name, seeds: check_count(name, seeds, 10_000)),
    ),
]
Seed = Annotated[int, typer.Option(help="First seed.", min=0, max=2**32, metavar="N")]
Threshold = Annotated[
    float,
    typer.Option(
        help="Mask distance below which a ticket counts as stable.",
        callback=_checked(check_positive),
    ),
]
Window = Annotated[
    int,
    typer.Option(
        help="Comparisons that must all be below the threshold.",
        metavar="N",
        callback=_checked(check_count),
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the datasets; by default $GEBT_DATA, else ./data.",
        metavar="DIR",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write; by default runs/<dataset>-<time>.",
        metavar="DIR",
        show_default=False,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Take a folder that holds something; an earlier run's files in it go.",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to run; auto takes a GPU.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print nothing but the folder's name.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.")
    ] = False,
) -> None:
    if version:
        print(f"gebt {__version__}")
        raise typer.Exit()


@app.command()
def run(
    dataset: DatasetName,
    graph_ratio: GraphRatio = 0.2,
    weight_ratio: WeightRatio = 0.9,
    model: Model = "gcn",
    task: TaskName = None,
    hidden: Hidden = None,
    dropout: Dropout = None,
    lr: LearningRate = None,
    weight_decay: WeightDecay = None,
    epochs: Epochs = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    threshold: Threshold = 0.1,
    window: Window = 3,
    root: Root = None,
    out: Out = None,
    force: Force = False,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Train dense, draw the joint ticket, retrain it, compact it, compare the two."""
    _check_something_to_prune(graph_ratio, weight_ratio)
    from gebt.experiments.record import summary_table
    from gebt.experiments.run import RUN_FILES, Options, run_seeds

    recipe = _recipe(model, task, hidden, dropout, lr, weight_decay, epochs)
    options = Options(recipe, graph_ratio, weight_ratio, threshold, window)
    graph, learned = _load(dataset, root, device, task)
    folder = out or _default_folder(graph.name)
    asked = range(seed, seed + seeds)
    names = ["metrics.json", *RUN_FILES]
    if seeds > 1:
        names += [f"seed-{each}/{name}" for each in asked for name in RUN_FILES]
    with (
        _results(folder, names, force=force),
        _progress(recipe.fit.epochs, seeds, quiet) as show,
    ):
        record = run_seeds(graph, learned, options, asked, folder, show)
    if not quiet:
        _print_table(summary_table(record))
    _tell_folder(folder, quiet)


@app.command()
def search(
    dataset: DatasetName,
    graph_ratio: GraphRatio = 0.2,
    weight_ratio: WeightRatio = 0.9,
    model: Model = "gcn",
    task: TaskName = None,
    hidden: Hidden = None,
    dropout: Dropout = None,
    lr: LearningRate = None,
    weight_decay: WeightDecay = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    threshold: Threshold = 0.1,
    window: Window = 3,
    root: Root = None,
    out: Out = None,
    force: Force = False,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Draw a joint ticket and write it, without retraining it."""
    _check_something_to_prune(graph_ratio, weight_ratio)
    from gebt.experiments import run as pipeline
    from gebt.files import write_csv

    recipe = _recipe(model, task, hidden, dropout, lr, weight_decay, epochs)
    options = pipeline.Options(recipe, graph_ratio, weight_ratio, threshold, window)
    graph, learned = _load(dataset, root, device, task)
    folder = out or _default_folder(graph.name)
    names = ("ticket.safetensors", "history.csv", "distances.csv")
    with _results(folder, names, force=force):
        network = pipeline.new_model(graph, recipe, learned, seed)
        with _progress(recipe.fit.epochs, 1, quiet) as show:
            recorder = pipeline.Recorder(show)
            with recorder.phase("search") as hook:
                ticket, detector = pipeline.search(
                    network, graph, learned, options, seed, hook
                )
        ticket.save(folder / "ticket.safetensors")
        write_csv(folder / "history.csv", recorder.rows)
        if distances := detector.pairs():
            write_csv(folder / "distances.csv", distances)
    if not quiet:
        found = pipeline.describe(ticket, network)
        state = "settled" if ticket.settled else "[bold]not settled[/]"
        out_console.print(
            f"Ticket drawn at epoch {ticket.epoch} ({state}) in "
            f"{recorder.seconds['search']:.2f} s: "
            f"{_share(found.links_kept, found.links)} links, "
            f"{_share(found.weights_kept, found.weights)} weights."
        )
        if ticket.share_untouched:
            out_console.print(
                f"{ticket.links_untouched:,} of the links never received a gradient; "
                "among them those to keep were drawn."
            )
    _tell_folder(folder, quiet)


@app.command()
def retrain(
    ticket_path: TicketPath,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs of retraining; by default as many as the search was allowed.",
            metavar="N",
            show_default=False,
            callback=_checked(check_count),
        ),
    ] = None,
    root: Root = None,
    out: Out = None,
    force: Force = False,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Retrain a ticket with its inherited weights, compact it, and measure it."""
    from gebt.experiments.record import summary_table
    from gebt.experiments.run import RETRAIN_FILES, retrain_alone
    from gebt.models import build_model
    from gebt.tickets.ticket import Ticket

    ticket = Ticket.load(ticket_path)
    epochs = ticket.options["epochs"] if epochs is None else epochs
    check_count("epochs", epochs)
    graph, task = _load_of(ticket, root, device)
    model = build_model(dict(ticket.model)).to(graph.adjacency.device)
    ticket.open(model, graph)  # a ticket that does not fit fails before any folder
    folder = out or _default_folder(graph.name)
    name = ticket_path.name
    with (
        _results(folder, RETRAIN_FILES, force=force, spare=ticket_path),
        _progress(epochs, 1, quiet) as show,
    ):
        record = retrain_alone(ticket, name, model, graph, task, epochs, folder, show)
    if not quiet:
        _print_table(summary_table(record))
    _tell_folder(folder, quiet)


@app.command()
def cost(
    ticket_path: TicketPath, root: Root = None, device: DeviceOption = Device.auto
) -> None:
    """Measure what inference costs: dense, masked ticket, compact ticket."""
    from gebt.deploy.compaction import compact
    from gebt.deploy.cost import measure_cost
    from gebt.models import build_model
    from gebt.tickets.ticket import Ticket

    ticket = Ticket.load(ticket_path)
    graph, _ = _load_of(ticket, root, device)
    model = build_model(dict(ticket.model)).to(graph.adjacency.device)
    small = ticket.open(model, graph)
    dense = build_model(dict(ticket.model)).to(graph.adjacency.device)
    dense.load_state_dict(dict(ticket.weights))
    costs = {
        "dense": measure_cost(dense, graph),
        "ticket, masked": measure_cost(model, small),
        "ticket, compact": measure_cost(*compact(model, small)),
    }
    table = Table(title=f"One forward over {graph.name}", title_justify="left")
    table.add_column("")
    for name in costs:
        table.add_column(name, justify="right")
    for title, show in (
        ("inference, ms (median)", lambda c: f"{c.latency_ms:.2f}"),
        ("MACs, paper's convention", lambda c: _millions(c.macs_paper)),
        ("MACs executed", lambda c: _millions(c.macs_executed)),
        ("parameters, KiB", lambda c: f"{c.parameter_bytes / 1024:.1f}"),
        ("index bytes, KiB", lambda c: f"{c.index_bytes / 1024:.1f}"),
        ("peak memory, MiB", lambda c: f"{c.peak_mib:.0f}"),
    ):
        table.add_row(title, *(show(c) for c in costs.values()))
    out_console.print(table)
    out_console.print(
        "The compact form's MACs by the paper's convention count only the features "
        "it still reads.",
        style="dim",
    )


@app.command()
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="fig1, fig2, fig4, fig6 or table2 of You et al. 2022, with baselines.",
            callback=_checked(lambda _, n: check_name("experiment", n, EXPERIMENTS)),
        ),
    ],
    graph: Annotated[
        list[str],
        typer.Option(
            help="Graph to run on; give it again for more.",
            metavar="NAME",
            callback=_checked(lambda _, name: check_dataset(name)),
        ),
    ] = ["cora", "citeseer"],  # noqa: B006 (typer needs a list)
    seeds: Seeds = 10,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="At most 20 epochs: shows that all works, not figures."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier call stopped.")
    ] = False,
    root: Root = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; by default runs/<name>.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment of the paper with baselines; writes CSV, figures and a page."""
    from gebt._registry import EXPERIMENTS
    from gebt.experiments.report import check_figures, page_of, write_report
    from gebt.experiments.runner import TABLES
    from gebt.experiments.runner import reproduce as run_experiment

    check_figures()
    experiment = EXPERIMENTS.find(name)
    folder = out or Path("runs") / experiment.name
    begun = (folder / "experiment.json").is_file()
    if begun and not (resume or force):
        raise FileExistsError(
            f"{folder} holds an experiment already: --resume goes on with it, --force "
            "begins again."
        )
    names = ["experiment.json", *(f"{table}.csv" for table in TABLES), "report.html"]
    hint = "; the same command with --resume goes on"
    go_on = resume and begun
    with _results(folder, names, force=force, resume=go_on, hint=hint):
        with _counting(experiment.name, quiet) as show:
            run_experiment(
                experiment,
                folder,
                graphs=graph,
                seeds=seeds,
                quick=quick,
                root=root,
                on_done=show,
            )
        if not quiet:
            _print_tables(page_of(folder))
        write_report([folder], folder, root)
    _tell_folder(folder, quiet)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Folders of gebt run, retrain or reproduce."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html and figures/; by default the first one.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    root: Root = None,
) -> None:
    """Make a page with tables and figures of runs, to look at in a browser."""
    from gebt.experiments.report import write_report

    print(f"Written: {write_report(folders, out or folders[0], root)}")


bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
def inference(
    dataset: DatasetName,
    hidden: Annotated[
        list[int],
        typer.Option(
            help="Width of a hidden layer; again for more.",
            metavar="N",
            callback=_checked(check_count),
        ),
    ] = [256, 256],  # noqa: B006 (typer needs a list)
    graph_ratio: Annotated[
        list[float],
        typer.Option(
            help="Share of links to remove; again for more.",
            metavar="SHARE",
            callback=_checked(check_ratio),
        ),
    ] = [0.2, 0.5, 0.8],  # noqa: B006
    weight_ratio: WeightRatio = 0.9,
    repeats: Annotated[int, typer.Option(help="Timed forwards of each.", min=1)] = 10,
    root: Root = None,
    out: Out = None,
    force: Force = False,
    device: DeviceOption = Device.cpu,
    quiet: Quiet = False,
) -> None:
    """Time a GCN's forward: PyG's and gebt's dense one, masked and compact tickets."""
    from gebt.experiments.inference import inference_costs, inference_page
    from gebt.experiments.report import check_figures
    from gebt.files import write_csv
    from gebt.report.page import write_pages

    check_figures()
    graph, _ = _load(dataset, root, device, "node-classification")
    folder = out or _default_folder(f"inference-{graph.name}")
    ratios = [(ratio, weight_ratio) for ratio in graph_ratio]
    with _results(folder, ("inference.csv", "report.html"), force=force):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the masks did not settle")
            rows = inference_costs(graph, hidden=hidden, ratios=ratios, repeats=repeats)
        write_csv(folder / "inference.csv", rows)
        page = inference_page(graph.name, rows)
        if not quiet:
            _print_tables(page)
        write_pages([page], folder)
    _tell_folder(folder, quiet)


@app.command()
def models(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as in the README.")
    ] = False,
) -> None:
    """List the models, with how they are trained by default, and the tasks."""
    from gebt.learn.tasks import TASKS
    from gebt.models.recipes import RECIPES, TITLES, row

    tasks = [
        (name, str(task.__doc__).partition("\n")[0]) for name, task in TASKS.items()
    ]
    for title, header, rows in (
        ("Models", TITLES, [row(recipe) for recipe in RECIPES.values()]),
        ("Tasks", ("--task", "what is learned: loss; metric"), tasks),
    ):
        if markdown:
            lines = [header, ["---"] * len(header), *rows]
            print("\n".join(f"| {' | '.join(cells)} |" for cells in lines), end="\n\n")
            continue
        table = Table(title=title, title_justify="left")
        for name in header:
            table.add_column(name)
        for cells in rows:
            table.add_row(*cells)
        out_console.print(table)
    if not markdown:
        out_console.print(
            "Link prediction: hidden 128 (16 a head), dropout 0.3, no weight decay.",
            style="dim",
        )


@app.command()
def datasets(root: Root = None) -> None:
    """List the graphs that can be loaded and whether they are on disk."""
    from gebt.datasets import DATASETS, find_root

    folder = find_root(root)
    table = Table(title=f"Datasets below {folder}", title_justify="left")
    for title in ("name", "on disk", "what"):
        table.add_column(title)
    for name, dataset in DATASETS.items():
        built_in = "built in" if not dataset.files else ""
        there = "yes" if dataset.on_disk(folder) else "no"
        table.add_row(name, built_in or there, dataset.about)
    out_console.print(table)


def main() -> None:
    """Run the command line: every error is one line and exit code 2."""
    # Large tensors on huge pages, where Linux allows it: a fresh 87 MB tensor takes
    # 60 ms of page faults without. torch reads this at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    warnings.showwarning = _show_warning
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("gebt: %(message)s"))
    logging.getLogger("gebt").addHandler(handler)
    logging.getLogger("gebt").setLevel(logging.INFO)
    # typer vendors click in its newer releases, so its classes are found this way.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        code = app(standalone_mode=False, prog_name="gebt")
        if sys.stdout:  # here a full device is told of; at exit it would be ignored
            sys.stdout.flush()
    except _Interrupted as error:
        _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted.", 130)
    except BrokenPipeError:  # whoever read the output has seen enough
        _leave(1)
    except (ValueError, OSError) as error:
        text = re.sub(r"^\[Errno \d+\] ", "", str(error))
        _fail(_ARGUMENT.sub(lambda m: f"`--{m[1].replace('_', '-')}`", text))
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise
        wanted = re.search(r"allocate ([\d.]+ \w+)", str(error))
        size = f": {wanted[1]} at once were asked for" if wanted else ""
        _fail(f"not enough memory{size}. Take a smaller graph or a narrower model.")
    except usage_error as error:
        message = getattr(error, "format_message", error.__str__)()
        if not message:  # the help was asked for and printed
            _leave(getattr(error, "exit_code", 2))
        _fail(f"{message.rstrip('.')}. See `gebt --help`.")
    if code == 130:  # typer's own answer to Ctrl-C
        _fail("interrupted.", 130)
    _leave(code if isinstance(code, int) else 0)


_OUT_OF_MEMORY = re.compile("allocate memory|out of memory|size calculation overflowed")
_ARGUMENT = re.compile(
    "`(graph_ratio|weight_ratio|hidden|dropout|lr|weight_decay|epochs|threshold|window"
    "|seeds|seed)`"
)
"""Names that the library's errors give to what is a flag here."""


def _fail(message: str, code: int = 2) -> NoReturn:
    with suppress(OSError):
        print(f"gebt: {' '.join(message.split())}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit, without a word about output that nobody takes."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python would try again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"gebt: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _check_something_to_prune(graph_ratio: float, weight_ratio: float) -> None:
    if graph_ratio == 0 and weight_ratio == 0:
        raise ValueError(
            "`--graph-ratio` and `--weight-ratio` are both 0: nothing to prune."
        )


def _recipe(
    model: str,
    task: str | None,
    hidden: int | None,
    dropout: float | None,
    lr: float | None,
    weight_decay: float | None,
    epochs: int | None,
) -> "Recipe":
    """The model's recipe with what was given on the command line."""
    from gebt.learn.tasks import LinkPrediction
    from gebt.models.recipes import find_recipe, for_links

    recipe = find_recipe(model)
    if task == LinkPrediction.name:
        recipe = for_links(recipe)
    given = {
        "hidden": hidden,
        "dropout": dropout,
        "lr": lr,
        "weight_decay": weight_decay,
        "epochs": epochs,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return recipe.changed(**given)


def _load_of(
    ticket: "Ticket", root: Path | None, device: Device
) -> tuple["Graph", "Task"]:
    """The graph and the task that a ticket was drawn for."""
    return _load(ticket.dataset["name"], root, device, ticket.options.get("task"))


def _load(
    dataset: str,
    root: Path | None,
    device: Device,
    described: str | Mapping[str, Any] | None,
) -> tuple["Graph", "Task"]:
    import torch

    from gebt.datasets import load
    from gebt.experiments.run import prepare
    from gebt.learn.tasks import find_task, task_for

    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError(
            "`--device cuda` was asked for, but torch sees no CUDA device. Use "
            "`--device cpu`, or install a CUDA build of torch on a machine with a GPU."
        )
    asked = find_task(described) if described else None
    graph = load(dataset, root)
    task = asked or task_for(graph)
    graph = prepare(graph, task)
    size = graph.adjacency.pattern.nnz + graph.x.shape[0] * graph.x.shape[1]
    if size < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    on_gpu = device is Device.cuda or (
        device is Device.auto and torch.cuda.is_available()
    )
    return (graph.to("cuda") if on_gpu else graph), task


@contextmanager
def _results(
    folder: Path, names: Collection[str], *, hint: str = "", **options: Any
) -> Iterator[None]:
    """`results_folder`; an interruption names it, if something is in it."""
    from gebt.files.folders import results_folder

    try:
        with results_folder(folder, names, **options):
            yield
    except KeyboardInterrupt as error:
        kept = any((folder / name).exists() for name in names)
        state = f"what was finished is in {folder}{hint}" if kept else "nothing written"
        raise _Interrupted(f"interrupted; {state}.") from error


class _Interrupted(Exception):
    """Ctrl-C, and what it left."""


def _default_folder(dataset: str) -> Path:
    base = Path("runs") / f"{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


@contextmanager
def _counting(what: str, quiet: bool) -> Iterator["Callable[[int, int], None] | None"]:
    """A bar with the time left on a terminal, a line every twentieth elsewhere."""
    if quiet:
        yield None
    elif out_console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} runs"),
            TimeRemainingColumn(),
            console=out_console,
        ) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        started = time.perf_counter()
        first: list[int] = []

        def show(done: int, total: int) -> None:
            first.append(done)
            if done in (first[0], total) or done % max(1, total // 20) == 0:
                passed = time.perf_counter() - started
                here = done - first[0]
                left = f", {passed / here * (total - done):.0f} s left" if here else ""
                print(f"{passed:6.0f} s  {what}  {done}/{total} runs{left}", flush=True)

        yield show


@contextmanager
def _progress(epochs: int, seeds: int, quiet: bool) -> Iterator["OnEpoch | None"]:
    """A live line per phase on a terminal, a plain line per phase elsewhere."""
    if quiet:
        yield None
    elif out_console.is_terminal:
        with Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:>3}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=out_console,
        ) as bars:
            yield _live(bars, epochs, seeds)
    else:
        yield _plain(epochs)


def _live(bars: Progress, epochs: int, seeds: int) -> "OnEpoch":
    total = bars.add_task("seeds", total=seeds, state="") if seeds > 1 else None
    tasks: dict[str, Any] = {}

    def show(phase: str, epoch: "Epoch") -> None:
        if epoch.epoch == 1 and phase in tasks:
            for task in tasks.values():
                bars.remove_task(task)
            tasks.clear()
        if phase not in tasks:
            for other in tasks.values():
                bars.stop_task(other)
            tasks[phase] = bars.add_task(phase, total=epochs, state="")
        bars.update(tasks[phase], completed=epoch.epoch, state=_state(epoch))
        if total is not None and phase == "retrain" and epoch.epoch == epochs:
            bars.advance(total)

    return show


def _plain(epochs: int) -> "OnEpoch":
    started = time.perf_counter()
    every = max(1, epochs // 4)
    waiting: list[str] = []  # the last line, until it is due or its phase is over

    def show(phase: str, epoch: "Epoch") -> None:
        if epoch.epoch == 1 and waiting:
            print(waiting.pop(), flush=True)
        passed = time.perf_counter() - started
        counter = f"epoch {epoch.epoch:>3}/{epochs}"
        waiting[:] = [f"{passed:6.1f} s  {phase:<8} {counter}  {_state(epoch)}"]
        if epoch.epoch % every == 0:
            print(waiting.pop(), flush=True)

    return show


def _state(epoch: "Epoch") -> str:
    text = f"loss {epoch.loss:.3f}  val {epoch.val:5.1f}%"
    if epoch.distances:
        parts = [
            f"{name} {epoch.distances[name]:.2f}"
            for name in ("graph", "weights", "joint")
            if name in epoch.distances
        ]
        text += "  distance: " + ", ".join(parts)
    return text


def _print_tables(page: "Page") -> None:
    from gebt.report.page import Table as PageTable

    for section in page.sections:
        for item in section.items:
            if isinstance(item, PageTable):
                _print_table(item)


def _print_table(found: "PageTable") -> None:
    texts: Any = {"title": escape(found.title), "caption": escape(found.note)}
    table = Table(**texts, title_justify="left", caption_justify="left")
    for place, title in enumerate(found.header):
        justify: Any = "right" if place else "left"
        table.add_column(escape(title), justify=justify, overflow="fold")
    for cells in found.rows:
        table.add_row(*map(escape, cells))
    out_console.print(table)


def _tell_folder(folder: Path, quiet: bool) -> None:
    if quiet:
        print(folder)
    else:
        # Plain print: rich would wrap a long path.
        print(f"Written: {folder}{os.sep}")


def _share(kept: int, total: int) -> str:
    return f"{kept:,} of {total:,}"


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f} M"
