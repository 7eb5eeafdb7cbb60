# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [--smoke] [NAME …]``: one JSON line for each benchmark, then a table.

The exit status is 1 when a budget is missed. With ``--smoke`` the counts are too small to judge: it shows only that
every benchmark still runs.

``python -m benchmarks peers [--install]`` measures the peers, which it installs into environments of their own.
``python -m benchmarks report`` runs everything, the peers that are installed too, and writes ``results.json``,
``results.svg`` and README's tables. Peers that are not installed are left out of all three.
``python -m benchmarks draw`` makes the last two again from ``results.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from . import BUDGETS, chart, peers, tables


def line(name: str, smoke: bool) -> dict[str, Any]:
    """What one benchmark measured, beside its budget; ``within_budget`` is None where nothing can be judged."""
    measured: dict[str, Any] = importlib.import_module(f"{__package__}.{name}").measure(smoke)
    budget = BUDGETS[name]
    return {
        "benchmark": name,
        **measured,
        "budget": {"limit": budget.limit, "of": budget.of},
        "within_budget": None if smoke else measured[budget.of] <= budget.limit,
        "python": platform.python_version(),
    }


def machine() -> str:
    """What the figures depend on: processor, cores, system and Python; never the machine's name."""
    model = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        told = re.search(r"^model name\s*: (.+)$", about.read_text(encoding="utf-8"), re.MULTILINE)
        model = told[1] if told else model
    system = f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {system}, {python}"


def measure(names: list[str], smoke: bool) -> dict[str, dict[str, Any]]:
    """Run some benchmarks, print a line for each as it ends, and a table at last."""
    measured = {}
    for name in names:
        measured[name] = line(name, smoke)
        print(json.dumps(measured[name]), flush=True)
    print(tables.budgets(measured), end="")
    return measured


def report() -> dict[str, dict[str, Any]]:
    """Run everything and write the results beside this file."""
    ours = measure(list(BUDGETS), smoke=False)
    results = {"machine": machine(), "microflow": ours, "peers": peers.measure()}
    chart.RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results)
    return ours


def draw(results: chart.Results) -> None:
    """Write what follows from the results: the picture, and README's tables."""
    chart.PICTURE.write_text(chart.draw(results), encoding="utf-8")
    tables.write(results)


def main(arguments: list[str]) -> int:
    """Run the benchmarks that were named, or all; return 1 when one missed its budget."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure microflow beside its floors.")
    parser.add_argument("--smoke", action="store_true", help="only show that the benchmarks run")
    parser.add_argument("--install", action="store_true", help="with peers: install them first")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"peers, report, draw, or which of {', '.join(BUDGETS)} (default: all)"
    )
    options = parser.parse_args(arguments)
    if options.names == ["peers"]:
        if options.install:
            peers.install()
        print(json.dumps(peers.measure(), indent=1))
        return 0
    if options.names == ["draw"]:
        draw(chart.read_results())
        return 0
    unknown = [name for name in options.names if name not in BUDGETS]
    if options.names != ["report"] and unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BUDGETS)}")
    ours = report() if unknown else measure(options.names or list(BUDGETS), options.smoke)
    return 1 if any(result["within_budget"] is False for result in ours.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
