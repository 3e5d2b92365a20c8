"""The commands. torch is imported inside them."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gebt._checks import check_count
from gebt._registry import (
    DATASETS,
    EXPERIMENTS,
    MODELS,
    SUPERNETS,
    TASKS,
    check_dataset,
    load_plugins,
)
from gebt._version import __version__
from gebt.cli.common import default_folder, load_graph, load_of, recipe_of, results
from gebt.cli.config import CONFIG, Call
from gebt.cli.export import export
from gebt.cli.flags import (
    Changes,
    CheckpointEvery,
    DatasetFacts,
    DatasetName,
    Device,
    DeviceOption,
    Drawn,
    ExperimentName,
    Force,
    FromTicket,
    Frozen,
    GraphRatios,
    GraphsOrDefault,
    MaxDrop,
    Model,
    ModelOrRecipe,
    ObjectiveName,
    OneSplit,
    Out,
    Quiet,
    RecipeName,
    RetrainEpochs,
    Root,
    Seed,
    Seeds,
    Splits,
    Tables,
    TaskName,
    TensorBoard,
    TicketOrGraph,
    TicketPath,
    WeightRatio,
    Widths,
    check_new_model,
    flags,
    folder_by_default,
)
from gebt.cli.plan import plan
from gebt.cli.ranks import RANKS
from gebt.cli.resume import resumable, resume
from gebt.cli.show import (
    counting,
    out_console,
    print_costs,
    print_groups,
    print_rows,
    print_table,
    print_tables,
    progress,
    tell_folder,
    tell_of_ticket,
)
from gebt.cli.sweep import sweep
from gebt.cli.tensorboard import events
from gebt.cli.verify import verify

app = typer.Typer(
    name="gebt",
    help="Graph early-bird tickets: train a sparse graph and sparse GCN weights "
    "together, stop when both are stable, retrain only those, and run them faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


_SHARED = ("run", "search", "retrain")
"""The commands that several ranks can run together."""


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.")
    ] = False,
) -> None:
    if version:
        print(f"gebt {__version__}")
        raise typer.Exit()
    if RANKS > 1 and context.invoked_subcommand not in (None, *_SHARED):
        raise ValueError(
            f"torchrun has started {RANKS} processes, and `gebt "
            f"{context.invoked_subcommand}` runs in one; several run "
            f"{', '.join(_SHARED)}. Start it without torchrun."
        )


@app.command()
@flags
def run(
    dataset: DatasetName,
    *,
    own: Tables,
    max_drop: MaxDrop = None,
    objective: ObjectiveName = "inference",
    recipe: RecipeName = None,
    model: ModelOrRecipe = None,
    drawn: Drawn,
    task: TaskName = None,
    changes: Changes,
    seeds: Seeds = 1,
    seed: Seed = 0,
    split: OneSplit = None,
    splits: Splits = None,
    root: Root = None,
    out: Out = None,
    checkpoint_every: CheckpointEvery = None,
    force: Force = False,
    device: DeviceOption = Device.auto,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    call: Call,
) -> None:
    """Find the cheapest ticket that is no worse than the dense model, or draw one.

    Units, weights and links leave as long as the validation score holds; what is
    left is compacted. Shows the frontier of accuracy against milliseconds. With a
    ratio, or --recipe paper: one ticket at the two ratios, as the paper draws it.
    """
    dataset = own.named(dataset)
    one = _asks_for_one(drawn, max_drop, recipe, model)
    if one and objective != "inference":
        raise ValueError(
            f"`--objective {objective}` is of the cheapest ticket: leave out what asks "
            "for one at two ratios."
        )
    max_drop = 0.5 if max_drop is None else max_drop
    if one:
        check_new_model(drawn.criterion)
    named = model or recipe or ("paper" if one else "auto")
    from gebt.experiments.cheapest import (
        FILES,
        frontier_items,
        read_frontier,
        run_cheapest,
    )
    from gebt.experiments.record import summary_table
    from gebt.experiments.run import RUN_FILES, Options, run_seeds
    from gebt.learn.recipes import choose_dense, recipes_for

    if splits and (seeds > 1 or split is not None):
        other = f"`--seeds {seeds}`" if seeds > 1 else f"`--split {split}`"
        raise ValueError(
            f"`--splits {splits}` runs each split once, with a seed of its own: leave "
            f"out {other}."
        )
    graph, learned = load_graph(dataset, root, device, task, split)
    recipes = [r.changed(**changes) for r in recipes_for(named, graph, learned)]
    resolved = recipes[0].described() if len(recipes) == 1 else {}
    resolved |= {"model": model, "recipe": recipe if model else named}
    resolved |= drawn.options(model) if one else {"max_drop": max_drop}
    resolved |= {"task": task or learned.name, "device": graph.adjacency.device.type}
    loaded = (load_graph(dataset, root, device, task, k)[0] for k in range(splits or 0))
    # All share the memory of the one.
    each = [replace(graph, name=other.name, split=other.split) for other in loaded]
    seeds = splits or seeds
    folder = graph.world.told(out or default_folder(graph.name))
    asked = range(seed, seed + seeds)
    written = RUN_FILES if one else FILES
    names = ["metrics.json", CONFIG, *written]
    if seeds > 1:
        names += [f"seed-{each}/{name}" for each in asked for name in written]
    tables = []
    with (
        resumable(folder, names, graph, call, checkpoint_every, force=force),
        progress(seeds, quiet) as shown,
        events(tensorboard, folder, graph, shown, asked) as show,
    ):
        if one:
            if len(recipes) > 1:
                recipes = [choose_dense(recipes, graph, learned, seed).recipe]
            options = Options(recipes[0], **drawn.options(model))
            record = run_seeds(
                graph, learned, options, asked, folder, show, splits=each
            )
        else:
            ranks = [drawn.criterion] if drawn.criterion else None
            how: Any = {"max_drop": max_drop, "criteria": ranks, "on_epoch": show}
            how |= {"named": named, "objective": objective, "splits": each}
            record = run_cheapest(graph, learned, recipes, asked, folder, **how)
            if frontier := read_frontier(folder):  # which the first rank has written
                tables.append(frontier_items(frontier, record.metric)[0])
        if graph.world.rank == 0:
            call.save(folder / CONFIG, **resolved)
    if not quiet:
        for table in (*tables, summary_table(record)):
            print_table(table)
    tell_folder(folder, quiet)


def _asks_for_one(
    drawn: Drawn, max_drop: float | None, recipe: str | None, model: str | None
) -> bool:
    """Whether one ticket is asked for; refuse what says both or nothing."""
    if recipe and model and recipe != "paper":
        raise ValueError(
            f"`--recipe {recipe}` says which model is trained: leave out `--model`."
        )
    given = [f"--{n.replace('_', '-')}" for n in drawn.given() if n != "criterion"]
    if max_drop is not None and given:
        raise ValueError(
            f"`--max-drop` finds the ticket, {given[0]} asks for one: leave out either."
        )
    asks = bool(given) or recipe == "paper" or (model or "").lower() in SUPERNETS
    return max_drop is None and asks


@app.command()
@flags
def search(
    dataset: DatasetName,
    *,
    own: Tables,
    drawn: Drawn,
    model: Model = "gcn",
    task: TaskName = None,
    changes: Changes,
    seed: Seed = 0,
    split: OneSplit = None,
    root: Root = None,
    out: Out = None,
    checkpoint_every: CheckpointEvery = None,
    force: Force = False,
    device: DeviceOption = Device.auto,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    call: Call,
) -> None:
    """Draw a joint ticket and write it, without retraining it."""
    dataset = own.named(dataset)
    check_new_model(drawn.criterion)
    from gebt.experiments import run as pipeline
    from gebt.files import write_csv

    recipe = recipe_of(model, task, changes)
    options = pipeline.Options(recipe, **drawn.options(model))
    graph, learned = load_graph(dataset, root, device, task, split)
    folder = graph.world.told(out or default_folder(graph.name))
    names = ("ticket.safetensors", "history.csv", "distances.csv")
    with resumable(folder, names, graph, call, checkpoint_every, force=force):
        network = pipeline.new_model(graph, recipe, learned, seed)
        with (
            progress(1, quiet) as shown,
            events(tensorboard, folder, graph, shown) as show,
        ):
            recorder = pipeline.Recorder(show)
            with recorder.phase("search") as hook:
                ticket, network, pairs = pipeline.search(
                    network, graph, learned, options, seed, hook
                )
        ticket.save(folder / "ticket.safetensors")
        tables = {"history.csv": recorder.rows, "distances.csv": pairs}
        for name, rows in tables.items():
            if rows and graph.world.rank == 0:
                write_csv(folder / name, rows)
    if not quiet:
        found = pipeline.describe(ticket, network)
        tell_of_ticket(ticket, found, recorder.seconds["search"])
    tell_folder(folder, quiet)


@app.command()
@flags
def retrain(
    ticket_path: TicketOrGraph,
    *,
    from_: FromTicket = None,
    frozen: Frozen = False,
    task: TaskName = None,
    epochs: RetrainEpochs = None,
    root: Root = None,
    out: Out = None,
    checkpoint_every: CheckpointEvery = None,
    force: Force = False,
    device: DeviceOption = Device.auto,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    call: Call,
) -> None:
    """Retrain a ticket with its inherited weights, compact it, and measure it.

    On the graph that it was drawn for: gebt retrain TICKET. Or on another one with the
    same features: gebt retrain GRAPH --from TICKET.
    """
    if from_ is None and (frozen or task):
        raise ValueError(
            f"`{'--frozen' if frozen else '--task'}` is of another graph than the "
            "ticket's: gebt retrain GRAPH --from TICKET."
        )
    if from_ and RANKS > 1:
        raise ValueError(
            f"`--from` is of one process, and torchrun has started {RANKS}."
        )
    from gebt.experiments.record import summary_table
    from gebt.experiments.run import RETRAIN_FILES, retrain_alone
    from gebt.models import build_model
    from gebt.tickets.ticket import Ticket
    from gebt.tickets.transfer import freeze, transfer

    path = from_ or ticket_path
    ticket = Ticket.load(path)
    epochs = ticket.options["epochs"] if epochs is None else epochs
    check_count("epochs", epochs)
    if from_:
        dataset = check_dataset(str(ticket_path))
        described = task or ticket.options["task"]
        graph, learned = load_graph(dataset, root, device, described)
        ticket = transfer(ticket, graph, task=learned)
    else:
        graph, learned = load_of(ticket, root, device)
    model = build_model(dict(ticket.model)).to(graph.adjacency.device)
    ticket.open(model, graph)  # a ticket that does not fit fails before any folder
    if frozen:
        freeze(model)
    folder = graph.world.told(out or default_folder(graph.name))
    name, how = path.name, {"force": force, "spare": path}
    with (
        resumable(folder, RETRAIN_FILES, graph, call, checkpoint_every, **how),
        progress(1, quiet) as shown,
        events(tensorboard, folder, graph, shown) as show,
    ):
        record = retrain_alone(
            ticket, name, model, graph, learned, epochs, folder, show
        )
    if not quiet:
        print_table(summary_table(record))
    tell_folder(folder, quiet)


@app.command()
@flags
def cost(
    ticket_path: TicketPath, root: Root = None, device: DeviceOption = Device.auto
) -> None:
    """Measure what inference costs: dense, masked ticket, compact ticket."""
    from gebt.deploy.compaction import compact
    from gebt.deploy.cost import measure_cost
    from gebt.models import build_model
    from gebt.tickets.ticket import Ticket

    ticket = Ticket.load(ticket_path)
    graph, _ = load_of(ticket, root, device)
    model = build_model(dict(ticket.model)).to(graph.adjacency.device)
    small = ticket.open(model, graph)
    dense = build_model(dict(ticket.model)).to(graph.adjacency.device)
    dense.load_state_dict(dict(ticket.weights))
    costs = {
        "dense": measure_cost(dense, graph),
        "ticket, masked": measure_cost(model, small),
        "ticket, compact": measure_cost(*compact(model, small)),
    }
    print_costs(graph.name, costs)


@app.command()
@flags
def reproduce(
    name: ExperimentName,
    graph: GraphsOrDefault = None,
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
    out: Annotated[Path | None, folder_by_default("runs/<name>")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment of the paper with baselines; writes CSV, figures and a page."""
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
    with results(folder, names, force=force, resume=go_on, hint=hint):
        with counting(experiment.name, quiet) as show:
            run_experiment(
                experiment,
                folder,
                graphs=graph or experiment.graphs,
                seeds=seeds,
                quick=quick,
                root=root,
                on_done=show,
            )
        if not quiet:
            print_tables(page_of(folder))
        write_report([folder], folder, root)
    tell_folder(folder, quiet)


