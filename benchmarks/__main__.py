# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [--smoke] [NAME …]``: one JSON line for each benchmark.

The exit status is 1 when a budget is missed. With ``--smoke`` the counts are too small to judge: it shows only that
every benchmark still runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from typing import Any

from . import BUDGETS


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


def main(arguments: list[str]) -> int:
    """Run the benchmarks that were named, or all; return 1 when one missed its budget."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure microflow beside its floors.")
    parser.add_argument("--smoke", action="store_true", help="only show that the benchmarks run")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BUDGETS)} (default: all)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BUDGETS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BUDGETS)}")
    missed = False
    for name in options.names or BUDGETS:
        result = line(name, options.smoke)
        missed |= result["within_budget"] is False
        print(json.dumps(result), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
