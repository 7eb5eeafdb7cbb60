# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own rules: nothing is timed here, but what is drawn and listed follows from what was measured."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import BUDGETS, chart

MEASURED = {
    name: {"what": name, "beside": "the floor", "unit": "us", "microflow": 50.0, "floor": 5.0, "ratio": 10.0,
           "within_budget": name == "task_call"}
    for name in chart.ROWS
}  # fmt: skip
RESULTS = {"machine": "a machine", "microflow": MEASURED, "peers": {"prefect": {"task_call": 2500.0}}}


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
    lines = chart.table(MEASURED).splitlines()
    assert [line.rpartition(" | ")[2] for line in lines[2:]] == [
        "pass |" if name == "task_call" else "short |" for name in MEASURED
    ]
