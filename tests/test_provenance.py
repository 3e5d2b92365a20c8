"""Where a result is from: told where it is known, and never somebody else's commit."""

import subprocess
from pathlib import Path

import pytest
import torch

import gebt
from gebt._provenance import _source, in_words, provenance


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=0")
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs git: {done.stderr}")
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository that holds a package called gebt, committed: the package."""
    package = tmp_path / "gebt"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    try:
        git(tmp_path, "init")
    except FileNotFoundError:
        pytest.skip("needs git")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    return package.resolve()


def test_every_fact_is_there():
    found = provenance()
    assert set(found) == {
        *("date", "gebt", "torch", "python", "numpy", "torch_geometric"),
        *("commit", "clean", "processor", "cores", "threads", "device"),
    }
    assert found["gebt"] == gebt.__version__ and found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads() and found["cores"] >= 1
    assert found["device"] is None or torch.cuda.is_initialized()


def test_a_checkouts_commit_is_told_and_whether_it_was_clean(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1")  # a tag's name is no commit
    _source.cache_clear()
    assert _source(checkout) == (head, True)
    (checkout / "a.py").write_text("2\n")
    _source.cache_clear()
    assert _source(checkout) == (head, False)


def test_a_hooks_variables_do_not_name_another_repository(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(Path(__file__).parent))
    _source.cache_clear()
    assert _source(checkout)[1] is True


@pytest.mark.parametrize("inside", [".venv/lib/site-packages/gebt", "src/gebt"])
def test_a_repository_that_merely_holds_an_installed_gebt_is_not_named(
    checkout, inside
):
    installed = checkout.parent / inside
    installed.mkdir(parents=True)
    _source.cache_clear()
    assert _source(installed) == (None, None)


def test_without_a_checkout_a_commit_or_git_there_is_none(
    tmp_path, checkout, monkeypatch
):
    bare = tmp_path / "bare" / "gebt"
    bare.mkdir(parents=True)
    _source.cache_clear()
    assert _source(tmp_path / "absent") == (None, None)
    git(bare.parent, "init")
    assert _source(bare.resolve()) == (None, None)
    monkeypatch.setenv("PATH", "")
    _source.cache_clear()
    assert _source(checkout) == (None, None)


def test_words_leave_out_what_is_not_known_and_say_what_was_changed():
    known = {"gebt": "1", "commit": "abc", "clean": True, "device": None}
    assert in_words(known) == "gebt 1, commit abc"
    assert in_words(known | {"clean": False}) == "gebt 1, commit abc with changes"
    assert in_words(known | {"commit": None, "clean": None}) == "gebt 1"
