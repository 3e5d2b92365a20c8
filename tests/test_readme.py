"""What the README promises runs as it stands there."""

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


@pytest.mark.slow
def test_the_library_example_runs(tmp_path, monkeypatch, capsys):
    [code] = [
        block for block in BLOCKS if "find_ticket(model" in block and "load" in block
    ]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)[1])
    assert accuracy > 85
    assert (tmp_path / "ticket.safetensors").is_file()


@pytest.mark.slow
def test_the_cheapest_model_of_the_example_is_no_worse(capsys):
    [code] = [block for block in BLOCKS if "find_cheapest" in block]
    exec(code, {})
    found = re.search(r"validation ([\d.]+)% -> ([\d.]+)%", capsys.readouterr().out)
    assert float(found[2]) >= float(found[1]) - 0.5


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


@pytest.mark.slow
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
    from gebt.experiments.record import Drawn, Measured, Record, Scores, summary_table

    scores = Scores(1.0, 1.0)
    run = Measured(0, scores, Drawn(*[1] * 6), scores, None, None, None, None, None)
    table = summary_table(Record("cora", "", "accuracy", {"model": "gcn"}, {}, [run]))
    assert len(table.rows) == 10
    for title in [*table.header, *(row[0] for row in table.rows)]:
        assert title in README
