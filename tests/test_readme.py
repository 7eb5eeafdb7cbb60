# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: its example runs, its excerpt is a log, its map is complete, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from microflow import cli
from tests.kill_support import ROOT, environment, logs, records
from tests.kill_support import cli as run_cli
from tests.test_layers import FLOORS, MODULES, OUTSIDE

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text(encoding="utf-8")
VOLATILE = {
    "at", "began", "cwd", "entrypoint", "host", "id", "name", "nonce", "owner", "pid", "ran", "run", "source", "task"
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What stands below one heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section {title!r}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of the table in a text, without its head."""
    lines = [line.strip()[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


# ------------------------------------------------------------------------------------------------ the example


@pytest.fixture
def example(tmp_path: Path) -> Path:
    source = blocks("python")[0]
    path = tmp_path / "squares.py"
    path.write_text(source)
    return path


def test_the_example_has_twelve_lines_and_runs(example, private_home):
    assert len(example.read_text().splitlines()) == 12
    done = subprocess.run([sys.executable, example], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (said,) = re.findall(r"# (\d+)$", example.read_text(), re.MULTILINE)
    assert done.stdout == said + "\n"
    assert len(logs(private_home)) == 1


def plain(value: Any) -> Any:
    """A record without what is different each time."""
    if isinstance(value, dict):
        return {key: "…" if key in VOLATILE else plain(item) for key, item in value.items()}
    return value


def test_the_excerpt_is_a_whole_log_and_what_the_example_writes(example, tmp_path, private_home):
    """Its checksums are right, and record for record it says what a run of the example says now."""
    (excerpt,) = blocks("json-lines")
    (run_id,) = re.findall(r"`runs/([-0-9a-f]{36})\.jsonl`", README)
    shown = tmp_path / f"{run_id}.jsonl"
    shown.write_text(excerpt)
    assert run_cli("run", f"{example}:sum_of_squares", "--param", "numbers=[3]").returncode == 0
    (log,) = logs(private_home)
    assert [plain(record) for record in records(shown)] == [plain(record) for record in records(log)]
    assert len(rows(section("One task run, line by line"))) == len(excerpt.splitlines())


def test_each_function_that_the_walk_names_exists():
    """`Class.method` or `function`, followed by a link to the file that has it."""
    walk = section("One task run, line by line")
    named = re.findall(r"`((?:\w+\.)*\w+)` \(\[[^]]+\]\(([^)]+\.py)\)\)", walk)
    assert len(named) > 5
    missing = []
    for name, path in named:
        source = (ROOT / path).read_text()
        inner = name.split(".")
        if not all(re.search(rf"^\s*(?:async )?(?:def|class) {part}\b", source, re.MULTILINE) for part in inner):
            missing.append((name, path))
    assert missing == []


# ------------------------------------------------------------------------------------------------ the commands


def commands() -> set[str]:
    """The commands that the command line has."""
    (choices,) = [action.choices for action in cli._parser()._actions if isinstance(action.choices, dict)]
    return set(choices)


def test_each_command_is_shown_as_the_command_line_takes_it():
    typed = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    words = [line.partition("python -m microflow ")[2].split() for line in typed if "-m microflow " in line]
    assert {command[0] for command in words} == commands()
    for command in words:
        cli._parser().parse_args(command)


def test_each_exit_status_is_explained():
    cells = [cell for row in rows(section("The command line")) for cell in row]
    explained = {int(status): meaning for status, meaning in zip(cells[::2], cells[1::2], strict=True) if status}
    assert sorted(explained) == list(range(9))
    assert all(explained.values())
    assert [explained[cli.ELSEWHERE], explained[cli.COMPLETED]] == ["already running elsewhere", "completed"]


# ------------------------------------------------------------------------------------------------- the house


def test_the_map_names_every_module_with_its_floor_from_the_bottom_up():
    """A row for each file, under the whole part of its floor: the decimals only order the modules of one floor."""
    found = [
        (int(floor), name.replace("\\", ""), path)
        for floor, name, path in re.findall(r"^\| (\d+) \| \[([^]]+)\]\(([^)]+)\) \| ", README, re.MULTILINE)
    ]
    files = {module.name: str(module.path.relative_to(ROOT)) for module in MODULES}
    assert {name: path for _, name, path in found} == files
    floors = {name: int(9 if name.split(".")[0] in OUTSIDE else FLOORS.get(name, -1)) for name in files}
    assert {name: floor for floor, name, _ in found} == floors
    assert [floor for floor, *_ in found] == sorted(floor for floor, *_ in found)


def test_each_invariant_has_tests_that_bear_its_number():
    numbers = [number for number, _ in rows(section("Invariants"))]
    assert numbers == [f"I{number}" for number in range(1, 14)]
    borne = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                words = f"{node.name.replace('_', ' ')} {ast.get_docstring(node) or ''}"
                borne.update(re.findall(r"\bI\d+\b", words, re.IGNORECASE))
    assert [number for number in numbers if number not in {word.upper() for word in borne}] == []


# ---------------------------------------------------------------------------------------------------- the rest


def test_each_link_leads_to_a_file_or_a_heading():
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    targets = re.findall(r"\]\(([^)\s]+)\)", README)
    assert targets
    lost = [
        target
        for target in targets
        if not (target[1:] in headings if target.startswith("#") else (ROOT / target).exists())
    ]
    assert lost == []


@pytest.mark.parametrize(
    "decorator",
    [
        "flow(schedule='daily')",
    ],
)
def test_what_is_not_there_yet_is_refused(tmp_path, decorator):
    """Asking for it is an error, not a silence."""
    path = tmp_path / "asks.py"
    path.write_text(f"from microflow import flow, task\n@{decorator}\ndef f(): pass\n")
    done = subprocess.run([sys.executable, path], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "has no option" in done.stderr.splitlines()[-1]
