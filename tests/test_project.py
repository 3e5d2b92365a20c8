"""What stands beside the code agrees with it."""

import re
import tomllib
from pathlib import Path

import yaml

import gebt

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


def test_every_dependency_has_a_pin_and_a_lowest_version():
    extras = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *extras["plot"],
        *extras["fast"],
        *extras["dev"],
    ]
    names = [d.partition(">=")[0] for d in wanted if not d.startswith("gebt[")]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert set(names) - {"triton"} == pins  # torch brings the triton that it needs
    assert all(">=" in d or d.startswith("gebt[") for d in wanted)
