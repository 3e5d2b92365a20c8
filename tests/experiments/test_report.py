"""Pages that say what was found, whole, alone, light, dark and small."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import call_gebt, read_rows

from gebt import Ticket
from gebt._registry import EXPERIMENTS, MODELS
from gebt.cli import entry as cli
from gebt.datasets import load
from gebt.experiments.report import page_of, write_report
from gebt.experiments.run import Options, run_seeds
from gebt.experiments.runner import KEY, _run
from gebt.experiments.studies import CNN, DEEP, WIDE
from gebt.files import write_csv, write_json
from gebt.learn.tasks import NodeClassification
from gebt.report.figures import at_least, scatter
from gebt.report.page import Figure, Page, Section, Table, write_pages

pytestmark = pytest.mark.slow

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome"
)
NAMES = tuple(EXPERIMENTS)
TRIED = "gcn", DEEP, WIDE, "super-res", CNN.model
GRAPH = "synthetic:N=300,E=1200,F=64,C=6,seed=1"
GRAPHS = {"eb-train": "digits"}  # for a CNN


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What `gebt run digits --seeds 2` writes, of few epochs."""
    folder = tmp_path_factory.mktemp("run") / "out"
    args = ("run", "digits", "--seeds", "2", "--epochs", "8", "--threshold", "2")
    assert not call_gebt(*args, "--quiet", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """A folder of each experiment on a graph: one seed, quick, few of its jobs."""
    ratios = ((0, 0), (0.5, 0), (0.2, 0), (0, 0.5), (0.2, 0.5), (0.1, 0.9))
    ratios += ((0, 0.9), (0.5, 0.9), (0.4, 0.9), (0, 0.95))
    folder = tmp_path_factory.mktemp("experiments")
    found = {}  # by job: some are in several experiments
    for name, experiment in EXPERIMENTS.items():
        tables = {}
        for job in experiment.jobs(GRAPHS.get(name, GRAPH), 0):
            if (job.graph_ratio, job.weight_ratio) not in ratios:
                continue
            if job.draw not in (None, 5) or job.model not in TRIED:
                continue
            if job not in found:
                found[job] = _run((job, None, True, {}))
            for table, rows in found[job].items():
                tables.setdefault(table, []).extend(rows)
        for table, rows in tables.items():
            write_csv(folder / name / f"{table}.csv", rows)
        about = {"experiment": name, "quick": True, "machine": {"torch": "2"}}
        write_json(folder / name / "experiment.json", about)
    return {name: folder / name for name in EXPERIMENTS}


@pytest.fixture(scope="module")
def whole(run_folder, experiments, tmp_path_factory):
    """One report of all of them: its path."""
    folder = tmp_path_factory.mktemp("report")
    return write_report([run_folder, *experiments.values()], folder)


class Document(HTMLParser):
    """Tags, ids, links and text of a page; by table the texts of its cells."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.attributes = [], [], []
        self.tables, self.texts, self._cell = [], [], None
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = self.tables[-1][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def items(page, kind):
    return [i for s in page.sections for i in s.items if isinstance(i, kind)]


def cells(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def pages(run_folder, experiments):
    return [page_of(folder) for folder in (run_folder, *experiments.values())]


# ----------------------------------------------------------------- the document


def test_a_page_needs_nothing_but_itself(whole):
    document = Document(whole)
    loads = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    targets = [v for name, v in document.attributes if name in loads]
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert not {"script", "link", "iframe", "object", "base"} & set(document.tags)
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", document.source)
    assert not any(name.startswith("on") for name, _ in document.attributes)


def test_ids_are_unique_and_what_refers_to_one_finds_it(whole):
    document = Document(whole)
    assert len(document.ids) == len(set(document.ids)) > 50
    inside = re.findall(r"url\(#([^)]+)\)", document.source)
    inside += [
        value[1:]
        for name, value in document.attributes
        if name in ("href", "xlink:href") and value.startswith("#")
    ]
    assert inside
    assert set(inside) <= set(document.ids)


def test_every_figure_is_in_the_page_and_beside_it_as_png_and_svg(
    whole, run_folder, experiments
):
    found = pages(run_folder, experiments)
    names = {
        f"{place}-{re.sub('[^0-9A-Za-z]+', '-', figure.name)}"
        for place, page in enumerate(found, start=1)
        for figure in items(page, Figure)
    }
    files = {path.name for path in (whole.parent / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert Document(whole).tags.count("svg") == len(names)
    for name in names:
        png = (whole.parent / "figures" / f"{name}.png").read_bytes()
        svg = (whole.parent / "figures" / f"{name}.svg").read_text()
        assert png.startswith(b"\x89PNG") and len(png) > 5000
        assert svg.rstrip().endswith("</svg>")
        assert "currentColor" not in svg and "#222324" in svg


def test_every_table_is_in_the_page_cell_by_cell(whole, run_folder, experiments):
    tables = [t for p in pages(run_folder, experiments) for t in items(p, Table)]
    wanted = [[list(t.header), *map(list, t.rows)] for t in tables]
    assert Document(whole).tables == wanted


def test_figures_take_the_colour_of_the_text(whole):
    assert "currentColor" in whole.read_text()
    assert "#222324" not in whole.read_text()  # that of the files beside it


def test_equal_results_give_equal_files(tmp_path):
    experiment(tmp_path, "fig1", [row("GEB", 0, 75.0), row("GEB", 0, 74.0, draw=5)])
    files = []
    for name in ("a", "b"):
        write_report([tmp_path], tmp_path / name)
        found = sorted((tmp_path / name).rglob("*.*"))
        files.append([(path.name, path.read_bytes()) for path in found])
    assert [name for name, _ in files[0]] == [
        *(".gebt", "fig1-cora.png", "fig1-cora.svg", "report.html")
    ]
    assert files[0] == files[1]


def test_all_text_is_escaped(tmp_path):
    bad = '<b>&"{body}{title}</b>'
    table = Table(bad, (bad, bad), [(bad, bad)], bad)
    page = Page(bad, bad, [Section(bad, [bad, table])])
    path = write_pages([page], tmp_path)
    document = Document(path)
    assert "b" not in document.tags
    assert document.tables == [[[bad, bad], [bad, bad]]]
    # Title, heading, subtitle, section, paragraph, table's title and note, 4 cells.
    assert document.source.count(escape(bad)) == 11


def test_a_figures_name_and_title_are_safe_in_files_ids_and_attributes(tmp_path):
    from matplotlib.figure import Figure as Drawing

    def draw():
        drawing = Drawing()
        drawing.subplots().plot([1, 2], label='<b>&"')
        return drawing

    bad = 'x/<b>&" y'
    write_pages([Page("", "", [Section("", [Figure(bad, bad, draw)])])], tmp_path)
    document = Document(tmp_path / "report.html")
    assert "b" not in document.tags
    assert ("aria-label", bad) in document.attributes
    assert all(re.fullmatch(r"[\w.-]+", name) for name in document.ids)
    assert {p.suffix for p in (tmp_path / "figures").iterdir()} == {".png", ".svg"}


# ---------------------------------------------------------------- pages of runs


def test_a_runs_page_has_its_numbers(run_folder):
    page = page_of(run_folder)
    metrics = json.loads((run_folder / "metrics.json").read_text())
    mean, std = metrics["summary"]["mean"], metrics["summary"]["std"]
    rows = {row[""]: row for row in cells(items(page, Table)[0])}
    for kind, key in (("dense", "dense"), ("ticket", "retrained")):
        text = f"{mean[key]['test']:.1f} ± {std[key]['test']:.1f}"
        assert rows["test accuracy, %"][kind] == text
        text = f"{mean['inference_ms'][kind]:.2f} ± {std['inference_ms'][kind]:.2f}"
        assert rows["inference, ms"][kind] == text
    assert page.title == "digits, gcn"
    assert "2 seeds" in page.subtitle
    ticket = Ticket.load(run_folder / "ticket.safetensors")
    first = page.sections[0].items[0]
    assert f"epoch {ticket.epoch}" in first and "8,057 of 10,071 links" in first


def test_what_costs_more_is_not_called_less(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "x")
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for run in metrics["runs"]:
        run["inference_ms"] = {"dense": 1.0, "ticket": 2.0}
        run["macs"]["executed"] = {"dense": 3_000_000, "ticket": 1_000_000}
    write_json(tmp_path / "x" / "metrics.json", metrics)
    rows = {r[""]: r for r in cells(items(page_of(tmp_path / "x"), Table)[0])}
    assert rows["inference, ms"]["difference"] == "2.00x more"
    assert rows["MACs executed, M"]["difference"] == "3.00x less"
    assert rows["epoch drawn"]["difference"] == "2/2 settled"


def test_a_runs_page_has_the_promised_figures_and_layers(run_folder):
    page = page_of(run_folder)
    names = [figure.name for figure in items(page, Figure)]
    assert names == ["accuracy-against-time", "distances", "pairs", "degrees"]
    layers = items(page, Table)[1]
    ticket = Ticket.load(run_folder / "ticket.safetensors")
    kept = [int(row["kept"].replace(",", "")) for row in cells(layers)]
    assert [row["weight"] for row in cells(layers)] == list(ticket.weight_masks)
    assert sum(kept) == ticket.weights_kept
    caption = items(page, Figure)[3].title
    assert "without any: 0 before" in caption
    assert (
        "The graph: mean degree 11.2, classes 10, edge homophily 0.96, adjusted "
        "homophily 0.95, label informativeness 0.91."
    ) in items(page, str)


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """A run on a graph that no dataset has, of a name that is markup; one seed."""
    folder = tmp_path_factory.mktemp("odd")
    graph = replace(load("digits"), name="<b>&$x_")
    options = Options(MODELS["gcn"].changed(epochs=4), 0.2, 0.5, threshold=5)
    run_seeds(graph, NodeClassification(), options, range(1), folder)
    return folder


def test_a_missing_dataset_is_told_in_words_and_its_name_escaped(odd_folder, tmp_path):
    document = Document(write_report([odd_folder], tmp_path))
    assert "b" not in document.tags
    assert "Degrees are not shown: there is no dataset '<b>&$x_'" in document.text
    assert "<b>&$x_, gcn" in document.text
    assert not (tmp_path / "figures" / "degrees.png").exists()


def test_one_seed_gives_numbers_without_a_spread_or_a_verdict(odd_folder):
    first = cells(items(page_of(odd_folder), Table)[0])[0]
    assert re.fullmatch(r"\d+\.\d", first["dense"])
    assert re.fullmatch(r"[+-]\d+\.\d", first["difference"])


def test_missing_distances_are_told_in_words(odd_folder, tmp_path):
    shutil.copytree(odd_folder, tmp_path / "x")
    (tmp_path / "x" / "distances.csv").unlink()
    page = page_of(tmp_path / "x")
    assert "pairs" not in [figure.name for figure in items(page, Figure)]
    assert any("distances.csv is not in the folder" in t for t in items(page, str))


def test_a_graph_that_is_not_the_one_searched_shows_no_degrees(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "x")
    ticket = Ticket.load(run_folder / "ticket.safetensors")
    other = replace(ticket, dataset={"name": "digits", "fingerprint": "0" * 64})
    other.save(tmp_path / "x" / "ticket.safetensors")
    page = page_of(tmp_path / "x")
    assert "degrees" not in [figure.name for figure in items(page, Figure)]
    assert any("not the graph that was searched" in t for t in items(page, str))


def test_the_folder_of_a_retrained_ticket_has_a_page(odd_folder, tmp_path):
    # That of gebt 0.1: no ticket, and metrics of one training only.
    metrics = json.loads((odd_folder / "metrics.json").read_text())
    run = metrics["runs"][0]
    short = {key: metrics[key] for key in ("dataset", "task", "metric")}
    short |= {key: run[key] for key in ("ticket", "retrained", "seconds")}
    short["inference_ms"] = {"ticket": 1.25}
    write_json(tmp_path / "metrics.json", short)
    page = page_of(tmp_path)
    rows = {row[""]: row["ticket"] for row in cells(items(page, Table)[0])}
    assert rows["inference, ms"] == "1.25"
    assert rows["test accuracy, %"] == f"{run['retrained']['test']:.1f}"
    assert any("ticket.safetensors is not in the folder" in t for t in items(page, str))


# --------------------------------------------------------- pages of experiments


@pytest.mark.parametrize("name", NAMES)
def test_an_experiments_page_says_seeds_recipe_and_that_it_was_quick(name, experiments):
    page = page_of(experiments[name])
    assert page.title.startswith(f"{name}: ")
    assert "QUICK" in page.subtitle and "torch" in page.subtitle
    [section] = page.sections
    assert section.title == GRAPHS.get(name, GRAPH)
    assert section.items[0].startswith("n = 1 seed. ")
    assert items(page, Table) and items(page, Figure)
    for table in items(page, Table):
        assert all(len(row) == len(table.header) for row in table.rows)


@pytest.mark.parametrize("name", NAMES)
def test_an_unfinished_experiment_has_a_page_at_every_point(
    name, experiments, tmp_path
):
    folder = experiments[name]
    tables = {path.stem: read_rows(path) for path in folder.glob("*.csv")}
    shutil.copy(folder / "experiment.json", tmp_path)
    rows = tables[{"fig2": "stops", "ksm": "tasks"}.get(name, "runs")]
    for done in range(len(rows) + 1):
        for order in (rows[:done], rows[len(rows) - done :]):  # in whatever order
            keys = {tuple(row[c] for c in KEY) for row in order}
            for table, every in tables.items():
                mine = [r for r in every if tuple(r[c] for c in KEY) in keys]
                (tmp_path / f"{table}.csv").unlink(missing_ok=True)
                if mine:
                    write_csv(tmp_path / f"{table}.csv", mine)
            page = page_of(tmp_path)
            if done in (1, 3):
                for figure in items(page, Figure):
                    assert figure.draw().axes
    # fig4's runs are all there, but not what has no row in them.
    if name != "fig4":
        assert items(page, Table) == items(page_of(folder), Table)


def test_an_experiment_of_which_nothing_is_done_says_so(experiments, tmp_path):
    shutil.copy(experiments["fig1"] / "experiment.json", tmp_path)
    assert "No run of it has finished yet." in items(page_of(tmp_path), str)


def row(method, seed, test, links="learned", **options):
    """A row of runs.csv."""
    job = {"dataset": "cora", "model": "gcn", "method": method, "graph_ratio": 0.5}
    job |= {"weight_ratio": 0.0, "seed": seed, "draw": "", "watch": ""}
    if method == "dense":
        job["graph_ratio"] = 0.0
    rest = {"links": links, "epoch": 12, "settled": True, "val": 70, "test": test}
    rest |= {"macs_paper": 2e6, "macs_executed": 1e6, "macs_training": 1e9}
    rest |= {"inference_ms": 1.0, "dense_ms": 2.0, "cpu_seconds": 0.5}
    return {**job, **rest, **options}


def experiment(folder, name, rows):
    about = {"experiment": name, "quick": False, "machine": {"torch": "2"}}
    write_json(folder / "experiment.json", about)
    write_csv(folder / "runs.csv", rows)
    return page_of(folder)


def test_only_an_interval_without_zero_is_called_a_difference(tmp_path):
    rows = [row("dense", seed, 80 + seed, "all") for seed in range(3)]
    rows += [row("GEB", seed, 75 + seed) for seed in range(3)]
    rows += [row("GEB", s, 75 + s - gap, "random") for s, gap in enumerate((-1, 0, 2))]
    [found] = cells(items(experiment(tmp_path, "fig1", rows), Table)[0])
    assert found["learned - dense"] == "-5.0 ± 0.0"
    assert found["learned - random"] == "no difference (+0.3 ± 3.8)"
    assert found["epoch drawn"] == "12 [12-12]"
    assert (found["learned"], found["random"]) == ("76.0 ± 1.0", "75.7 ± 0.6")


def test_the_gap_to_the_paper_is_stated_at_every_point(tmp_path):
    rows = [row("dense", 0, 80.0, "all"), row("GEB", 0, 77.0)]
    rows += [row("GEB", 0, 76.0, "random")]
    rows += [row("GEB", 0, 74.0, draw=5), row("GEB", 0, 75.04, draw=10)]
    summary, by_epoch = items(experiment(tmp_path, "fig1", rows), Table)
    assert cells(summary)[0]["paper"] == "75"
    assert cells(summary)[0]["gap to paper"] == "+2.0"
    assert cells(by_epoch)[0]["epoch 5"] == "74.0 (-1.0)"
    assert cells(by_epoch)[0]["epoch 10"] == "75.0 (+0.0)"


def test_seeds_that_one_side_lacks_are_left_out_of_a_comparison(tmp_path):
    rows = [row("dense", seed, 80.0, "all") for seed in (0, 1)]
    rows += [row("GEB", seed, test) for seed, test in ((1, 70.0), (2, 0.0))]
    rows += [row("GEB", 2, 60.0, "random")]
    [found] = cells(items(experiment(tmp_path, "fig1", rows), Table)[0])
    assert found["learned - dense"] == "-10.0 (n = 1)"
    assert found["learned - random"] == "-60.0 (n = 1)"


def test_tickets_that_did_not_settle_are_counted(tmp_path):
    rows = [row("GEB", 0, 75.0), row("GEB", 1, 75.0, settled=False, epoch=100)]
    [found] = cells(items(experiment(tmp_path, "fig1", rows), Table)[0])
    assert found["epoch drawn"] == "56 [12-100], 1 of 2 not settled"


def test_each_row_of_all_baselines_names_its_links_and_its_ratios(tmp_path):
    joint = {"graph_ratio": 0.2, "weight_ratio": 0.5}
    rows = [row("dense", 0, 80.0, "all"), row("UGS", 0, 78.0, **joint)]
    rows += [row("joint-EB", 0, 79.0 + i, k, **joint) for i, k in enumerate(KINDS)]
    rows += [row("random", 0, 50.0, "random", **joint), row("degree", 0, 7, "degree")]
    page = experiment(tmp_path, "fig6", rows)
    found = {r["method, links"]: r for r in cells(items(page, Table)[0])}
    assert set(found) == {
        *("dense", "UGS, learned links", "degree", "random links, random weights"),
        *(f"joint-EB, {kind} links" for kind in KINDS),
    }
    learned = found["joint-EB, learned links"]
    assert learned["links / weights removed"] == "20% / 50%"
    assert learned["- random"] == "-1.0 (n = 1)"  # its own control, not from scratch
    assert learned["dense / this"] == "2.00x"
    assert learned["MACs executed, M"] == "1.00"
    assert found["dense"]["- dense"] == "-"
    time, training = items(page, Figure)
    # The row of another ratio is in no panel.
    labels = time.draw().legends[0].get_texts()
    assert "degree" not in [label.get_text() for label in labels]
    assert training.draw().axes[0].get_title() == "20% / 50%"


def on_links(seed, links, val, test, model="gcn", share=0.4, dense=80.0):
    """A row of links.csv."""
    job = row("student", seed, test, model=model, graph_ratio=0.0, weight_ratio=0.9)
    found = {column: job[column] for column in KEY}
    found |= {"links": links, "share": share, "val": val, "test": test}
    return found | {"dense": dense, "cpu_seconds": 0.25}


def test_the_frontiers_best_is_chosen_by_validation_and_compared_with_its_own_student(
    tmp_path,
):
    write_csv(
        tmp_path / "links.csv",
        [
            *(on_links(0, "all links", 0, 85.0, m, 0.0) for m in ("gcn", "gcn-own")),
            *(on_links(0, "no links", 0, 60.0, m, 1.0) for m in ("gcn", "gcn-own")),
            on_links(0, "voi", 70, 81.0),
            on_links(0, "random", 60, 78.0),
            on_links(0, "low-degree", 72, 79.0),
            on_links(0, "voi", 71, 80.5, "gcn-own"),
            on_links(0, "random", 60, 77.0, "gcn-own"),
            on_links(0, "grow", 90, 84.0, "gcn-own"),
        ],
    )
    how = {"links": "dense", "graph_ratio": 0.0, "weight_ratio": 0.9}
    rows = [row("student", 0, 80.0, val=75.0, **how)]
    rows.append(row("student", 0, 82.0, model="gcn-own", val=74.0, **how))
    page = experiment(tmp_path, "frontier", rows)
    best, gcn, _, own, _ = items(page, Table)
    blind = {found["among"]: found for found in cells(best)}
    cited = blind["voi, expected-gradient"]
    assert cited["most often"] == "voi on gcn-own (1 of 1)"
    assert (cited["test"], cited["- dense"]) == ("80.5", "+0.5 (n = 1)")
    assert cited["- random"] == "+3.5 (n = 1)"
    assert blind["all but grow"]["most often"] == "low-degree on gcn (1 of 1)"
    assert blind["all"]["- gcn's dense"] == "+4.0 (n = 1)"
    found = {r["links by"]: r for r in cells(gcn)}
    assert found["voi"]["40%"] == "+1.0 (n = 1)"
    assert found["no links"]["100%"] == "-20.0 (n = 1)"
    assert found["voi"]["CPU s"] == "0.250"
    assert "grow (transductive)" in {r["links by"] for r in cells(own)}
    [figure] = items(page, Figure)
    assert len(figure.draw().axes) == 2


def test_the_best_later_draw_is_chosen_by_validation_after_the_detectors(tmp_path):
    joint = {"graph_ratio": 0.5, "weight_ratio": 0.9}
    rows = [row("dense", seed, 80.0, "all", val=80) for seed in (0, 1)]
    for seed in (0, 1):
        for draw, epoch, val, test in (
            ("", 20 + seed, 70, 70.0),
            (5, 5, 99, 60.0),  # earlier
            (50, 50, 75, 71.0),
            (120, 120, 72, 79.0),
        ):
            mine = {"draw": draw, "epoch": epoch, "val": val, **joint}
            rows.append(row("drawn", seed, test, **mine))
            rows.append(row("drawn", seed, test + 2, "random", **mine))
    regrets, by_epoch = items(experiment(tmp_path, "draws", rows), Table)
    learned, random, *_ = cells(regrets)
    assert (learned["best later"], learned["regret"]) == ("50", "+1.0 ± 0.0")
    assert (learned["- dense"], learned["- random"]) == ("-10.0 ± 0.0", "-2.0 ± 0.0")
    assert (random["links"], random["- random"]) == ("random", "-")
    assert cells(by_epoch)[0]["epoch 120"] == "79.0 ± 0.0"


KINDS = ("learned", "random", "all")


def test_table2_shows_the_papers_numbers_beside_ours(tmp_path):
    joint = {"graph_ratio": 0.2, "weight_ratio": 0.8}
    rows = [row("dense", 0, 80.4, "all")]
    rows += [row("joint-EB", 0, 78.0 + i, k, **joint) for i, k in enumerate(KINDS)]
    dense, tickets = items(experiment(tmp_path, "table2", rows), Table)
    [found] = cells(dense)
    assert (found["paper"], found["gap"]) == ("80.9", "-0.5")
    [found] = cells(tickets)
    assert found["learned - dense"] == "-2.4 (n = 1)"
    assert found["learned - random"] == "-1.0 (n = 1)"
    assert found["paper: GEBT - dense"] == "+0.2"


@pytest.mark.parametrize("name", NAMES)
def test_every_comparison_says_that_selection_is_on_validation(name, experiments):
    page = page_of(experiments[name])
    if name != "fig2":  # which compares no scores
        assert "nothing is chosen on test" in page.sections[0].items[0]
        assert any("no difference" in table.note for table in items(page, Table))


# --------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (None, "", "holds neither metrics.json"),
        ("experiment.json", '{"experiment": "fig3"}', "no experiment 'fig3'"),
        ("experiment.json", "{", "Expecting property name"),
        ("metrics.json", "{}", "metrics.json is not a whole record.*lacks"),
        ("metrics.json", "[]", "metrics.json is not a whole record"),
    ],
)
def test_a_folder_without_anything_to_show_is_refused(tmp_path, file, content, words):
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        page_of(tmp_path)


HOSTILE = (
    *(None, True, -1, -0.5, 10**30, 1e300, "", "x", "$\\\\frac", [], [1], {}, {"a": 1}),
    "\ud800",
)


def places(content, path=()):
    """The path of every field of some JSON."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inside:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(content, path, value):
    """A copy of some JSON with one field changed; deleted where it is DELETED."""
    content = json.loads(json.dumps(content))
    *groups, last = path
    place = content
    for key in groups:
        place = place[key]
    if value is DELETED:
        del place[last]
    else:
        place[last] = value
    return content


DELETED = object()


def shown_or_refused(folder, name):
    """Whether the page of a folder can be made; if not, the error names the file."""
    try:
        for figure in items(page_of(folder), Figure):
            assert figure.draw
    except ValueError as error:
        assert str(folder / name) in str(error)
        assert "\n" not in str(error) and len(str(error)) < 600
        return False
    return True


def test_every_field_of_a_record_may_be_anything_and_is_shown_or_named(
    run_folder, tmp_path
):
    whole = json.loads((run_folder / "metrics.json").read_text())
    del whole["summary"]  # which no page is made of
    del whole["runs"][1]
    single = {key: whole[key] for key in ("dataset", "task", "metric")}
    single |= whole["runs"][0]
    refused = 0
    for record in (whole, single):
        for path in places(record):
            for value in (DELETED, *HOSTILE):
                text = json.dumps(changed(record, path, value))
                (tmp_path / "metrics.json").write_text(text)
                refused += not shown_or_refused(tmp_path, "metrics.json")
    assert refused > 200


def test_every_field_of_an_experiments_record_may_be_anything(experiments, tmp_path):
    about = json.loads((experiments["fig1"] / "experiment.json").read_text())
    about |= {"seeds": 3, "graphs": ["digits"], "earlier": [{"torch": "1"}]}
    for path in places(about):
        for value in (DELETED, *HOSTILE):
            text = json.dumps(changed(about, path, value))
            (tmp_path / "experiment.json").write_text(text)
            try:
                shown_or_refused(tmp_path, "experiment.json")
            except AssertionError as error:
                assert "there is no experiment" in str(error.__context__)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_table_may_be_anything_and_is_shown_or_named(
    experiments, tmp_path, name
):
    shutil.copytree(experiments[name], tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.csv"):
        rows = read_rows(path)
        for column in rows[0]:
            for text in ("", "x", "nan", "inf", "-1", "1e400", "9" * 5000, "$\\frac"):
                write_csv(path, [{**rows[0], column: text}, *rows[1:3]])
                shown_or_refused(tmp_path, path.name)
            write_csv(path, [{k: v for k, v in rows[0].items() if k != column}])
            shown_or_refused(tmp_path, path.name)
        write_csv(path, rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lacks the columns dataset, model"),
        (b"\xff\xfe", "codec can't decode"),
        (b'dataset,"', "unexpected end of data"),
        (b"dataset\n" + b"x" * 200_000, "field larger than field limit"),
        (b"{head}\n1,2\n", "line 2 is not as long as the first"),
        (b"{head}\n" + b"1," * 99, "line 2 is not as long as the first"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, content, words):
    experiment(tmp_path, "fig1", [row("GEB", 0, 75.0)])
    path = tmp_path / "runs.csv"
    head = path.read_bytes().partition(b"\n")[0]
    path.write_bytes(content.replace(b"{head}", head))
    with pytest.raises(ValueError, match=f"runs.csv is not a table .*{words}"):
        page_of(tmp_path)


def test_a_run_without_test_nodes_has_a_page(run_folder, tmp_path):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for run in metrics["runs"]:
        run["dense"]["test"] = run["retrained"]["test"] = None
    metrics["runs"][0]["macs"]["paper"]["dense"] = None
    write_json(tmp_path / "metrics.json", metrics)
    page = page_of(tmp_path)
    rows = {row[""]: row for row in cells(items(page, Table)[0])}
    assert rows["test accuracy, %"]["dense"] == "-"
    assert rows["test accuracy, %"]["difference"] == "-"
    assert "±" in rows["val accuracy, %"]["ticket"]
    assert any("no test score was recorded" in text for text in items(page, str))


def test_runs_without_a_test_score_are_counted_and_left_out(tmp_path):
    rows = [row("dense", 0, 80.0, "all"), row("GEB", 0, 75.0), row("GEB", 1, "nan")]
    page = experiment(tmp_path, "fig1", rows)
    assert "Left out, for want of a test score: 1 runs." in items(page, str)
    assert cells(items(page, Table)[0])[0]["learned"] == "75.0"
    for name in NAMES:
        page = experiment(tmp_path, name, [row("dense", 0, "nan", "all")])
        assert not items(page, Table)


def test_a_killed_run_says_how_many_seeds_were_asked(run_folder, tmp_path):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert page_of(run_folder).subtitle.startswith("node-classification, 2 seeds")
    metrics["options"]["seeds"] = 20
    write_json(tmp_path / "metrics.json", metrics)
    page = page_of(tmp_path)
    assert "2 of 20 seeds" in page.subtitle
    assert "digits, gcn, 2 of 20 seeds, mean" in items(page, Table)[0].title


def test_a_killed_experiment_says_how_many_seeds_were_asked(tmp_path):
    experiment(tmp_path, "fig1", [row("GEB", 0, 75.0)])
    about = json.loads((tmp_path / "experiment.json").read_text())
    write_json(tmp_path / "experiment.json", about | {"seeds": 10})
    assert items(page_of(tmp_path), str)[0].startswith("n = 1 of 10 seeds. ")


def test_the_command_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gebt", "report", str(tmp_path)])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(err.strip().splitlines()) == 1
    assert "holds neither metrics.json" in err


# ------------------------------------------------------------------- a browser


def chromium(page, folder, *options, size=(1100, 3000)):
    """Load a page; gives the DOM as it was rendered and the picture of it."""
    from matplotlib.image import imread

    picture = folder / f"{len(list(folder.iterdir()))}.png"
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
            *(f"--window-size={size[0]},{size[1]}", *options),
            *(f"--screenshot={picture}", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert picture.is_file(), done.stderr
    return done.stdout, imread(picture)[..., :3]


@needs_chromium
def test_a_browser_shows_it_light_and_dark(whole, tmp_path):
    dom, light = chromium(whole, tmp_path)
    assert dom.count("<svg") == whole.read_text().count("<svg")
    assert "fig6: accuracy against cost, all baselines" in dom
    _, dark = chromium(whole, tmp_path, "--force-dark-mode")
    assert light.shape == dark.shape == (3000, 1100, 3)
    assert light[:8].mean() > 0.95 and dark[:8].mean() < 0.15  # the margin on top
    for picture in (light, dark):
        assert picture.std() > 0.03  # not blank
        ground = picture[0, 0]
        ink = abs(picture - ground).max(axis=2) > 0.5
        assert ink.mean() > 0.005  # text that stands out from the ground
        assert ink.any(axis=1).mean() > 0.2


def framed(page, folder, size, found, *options):
    """What a script finds in a page, in a frame of a size; and the picture of it."""
    # Beside the page: nothing is put into it. No window is as narrow as a phone.
    frame = folder / "frame.html"
    inside = escape(page.read_text())
    frame.write_text(
        f"<body style='margin: 0'><iframe width={size[0]} height={size[1]} "
        f'frameborder=0 srcdoc="{inside}"></iframe>'
        "<script>onload = () => { const d = frames[0].document;"
        "const all = (what, inside = d) => [...inside.querySelectorAll(what)];"
        "const box = (element) => element.getBoundingClientRect();"
        f"document.title = JSON.stringify({found}) }}</script>"
    )
    dom, picture = chromium(frame, folder, *options, size=size)
    return json.loads(re.search("<title>(.*?)<", dom)[1]), picture


@needs_chromium
def test_a_phone_shows_it_without_scrolling_sideways(whole, tmp_path):
    script = (
        "[d.documentElement.scrollWidth, d.body.scrollWidth, all('svg').length,"
        "parseFloat(frames[0].getComputedStyle(d.body).fontSize)]"
    )
    found, picture = framed(whole, tmp_path, (390, 800), script)
    across, body, figures, font = found
    assert across == 390 and body <= 390
    assert font >= 16
    assert figures == whole.read_text().count("<svg")
    assert picture.std() > 0.03


@needs_chromium
def test_a_phone_shows_a_runs_difference_and_figures_whole(whole, tmp_path):
    script = (
        "[...all('table')[0].rows].map((row) => box(row.cells[3]).right)"
        ".concat(all('svg').slice(0, 4).map((svg) => box(svg).right))"
    )
    rights, _ = framed(whole, tmp_path, (390, 800), script)
    assert len(rights) == 11 + 4
    assert max(rights) <= 390 - 16 + 0.5  # the page's margin


@needs_chromium
@pytest.mark.parametrize("options", [(), ("--force-dark-mode",)])
def test_what_scrolls_sideways_is_shaded_until_its_end_is_reached(tmp_path, options):
    tables = [Table("", ("a",) * n, [("1234567890",) * n]) for n in (2, 20, 20)]
    page = write_pages([Page("", "", [Section("", [*tables])])], tmp_path / "report")
    script = (
        "(all('.wide')[2].scrollLeft = 1e6, all('.wide').map((wide) =>"
        "[wide.scrollWidth - wide.clientWidth, ...['top', 'bottom', 'right'].map("
        "(side) => Math.round(box(wide)[side])), box(wide.querySelector('td')).left]))"
    )
    found, picture = framed(page, tmp_path, (390, 800), script, *options)
    assert [more > 0 for more, *_ in found] == [False, True, True]
    shades = []
    for _, top, bottom, right, first in found:
        assert first == 16  # the first column stays in sight
        edge = picture[top + 3 : bottom - 3, right - 3]
        shades.append(abs(edge - picture[0, 0]).max(axis=1).min() > 0.1)
    assert shades == [False, True, False]


@needs_chromium
def test_a_runs_tables_and_figures_fill_the_width_of_a_screen(whole, tmp_path):
    script = (
        "all('section').slice(0, 3).map((one) => all('.table, figure', one).map("
        "(item) => [box(item).left, box(item).top, box(item).right]))"
    )
    sections, _ = framed(whole, tmp_path, (1280, 800), script)
    for (left, top, middle), (after, beside, right) in sections:
        # They are beside each other (but for a margin), from edge to edge.
        assert abs(beside - top) < 30
        assert left == 32 and 0 < after - middle < 40 and 1200 < right <= 1248


# -------------------------------------------------------------------- drawings


def test_a_scatters_legend_has_bars_only_where_points_have():
    from matplotlib.collections import LineCollection

    for bar in (0.0, 1.5):
        drawn = scatter({"": [("a", 1.0, 2.0, bar), ("b", 2.0, 3.0, 0.0)]}, "", "")
        bars = bool(bar)
        assert len(drawn.axes[0].findobj(LineCollection)) == bars
        assert len(drawn.legends[0].findobj(LineCollection)) == bars


def test_at_least_counts_the_values_that_are_as_large():
    drawn = at_least({"a": np.array([0, 3, 1, 7, 3]), "b": np.array([4])}, "", "")
    lines = [line.get_xydata().tolist() for line in drawn.axes[0].lines]
    assert lines == [[[0.9, 4], [1, 4], [3, 3], [7, 1]], [[0.9, 1], [4, 1]]]
    assert {line.get_drawstyle() for line in drawn.axes[0].lines} == {"steps-pre"}
    at_least({"none": np.array([0])}, "", "").draw_without_rendering()


def test_the_degree_chart_has_no_comb(run_folder):
    graph = load("digits")
    degrees = graph.adjacency.pattern.crow.diff()
    drawn = items(page_of(run_folder), Figure)[3].draw()
    full, ticket = (line.get_xydata() for line in drawn.axes[0].lines)
    for x, y in full:
        assert y == (degrees >= x).sum()
    for line in (full, ticket):
        assert (np.diff(line[1:, 0]) > 0).all()
        assert (np.diff(line[1:, 1]) < 0).all() and line[-1, 1] >= 1
