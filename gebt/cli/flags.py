"""Flags: one by one, or one for each field of a dataclass of options.

All are checked before torch is loaded, which takes seconds.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import typer

from gebt._checks import (
    check_choice,
    check_count,
    check_dropout,
    check_name,
    check_not_negative,
    check_positive,
    check_ratio,
)
from gebt._registry import (
    ASK_A_MODEL,
    CRITERIA,
    EXPERIMENTS,
    MODELS,
    SUPERNETS,
    TASKS,
    check_dataset,
    parse_table,
    use_plugin,
)
from gebt.cli.config import Call, config_flag
from gebt.cli.tensorboard import check_tensorboard
from gebt.options import (
    EB_TRAIN,
    RECIPES,
    Fit,
    Objective,
    Precision,
    Unit,
    chosen,
    option,
)


def _told(options: Any) -> list[Field[Any]]:
    """A dataclass's fields that say what they are."""
    return [field for field in fields(options) if "help" in field.metadata]


class Device(StrEnum):
    """Where to run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


_BY_NEW_MODELS = [name for name in CRITERIA if name not in ASK_A_MODEL]


def _share(of: str, default: float) -> Any:
    about = f"Share of {of} to remove, in [0, 1). [dim]default: {default:g}[/]"
    return option(None, about, "SHARE")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How a ticket is drawn; None is what was not given."""

    graph_ratio: float | None = _share("links", 0.2)
    weight_ratio: float | None = _share("weights", 0.9)
    criterion: str | None = option(
        None,
        f"What ranks links: {', '.join(_BY_NEW_MODELS)}, or what a plugin registers; "
        f"for the cheapest ticket, not one, {', '.join(ASK_A_MODEL)}, too. "
        "[dim]default: the best on validation; learned for one ticket[/]",
        "NAME",
    )
    threshold: float | None = option(
        None,
        "Mask distance below which a ticket counts as stable. [dim]default: 0.1[/]",
    )
    window: int | None = option(
        None,
        "Comparisons that must all be below the threshold. [dim]default: 3; 5 for "
        "channels[/]",
        "N",
    )
    unit: str | None = option(
        None,
        "What is removed of the weights: element, row, column; or channel, whole "
        "hidden units, which --weight-ratio is then the share of (0.5 if it is not "
        "given). [dim]default: element[/]",
        "NAME",
    )
    precision: str | None = option(
        None,
        "What the search computes in: full, bf16 or bfp8, 8 bits with an exponent for "
        "each row. [dim]default: full[/]",
        "NAME",
    )

    parts: int | None = option(
        None,
        "Parts of the graph that an epoch of the search goes through one by one, where "
        "the whole does not fit. Its weights are worse for it. [dim]default: 1[/]",
        "K",
    )

    def __post_init__(self) -> None:
        if self.criterion is not None:
            object.__setattr__(self, "criterion", CRITERIA.check(self.criterion))
        all_of_it = self.options()
        check_choice("unit", all_of_it["unit"], Unit)
        check_choice("precision", all_of_it["precision"], Precision)
        check_ratio("graph_ratio", all_of_it["graph_ratio"])
        check_ratio("weight_ratio", all_of_it["weight_ratio"])
        if not (all_of_it["graph_ratio"] or all_of_it["weight_ratio"]):
            raise ValueError(
                "`graph_ratio` and `weight_ratio` are both 0: nothing to prune."
            )
        check_positive("threshold", all_of_it["threshold"])
        check_count("window", all_of_it["window"])
        check_count("parts", all_of_it["parts"])

    def given(self) -> dict[str, Any]:
        """What was given, by name."""
        return {name: v for name, v in vars(self).items() if v is not None}

    def options(self, model: str | None = None) -> dict[str, Any]:
        """What was given, and the defaults of the rest, for a model.

        Raises:
            ValueError: if something was given that a supernet's search does not have.
        """
        if (model or "").lower() not in SUPERNETS:
            channels = _CHANNELS if self.unit == "channel" else {}
            return {**_DRAWN, **channels, **self.given()}
        for name in _NOT_OF_SUPERNETS:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`--{name}` is not of a supernet's search, which ends with its "
                    f"epochs: leave it out, or choose another model than {model}."
                )
        usual = {k: v for k, v in _DRAWN.items() if k not in _NOT_OF_SUPERNETS}
        return {**usual, "graph_ratio": 0.0, **self.given()}