@app.command()
@flags
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


for command in (resume, sweep, plan, export, verify):
    app.command()(command)

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
@flags
def inference(
    dataset: DatasetName,
    own: Tables,
    hidden: Widths = [256, 256],  # noqa: B006 (typer needs a list)
    graph_ratio: GraphRatios = [0.2, 0.5, 0.8],  # noqa: B006
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
    graph, _ = load_graph(own.named(dataset), root, device, "node-classification")
    folder = out or default_folder(graph.name, "inference-")
    ratios = [(ratio, weight_ratio) for ratio in graph_ratio]
    with results(folder, ("inference.csv", "report.html"), force=force):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the masks did not settle")
            rows = inference_costs(graph, hidden=hidden, ratios=ratios, repeats=repeats)
        write_csv(folder / "inference.csv", rows)
        page = inference_page(graph.name, rows)
        if not quiet:
            print_tables(page)
        write_pages([page], folder)
    tell_folder(folder, quiet)


@app.command()
@flags
def models(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as in docs/models.md.")
    ] = False,
) -> None:
    """List the models, with how they are trained by default, and the tasks."""
    from gebt.learn.tasks import find_task
    from gebt.models.recipe import TITLES, row

    load_plugins()
    tasks = [(n, str(find_task(n).__doc__).partition("\n")[0]) for n in TASKS]
    for title, header, rows in (
        ("Models", TITLES, [row(recipe) for recipe in MODELS.values()]),
        ("Tasks", ("--task", "what is learned: loss; metric"), tasks),
    ):
        if markdown:
            lines = [header, ["---"] * len(header), *rows]
            print("\n".join(f"| {' | '.join(cells)} |" for cells in lines), end="\n\n")
            continue
        print_rows(title, header, rows)
    if not markdown:
        out_console.print(
            "Link prediction: hidden 128 (16 a head), dropout 0.3, no weight decay.",
            style="dim",
        )


