# SPDX-License-Identifier: Apache-2.0
"""Every numbered edge case is pinned by a test, or is a row of the README's table of differences, or is named as
left for later."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.behaviour_index import DIFFERENT, LATER
from tests.behaviour_support import AREAS, pins

TESTS = Path(__file__).resolve().parent
README = TESTS.parent / "README.md"


def pinned() -> dict[str, dict[int, list[str]]]:
    """Area -> number -> the tests that are marked with it, as they stand in the text of the test files."""
    found: dict[str, dict[int, list[str]]] = {area: defaultdict(list) for area in AREAS}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "pins":
                    area, *numbers = [ast.literal_eval(argument) for argument in mark.args]
                    assert node.name.startswith("test_"), f"{path.name}: {node.name} is marked, but is no test"
                    for number in numbers:
                        found[area][number].append(f"{path.name}::{node.name}")
    return found


def differences() -> list[str]:
    """The first cells of the README's table of differences, in its order."""
    section = README.read_text().partition("## Where it differs from Prefect")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows[1:]]


@pytest.mark.parametrize("area", AREAS)
def test_every_edge_case_is_accounted_for(area: str):
    """A number that no test pins and no list names fails."""
    known = {*pinned()[area], *DIFFERENT[area], *LATER[area]}
    assert sorted(set(range(1, AREAS[area] + 1)) - known) == []


@pytest.mark.parametrize("area", AREAS)
def test_every_named_difference_is_a_row_of_the_readme(area: str):
    rows = differences()
    absent = [text for text in DIFFERENT[area].values() if not any(row.startswith(text) for row in rows)]
    assert not absent


@pytest.mark.parametrize("area", AREAS)
def test_what_is_left_for_later_is_not_pinned(area: str):
    """An edge that works is not listed as missing."""
    assert not set(LATER[area]) & set(pinned()[area])


def test_a_mark_with_a_number_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="1 to 161"):
        pins("task_engine", 162)