_DRAWN = {"graph_ratio": 0.2, "weight_ratio": 0.9, "criterion": "learned"}
_DRAWN |= {"threshold": 0.1, "window": 3, "parts": 1}
_DRAWN |= {"unit": "element", "precision": "full"}
_NOT_OF_SUPERNETS = ("threshold", "window", "parts", "unit", "precision")
_CHANNELS = {"weight_ratio": 0.5, "window": EB_TRAIN["window"]}


def check_new_model(criterion: str | None) -> None:
    """Refuse a criterion that asks a trained model, where a search begins with none."""
    if criterion in ASK_A_MODEL:
        raise ValueError(
            f"the criterion {criterion!r} asks a trained model, and a search starts "
            "with a new one. Use it with `gebt run --max-drop`; or in Python, train "
            "one by `gebt.train` and `gebt.train_student`, and give `gebt.find_ticket` "
            "that."
        )


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What a recipe says of its model; the defaults are no model's."""

    hidden: int = option(1, "Width of the hidden layers.", "N")
    dropout: float = option(0.0, "Dropout.", "SHARE")

    def __post_init__(self) -> None:
        check_count("hidden", self.hidden)
        check_dropout("dropout", self.dropout)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What goes with the path of an edge list; None is what was not given."""

    nodes: str | None = option(
        None,
        "Where the graph is the path of an edge list: the table of its nodes, a row "
        "each.",
        "FILE",
    )
    label: str | None = option(None, "Its column of classes.", "COLUMN")
    directed: bool = option(False, "Edges of the list lead one way only.")
    metric: str | None = option(
        None,
        "How its classes are scored: accuracy, ROC-AUC or AP. "
        "[dim]default: accuracy[/]",
        "NAME",
    )

    def named(self, dataset: str) -> str:
        """The graph's name with what was given, by which a ticket finds it again.

        Raises:
            ValueError: if something was given, and the name is no path of an edge list
                or says it already.
        """
        given = {name: value for name, value in vars(self).items() if value}
        if "directed" in given:
            given["directed"] = "yes"
        table = parse_table(dataset)
        if given and table is None:
            raise ValueError(
                f"`--{next(iter(given))}` is of an edge list, a .parquet, .csv or .tsv "
                f"file; {dataset!r} is none."
            )
        if not given or table is None:
            return dataset
        path, options = table
        if twice := given.keys() & options.keys():
            raise ValueError(f"`--{min(twice)}` was given, but {dataset!r} says it.")
        every = {**options, **given}
        return f"{path}:{','.join(f'{key}={value}' for key, value in every.items())}"


class Changes(dict[str, Any]):
    """What was given of a model's recipe, by name; the rest is the model's."""

    OF: ClassVar[tuple[type, ...]] = (Layers, Fit)

    def __init__(self, **values: Any):
        super().__init__({k: v for k, v in values.items() if v is not None})
        chosen(*(kind() for kind in self.OF), given=self, of="gebt")


ARGUMENTS = ["seeds", "seed", "split", "splits", "max_drop"]
ARGUMENTS += ["recipe", "model", "objective", "label", "metric", "inputs"]
"""Names that the library's errors give to what is a flag here."""
ARGUMENTS += [f.name for kind in (Drawn, *Changes.OF) for f in _told(kind)]


def flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--plugin``, and flags for the options that it takes.

    A parameter that is a dataclass, or `Changes`, becomes one flag for each field that
    says what it is, and is built, so checked, from what was given. One that is a `Call`
    becomes ``--config``, and is given the values of all flags.
    """
    hints = get_type_hints(command, include_extras=True)
    shown: list[Parameter] = []
    groups: dict[str, list[str]] = {}
    asks = [name for name, kind in hints.items() if kind is Call]
    for name, parameter in signature(command).parameters.items():
        found = _flags_of(hints[name])
        if found:
            groups[name] = [flag.name for flag in found]
        if name not in asks:
            shown += found or [parameter.replace(annotation=hints[name])]
    plugin = Parameter("plugin", Parameter.KEYWORD_ONLY, default=[], annotation=_Plugin)
    shown.append(plugin)
    if asks:
        shown.append(config_flag(shown[:]))

    @wraps(command)
    def called(**given: Any) -> None:
        given.pop("config", None)  # its callback, and --plugin's, have done their work
        call = Call(command.__name__, dict(given))
        del given["plugin"]
        given |= dict.fromkeys(asks, call)
        for name, flags in groups.items():
            given[name] = hints[name](**{flag: given.pop(flag) for flag in flags})
        command(**given)

    # What typer reads.
    called.__annotations__ = {flag.name: flag.annotation for flag in shown}
    called.__signature__ = Signature(  # type: ignore[attr-defined]
        [flag.replace(kind=Parameter.KEYWORD_ONLY) for flag in shown]
    )
    return called


def _flags_of(kind: Any) -> list[Parameter]:
    """Flags for the fields of a dataclass or of `Changes`; none for other types."""
    changes = kind is Changes
    kinds = Changes.OF if changes else [kind] if is_dataclass(kind) else []
    return [
        _flag(field, get_type_hints(each)[field.name], changes)
        for each in kinds
        for field in _told(each)
    ]


def _flag(field: Field[Any], kind: Any, change: bool) -> Parameter:
    about = field.metadata["help"]
    info = typer.Option(
        help=f"{about} [dim]default: the model's[/]" if change else about,
        metavar=field.metadata["metavar"] or None,
        show_default=not change,
    )
    return Parameter(
        field.name,
        Parameter.KEYWORD_ONLY,
        default=None if change else field.default,
        annotation=Annotated[kind | None if change else kind, info],
    )


def _checked(check: Callable[[str, Any], object]) -> Any:
    """A callback that checks an option, or each of a list."""

    def callback(param: typer.CallbackParam, value: Any) -> Any:
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                check(str(param.name), each)
        return value

    return callback


_Plugin = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        help="Python file that registers models, graphs or criteria; again for more.",
        metavar="FILE",
        show_default=False,
        is_eager=True,  # other flags name what it registers
        callback=_checked(lambda _, path: use_plugin(path)),
    ),
]
DatasetName = Annotated[
    str,
    typer.Argument(
        help="Graph to load; see [bold]gebt datasets[/]. Or the path of an edge list, "
        ".parquet, .csv or .tsv.",
        callback=_checked(lambda _, name: check_dataset(name)),
    ),
]
DatasetFacts = Annotated[
    str | None,
    typer.Argument(
        metavar="DATASET",
        help="Graph to load and tell the numbers of; by default all are listed.",
        show_default=False,
        callback=_checked(lambda _, name: check_dataset(name)),
    ),
]
GraphsOrDefault = Annotated[
    list[str] | None,
    typer.Option(
        help="Graph to run on; give it again for more. [dim]default: the "
        "experiment's, most often cora and citeseer[/]",
        metavar="NAME",
        show_default=False,
        callback=_checked(lambda _, name: check_dataset(name)),
    ),
]
ExperimentName = Annotated[
    str,
    typer.Argument(
        help="fig1, fig2, fig4, fig6 or table2 of You et al. 2022, with baselines; "
        "frontier (what links cost a student), draws (when to draw), inductive (nodes "
        "that training never saw), units (whole hidden units); of its siblings family "
        "(all of them), eb-train (tickets of whole channels; on digits of a CNN), "
        "supertickets (several operators), gem-miner (tickets before training), ksm "
        "(one ticket, many tasks) or ordinal (classes in order, and transfer).",
        callback=_checked(lambda _, name: EXPERIMENTS.check(name)),
    ),
]
TicketPath = Annotated[
    Path, typer.Argument(metavar="TICKET", help="A ticket.safetensors file.")
]
TicketOrGraph = Annotated[
    Path,
    typer.Argument(
        metavar="TICKET|GRAPH",
        help="A ticket.safetensors file; with --from, another graph to train on.",
    ),
]
FromTicket = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Ticket whose weights to begin with, drawn on a graph with the same "
        "features. Links are chosen by its criterion, or all kept where that was "
        "learned.",
        metavar="TICKET",
        show_default=False,
    ),
]
Frozen = Annotated[
    bool,
    typer.Option("--frozen", help="With --from: train the model's head alone."),
]
Model = Annotated[
    str,
    typer.Option(
        help="Model to train; see [bold]gebt models[/].",
        metavar="NAME",
        callback=_checked(lambda _, name: MODELS.check(name)),
    ),
]
ModelOrRecipe = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model to train, by its own recipe; see [bold]gebt models[/].",
        metavar="NAME",
        show_default=False,
        callback=_checked(lambda _, name: MODELS.check(name)),
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="auto: what is best on the validation nodes, of a few models; tuned: as "
        "published for this graph; paper: the GCN of You et al. 2022 and, unless "
        "--max-drop is given, its one ticket at the two ratios. [dim]default: auto; "
        "paper for one ticket[/]",
        metavar="NAME",
        show_default=False,
        callback=_checked(lambda _, name: check_name("recipe", name, RECIPES)),
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="node-classification, multi-label or link-prediction, for which links are "
        "held out; of classes in order ordinal, regression or hierarchical; of some "
        "classes node-classification-among:0,2,5; by default what the labels say.",
        metavar="NAME",
        show_default=False,
        callback=_checked(lambda _, name: TASKS.check(name.partition(":")[0])),
    ),
]
GraphRatios = Annotated[
    list[float],
    typer.Option(
        help="Share of links to remove; again for more.",
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
Widths = Annotated[
    list[int],
    typer.Option(
        help="Width of a hidden layer; again for more.",
        metavar="N",
        callback=_checked(check_count),
    ),
]
RetrainEpochs = Annotated[
    int | None,
    typer.Option(
        help="Epochs of retraining; by default as many as the search was allowed.",
        metavar="N",
        show_default=False,
        callback=_checked(check_count),
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Find the cheapest ticket whose validation score is at most so far below "
        "the dense model's, in percent. [dim]default: 0.5, unless one ticket is asked "
        "for by a ratio, the threshold or the window[/]",
        metavar="PERCENT",
        show_default=False,
        callback=_checked(check_not_negative),
    ),
]
ObjectiveName = Annotated[
    str,
    typer.Option(
        "--objective",
        help="What the cheapest ticket saves: inference; or training, by leaving units "
        "and links out after a few epochs.",
        metavar="NAME",
        callback=_checked(lambda name, value: check_choice(name, value, Objective)),
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
OneSplit = Annotated[
    int | None,
    typer.Option(
        "--split",
        help="Which of a graph's splits, from 0 on; by default the first.",
        metavar="K",
        min=0,
        show_default=False,
    ),
]
Splits = Annotated[
    int | None,
    typer.Option(
        help="Run the first N of a graph's splits, each with the next seed.",
        metavar="N",
        show_default=False,
        callback=_checked(lambda name, n: n is None or check_count(name, n, 10_000)),
    ),
]
Seed = Annotated[int, typer.Option(help="First seed.", min=0, max=2**32, metavar="N")]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the datasets; by default $GEBT_DATA, else ./data.",
        metavar="DIR",
        show_default=False,
    ),
]


def folder_by_default(default: str) -> Any:
    """``--out``, and what it is by default."""
    return typer.Option(
        help=f"Folder to write; by default {default}.",
        metavar="DIR",
        show_default=False,
    )


Out = Annotated[Path | None, folder_by_default("runs/<dataset>-<time>")]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Take a folder that holds something; an earlier run's files in it go.",
    ),
]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(
        help="Write a checkpoint, which [bold]gebt resume[/] goes on from, after every "
        "N epochs of a training; 0 for none. [dim]default: every ten seconds or "
        "less often[/]",
        metavar="N",
        min=0,
        show_default=False,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to run; auto takes a GPU.")]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write every epoch for TensorBoard, too, into the folder.",
        callback=_checked(check_tensorboard),
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print nothing but the folder's name.")
]
