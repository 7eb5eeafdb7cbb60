# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own rules: nothing is timed here, but what is drawn and listed follows from what was measured."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import BUDGETS, chart, tables, wheel
from benchmarks.profiles import profile
from microflow._waits import now_us

MEASURED = {
    name: {"what": name, "beside": "the floor", "unit": "us", "microflow": 50.0, "floor": 5.0, "ratio": 10.0,
           "within_budget": name == "task_call", "budget": {"limit": 40.0, "of": "microflow"}}
    for name in chart.ROWS
}  # fmt: skip
PEERS = {"prefect": {"version": "3", "figures": {"task_call": 2500.0}}}
RESULTS = {"machine": "a machine", "microflow": MEASURED, "peers": PEERS}


@pytest.mark.parametrize("name", BUDGETS)
def test_every_budget_has_a_benchmark(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").measure)


def test_the_picture_has_a_bar_for_every_figure_and_longer_ones_for_larger_figures():
    root = ElementTree.fromstring(chart.draw(RESULTS))
    bars = [element for element in root.iter() if element.tag.endswith("rect") and element.get("fill") != "white"]
    assert len(bars) == 2 * len(chart.ROWS) + 1
    lengths = {float(bar.attrib["width"]) for bar in bars}
    assert len(lengths) == 3, "the floor, ours and the peer's"
    labels = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "prefect 2,500" in labels


def test_the_table_says_which_budget_was_kept():
    lines = tables.budgets(MEASURED).splitlines()
    assert [line.rpartition(" | ")[2] for line in lines[2:]] == [
        "kept |" if name == "task_call" else "**short** |" for name in MEASURED
    ]


def test_a_peer_that_was_not_measured_is_named_nowhere():
    alone = {**RESULTS, "peers": {}}
    assert "prefect" in chart.draw(RESULTS)
    assert "| prefect 3 |" in tables.section(RESULTS)
    assert "prefect" not in chart.draw(alone) + tables.section(alone)


def test_a_budget_that_is_not_met_has_what_that_costs_and_where_the_time_goes_beside_it():
    profile = {"calls": 480, "shares": {"log": 12, "stores": 9}}
    short = {"async_task": {**MEASURED["submit_wait"], "profile": profile, "what": "a task"}}
    assert tables.missed({"task_call": MEASURED["task_call"]}) == ""
    (line,) = tables.missed(short).splitlines()[2:]
    assert line.startswith("| a task | 125% | It is paid by each task")
    assert line.endswith("Profile: 480 calls of functions; `log` 12 %, `stores` 9 %, the others less each. |")


def test_the_figures_of_the_last_report_have_no_gap():
    results = chart.read_results()
    assert set(results["microflow"]) == set(BUDGETS), "run: python -m benchmarks report"
    assert "Nobody has said" not in tables.section(results), "say in tables.WHY why the budget is not met"


def test_the_readme_shows_the_figures_of_the_last_report():
    _, figures, _ = tables.parts_of(tables.README.read_text(encoding="utf-8"))
    assert figures == f"\n{tables.section(chart.read_results())}\n", "run: python -m benchmarks report"


def test_the_picture_is_that_of_the_last_report():
    assert chart.PICTURE.read_text(encoding="utf-8") == chart.draw(chart.read_results())


def test_writing_the_figures_leaves_the_rest_of_the_readme_alone(tmp_path, monkeypatch):
    copy = tmp_path / "README.md"
    copy.write_text(f"before\n{tables.BEGINNING}\nold\n\n{tables.END}after\n", encoding="utf-8")
    monkeypatch.setattr(tables, "README", copy)
    tables.write(RESULTS)
    tables.write(RESULTS)
    assert copy.read_text(encoding="utf-8") == (
        f"before\n{tables.BEGINNING}\n{tables.section(RESULTS)}\n{tables.END}after\n"
    )


def test_a_profile_gives_what_built_in_functions_take_to_who_calls_them():
    found = profile(lambda: [now_us() for _ in range(100)], 100)
    assert found["shares"]["_waits"] > 0
    assert found["calls"] >= 2, "now_us, and the clock of the system"


def test_the_parts_of_the_wheel_add_up_to_nearly_all_of_it():
    assert wheel.without_prose('"""Prose."""\nx = 1  # more\n"""Of x."""\ny = "# none"\n') == 'x = 1\ny = "# none"'
    shares = wheel.shares()
    assert all(share > 1 for share in shares.values())
    assert 0.9 < sum(shares.values()) / wheel.kilobytes_deflated() < 1