_TRAINED = 2_000_000  # links up to which two GCNs are trained to tell of a graph


@app.command()
@flags
def datasets(name: DatasetFacts = None, *, own: Tables, root: Root = None) -> None:
    """List the graphs that can be loaded, or tell how one's links and classes are."""
    from gebt.datasets import find_root, load
    from gebt.datasets.catalogue import facts_of, find_missing
    from gebt.graph import Split, heterophily
    from gebt.learn.recipes import links_worth
    from gebt.learn.tasks import task_for

    if name:
        name = own.named(name)
        known = facts_of(name)
        if missing := find_missing(name, root):
            name = missing.name
            facts = {
                "what": missing.about,
                "on disk": "no: gebt run downloads it",
                "task": known.task,
                "metric": known.metric,
                "split": known.split,
            }
        else:
            graph = load(name, root)
            name = graph.name
            task = task_for(graph)
            facts = {
                "nodes": f"{graph.num_nodes:,}",
                "links": f"{graph.num_links:,}",
                "features": f"{graph.num_features:,}",
                **heterophily(graph).facts(),
                "task": known.task or task.name,
                "metric": known.metric or task.metric(graph),
                "split": known.split,
            }
            if isinstance(graph.split, Split):
                parts = vars(graph.split).items()
                facts["nodes of the split"] = ", ".join(
                    f"{part} {nodes.numel():,}" for part, nodes in parts
                )
                quick = graph.y is not None and graph.num_links <= _TRAINED
                if quick and (worth := links_worth(graph, task)):
                    scores = "{:.1f} with all links, {:.1f} with none".format(*worth)
                    facts[f"a GCN's validation {task.metric(graph)}, %"] = scores
        if known.tuned is not None:
            facts["tuned, in the literature, %"] = f"{known.tuned} ({known.tuned_by})"
        facts = {fact: told for fact, told in facts.items() if told}
        print_rows(name, ("", ""), facts.items())
        return
    load_plugins()
    folder = find_root(root)
    groups: dict[str, list[Sequence[str]]] = {}
    for each, dataset in DATASETS.items():
        built_in = each in DATASETS.homes and not dataset.files
        there = "yes" if dataset.on_disk(folder) else "no"
        known = dataset.facts
        row = (
            each,
            "built in" if built_in else there,
            dataset.about,
            known.metric,
            " ".join(dataset.named) or str(dataset.splits),
            "" if known.tuned is None else str(known.tuned),
        )
        groups.setdefault(known.group, []).append(row)
    header = ("name", "on disk", "what", "metric", "splits", "tuned")
    print_groups(f"Datasets below {folder}", header, groups)
    out_console.print(
        "tuned: a dense model's test score in the literature; gebt datasets NAME says "
        "whose.",
        style="dim",
    )
