# SPDX-License-Identifier: Apache-2.0
"""Count what a folder of Python sources holds: ``python -m microflow run microflow/examples/census.py:census``.

Every module is parsed by a task run of its own. Kill the flow in the middle and resume it: the modules that were
counted are not parsed again. A file that does not parse fails only its own task, and is listed below the table.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from collections import defaultdict
from typing import Any

from microflow import flow, task

STANDARD_LIBRARY = sysconfig.get_path("stdlib")
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@task
def find_modules(folder: str) -> list[str]:
    """The Python sources below a folder, in a fixed order, without tests and installed packages."""

    def refuse(problem: OSError) -> None:
        raise problem  # a folder that cannot be read would make every count wrong

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        found += [os.path.join(place, name) for name in files if name.endswith(".py")]
    return sorted(found)


@task
def parse(path: str, witness: str | None) -> dict[str, Any]:
    """What one module holds; ``witness`` names a file that gets one line for each time this runs."""
    if witness is not None:
        append_line(witness, path)
    try:
        with open(path, "rb") as file:
            source = file.read()
        nodes = list(ast.walk(ast.parse(source, filename=path)))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise ValueError(f"cannot parse {path}: {str(problem) or type(problem).__name__}") from problem
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = [((node.end_lineno or node.lineno) - node.lineno + 1, node.name) for node in functions]
    longest_lines, longest_name = max(lengths, default=(0, ""))
    return {
        "path": path,
        "functions": len(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "lines": len(source.splitlines()),
        "longest_function": f"{os.path.basename(path)}:{longest_name}" if functions else "",
        "longest_lines": longest_lines,
    }


@task
def add_up(folder: str, modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each top-level package, by name; modules outside of any package share the row "."."""
    packages: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for module in modules:
        name, *inner = os.path.relpath(module["path"], folder).split(os.sep)
        packages[name if inner else "."].append(module)
    return [{"package": name, **total(packages[name])} for name in sorted(packages)]


@flow
def census(folder: str | None = None, witness: str | None = None) -> dict[str, Any]:
    """Count the modules, functions, classes and lines below a folder (default: Python's standard library)."""
    folder = os.path.abspath(STANDARD_LIBRARY if folder is None else folder)
    paths = find_modules(folder)
    outcomes: list[Any] = parse.map(paths, witness).result(raise_on_failure=False)  # an exception where one failed
    parsed = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    report = {
        "folder": folder,
        "rows": add_up(folder, parsed),
        "totals": total(parsed),
        "failed": [
            {"path": path, "problem": str(outcome)}
            for path, outcome in zip(paths, outcomes, strict=True)
            if isinstance(outcome, Exception)
        ],
    }
    print(table(report))
    return report


def append_line(path: str, line: str) -> None:
    """Append a line in one write, so that the lines of many writers stay whole."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, os.fsencode(line) + b"\n")
    finally:
        os.close(file)


def total(modules: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums over some modules, and the longest of their longest functions."""
    longest = max(modules, key=lambda module: module["longest_lines"], default=None)
    return {
        "modules": len(modules),
        "functions": sum(module["functions"] for module in modules),
        "classes": sum(module["classes"] for module in modules),
        "lines": sum(module["lines"] for module in modules),
        "longest_function": longest["longest_function"] if longest else "",
        "longest_lines": longest["longest_lines"] if longest else 0,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    layout = "{:<28} {:>7} {:>10} {:>8} {:>9}  {}"
    lines = [layout.format("package", "modules", "functions", "classes", "lines", "longest function (lines)")]
    for row in [*report["rows"], {"package": "all", **report["totals"]}]:
        longest = f"{row['longest_function']} ({row['longest_lines']})" if row["functions"] else "-"
        counts = [row[column] for column in ("modules", "functions", "classes", "lines")]
        lines.append(layout.format(row["package"], *counts, longest))
    lines += [f"failed: {failure['problem']}" for failure in report["failed"]]
    return "\n".join(lines)
