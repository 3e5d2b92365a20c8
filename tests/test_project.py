"""What stands beside the code agrees with it."""

import re
import tomllib
from pathlib import Path

import yaml

import gebt
from gebt._registry import MODELS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_whole_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == gebt.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    [paper] = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["url"] == PROJECT["urls"]["Paper"]
    for author in [*citation["authors"], *paper["authors"]]:
        assert "name" in author or {"family-names", "given-names"} <= author.keys()


def test_the_changelogs_first_release_is_this_version():
    releases = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == gebt.__version__


def test_a_commit_is_checked_by_what_make_check_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    [local] = hooks["repos"]
    entries = [
        hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]
    ]
    makefile = (ROOT / "Makefile").read_text()
    _, _, recipe = makefile.partition("\ncheck:")
    lines = recipe.partition("\n\n")[0].splitlines()[1:]
    expected = [line.strip().replace("$(BIN)", ".venv/bin") for line in lines]
    assert entries == expected


def _in_dev(extras):
    """The extras that the tests need, too."""
    [names] = re.findall(r"gebt\[(.*)\]", " ".join(extras["dev"]))
    return names.split(",")


def test_every_dependency_has_a_pin_and_a_lowest_version():
    extras = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *(d for name in ("dev", "docs", "asv", *_in_dev(extras)) for d in extras[name]),
    ]
    names = [d.partition(">=")[0] for d in wanted if not d.startswith("gebt[")]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert set(names) - {"triton"} == pins  # torch brings the triton that it needs
    assert all(">=" in d or d.startswith("gebt[") for d in wanted)


def test_what_the_page_on_extending_registers_runs(own_registries):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.S
    )
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
    graph = gebt.load("ring")
    recipe = MODELS.find("mean").changed(epochs=60)
    model = recipe.new(graph.num_features, graph.num_classes)
    options = {"fit": recipe.fit, "weight_ratio": 0.5, "graph_ratio": 0.1}
    ticket = gebt.find_ticket(model, graph, criterion="longest", **options)
    small = ticket.open(model, graph)
    gebt.train(model, small, fit=recipe.fit)
    assert small.links_kept == 90
    # The longest link of the ring, from its last node to its first, has rank one.
    ends = small.adjacency.pattern.edge_index
    assert (ends[0] - ends[1]).abs().max() == 99
