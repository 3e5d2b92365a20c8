"""What the README promises runs as it stands there."""

import io
import re
from pathlib import Path

import pytest
from helpers import run_gebt

import gebt

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_ten_lines_put_the_detector_into_a_plain_pyg_loop(data):
    [code] = [block for block in BLOCKS if "train_until_ticket" in block]
    scope: dict = {}
    exec(code, scope)
    model, masks, reading = scope["train_until_ticket"](data, ratio=0.5)
    assert reading.settled
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == total - int(0.5 * total)


def test_the_library_example_runs(tmp_path, monkeypatch, capsys):
    [code] = [block for block in BLOCKS if "gebt.load" in block]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)[1])
    assert accuracy > 85
    assert (tmp_path / "ticket.safetensors").is_file()


def test_a_pyg_model_of_ones_own_goes_from_data_to_compact_ticket(
    data, tmp_path, monkeypatch
):
    [code] = [block for block in BLOCKS if "draw_and_compact" in block]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code, scope)
    fast, small = scope["draw_and_compact"](data)
    assert gebt.evaluate(fast, small) > 60
    assert type(fast) is gebt.models.GCN
    assert small.links_kept < gebt.Graph.from_pyg(data).num_links
    assert (tmp_path / "ticket.safetensors").is_file()


def test_the_tables_of_models_and_tasks_are_what_the_code_prints():
    printed = run_gebt("models", "--markdown", cwd=None).stdout
    for table in printed.strip().split("\n\n"):
        assert table in README, "run `gebt models --markdown` and paste it"


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_two_commands_are_make_targets(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_links_to_files_resolve():
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_pasted_output_has_the_rows_that_gebt_run_prints():
    from rich.console import Console

    from gebt.cli.app import _table

    leaf = {"dense": 1.0, "ticket": 1.0}
    tree = {
        "dense": {"val": 1.0, "test": 1.0},
        "retrained": {"val": 1.0, "test": 1.0},
        "ticket": {
            k: 1.0 for k in ("epoch", "links_kept", "links", "weights_kept", "weights")
        },
        "seconds": {"dense": 1.0, "search": 1.0, "retrain": 1.0},
        "cpu_seconds": {"dense": 1.0, "search": 1.0, "retrain": 1.0},
        "inference_ms": leaf,
        "macs": {"paper": leaf, "executed": leaf},
    }
    metrics = {
        "dataset": "cora",
        "metric": "accuracy",
        "options": {"model": "gcn"},
        "runs": [{"ticket": {"settled": True}}],
        "summary": {"n": 1, "mean": tree, "std": tree},
    }
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(_table(metrics))
    titles = re.findall(r"^│ ([^│]+?) +│", console.export_text(), flags=re.M)
    assert len(titles) == 10
    for title in titles:
        assert title in README
